/** The pure cores of checkpoints on disk: which layers, which to keep, when to stop, what a manifest is worth. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { catchUp } from '../../lib/checkpoint/catch-up.js';
import { chainOf, type Link, nextUpkeep } from '../../lib/checkpoint/chain.js';
import {
  MANIFEST_MAGIC,
  MANIFEST_VERSION,
  type Manifest,
  parseManifest,
  renderManifest,
} from '../../lib/checkpoint/manifest.js';
import { needsAnotherRound, PAUSE_BYTES } from '../../lib/checkpoint/rounds.js';
import { DamagedError } from '../../lib/errors.js';

const link = (epoch: number, parent: number | null, isRetired = false): Link => ({
  epoch,
  parent,
  isRetired,
});
const mapOf = (links: readonly Link[]) => new Map(links.map((each) => [each.epoch, each]));

describe('01 chains', () => {
  test('bottom first, from the full one', () => {
    const links = mapOf([link(1, null), link(2, 1), link(3, 2), link(4, null)]);
    expect(chainOf(links, 3)).toEqual({ layers: [1, 2, 3] });
    expect(chainOf(links, 4)).toEqual({ layers: [4] });
  });

  test('what is missing is named, and what goes round ends', () => {
    expect(chainOf(mapOf([link(3, 2)]), 3)).toEqual({ missing: 2 });
    expect(chainOf(mapOf([link(3, 4), link(4, 3)]), 3)).toEqual({ missing: 4 });
    expect(chainOf(mapOf([link(3, 3)]), 3)).toEqual({ missing: 3 });
  });
});

/** Does one step as upkeep.ts does it. */
const apply = (links: readonly Link[], step: NonNullable<ReturnType<typeof nextUpkeep>>): Link[] => {
  switch (step.kind) {
    case 'retire':
      return links.map((each) => (each.epoch === step.epoch ? { ...each, isRetired: true } : each));
    case 'remove':
      return links.filter(({ epoch }) => epoch !== step.epoch);
    case 'merge':
      return links.map((each) => (each.epoch === step.upper ? { ...each, parent: null } : each));
  }
};

const restorable = (links: readonly Link[]): number[] =>
  links
    .filter(({ isRetired, epoch }) => !isRetired && 'layers' in chainOf(mapOf(links), epoch))
    .map(({ epoch }) => epoch);

describe('02 upkeep', () => {
  test('the oldest is given up, merged into the next, and removed', () => {
    let links = [link(1, null), link(2, 1), link(3, 2)];
    const steps = [];
    for (let step = nextUpkeep(links, 2); step !== undefined; step = nextUpkeep(links, 2)) {
      steps.push(step);
      links = apply(links, step);
    }
    expect(steps).toEqual([
      { kind: 'retire', epoch: 1 },
      { kind: 'merge', lower: 1, upper: 2 },
      { kind: 'remove', epoch: 1 },
    ]);
    expect(links).toEqual([link(2, null), link(3, 2)]);
  });

  test('without a limit nothing goes; what is retired already does', () => {
    expect(nextUpkeep([link(1, null), link(2, 1)], undefined)).toBeUndefined();
    expect(nextUpkeep([link(1, null, true)], undefined)).toEqual({ kind: 'remove', epoch: 1 });
  });

  test('one that cannot be restored does not stand for one that can', () => {
    // 3 lacks its parent: with it there are two, but only 1 and 5 are of use.
    const links = [link(1, null), link(3, 2), link(5, null)];
    expect(nextUpkeep(links, 2)).toBeUndefined();
    expect(nextUpkeep([link(1, null), link(5, null), link(6, 5)], 2)).toEqual({ kind: 'retire', epoch: 1 });
    expect(nextUpkeep([link(1, null), link(5, null), link(6, 5)], 2, new Set([6]))).toBeUndefined();
  });

  test('what is damaged is neither merged nor merged into', () => {
    const links = [link(1, null, true), link(2, 1)];
    expect(nextUpkeep(links, 1)).toEqual({ kind: 'merge', lower: 1, upper: 2 });
    expect(nextUpkeep(links, 1, new Set([2]))).toBeUndefined();
    expect(nextUpkeep(links, 1, new Set([1]))).toBeUndefined();
  });

  test('any history ends, with the newest kept and never fewer than asked for', () => {
    const history = fc.array(fc.boolean(), { minLength: 1, maxLength: 14 });
    fc.assert(
      fc.property(history, fc.integer({ min: 1, max: 5 }), fc.nat(40), (fulls, keep, cut) => {
        let links: Link[] = [];
        let steps = 0;
        for (const [index, full] of fulls.entries()) {
          const epoch = index + 1;
          links.push(link(epoch, index === 0 || full ? null : index));
          for (;;) {
            const before = restorable(links);
            const step = nextUpkeep(links, keep);
            // Cut off now and then: the next checkpoint comes before all is done.
            if (step === undefined || (cut > 0 && steps++ % (cut + 1) === cut)) break;
            links = apply(links, step);
            const after = restorable(links);
            expect(after.length).toBeGreaterThanOrEqual(Math.min(keep, before.length));
            expect(after).toContain(epoch);
            expect(before).toEqual(expect.arrayContaining(after));
          }
        }
        for (let step = nextUpkeep(links, keep); step !== undefined; step = nextUpkeep(links, keep)) {
          links = apply(links, step);
        }
        const newest = fulls.map((_, index) => index + 1).slice(-keep);
        expect(restorable(links)).toEqual(newest);
        // Nothing lies around: no layer that is not a checkpoint's own.
        expect(links.map(({ epoch }) => epoch)).toEqual(newest);
      }),
    );
  });
});

describe('03 when the VM is stopped', () => {
  const STAGING = 256 << 20;
  test('after one round at least, once little is left', () => {
    expect(needsAnotherRound([], STAGING)).toBe(true);
    expect(needsAnotherRound([PAUSE_BYTES], STAGING)).toBe(false);
    expect(needsAnotherRound([PAUSE_BYTES + 1], STAGING)).toBe(true);
  });
  test('not later because of a guest that writes as fast', () => {
    expect(needsAnotherRound([100 << 20, 90 << 20], STAGING)).toBe(false);
    expect(needsAnotherRound([100 << 20, 60 << 20], STAGING)).toBe(true);
  });
  test('what does not fit into staging is worth more rounds, but not for ever', () => {
    expect(needsAnotherRound([400 << 20, 390 << 20], STAGING)).toBe(true);
    expect(
      needsAnotherRound(
        Array.from({ length: 20 }, () => 400 << 20),
        STAGING,
      ),
    ).toBe(false);
  });
});

describe('04 rounds, and the flush of the images', () => {
  /** Each flush takes as long as it is told. @returns what was done, in order */
  const stepsWith = async (...tookMs: readonly number[]): Promise<string[]> => {
    const steps: string[] = [];
    let flushes = 0;
    const rounds = await catchUp({
      stagingBytesMax: 256 << 20,
      round: async (number) => {
        steps.push(String(number));
        return number === 1 ? 2 * PAUSE_BYTES : PAUSE_BYTES;
      },
      flush: async () => {
        steps.push('flush');
        return tookMs[flushes++] ?? Number.NaN;
      },
    });
    expect(steps.filter((step) => step !== 'flush').at(-1)).toBe(String(rounds));
    return steps;
  };

  test('a short one ends it', async () => {
    expect(await stepsWith(10)).toEqual(['1', '2', 'flush']);
  });
  test('behind a long one are more rounds, which go on counting', async () => {
    expect(await stepsWith(500, 10)).toEqual(['1', '2', 'flush', '3', 'flush']);
  });
  test('and behind the last one there is always a round, if it was long', async () => {
    expect(await stepsWith(500, 400)).toEqual(['1', '2', 'flush', '3', 'flush', '4']);
  });
});

const manifest: Manifest = {
  magic: MANIFEST_MAGIC,
  version: MANIFEST_VERSION,
  epoch: 3,
  parent: 2,
  takenAt: '2026-01-02T03:04:05.678Z',
  pauseMs: 4.25,
  vm: {
    name: 'web1',
    qemuVersion: '7.2.22',
    binary: '/usr/bin/qemu-system-x86_64',
    argv: ['-m', '512'],
    cwd: '/',
    machineType: 'pc-q35-7.2',
    accelerator: 'tcg',
    vcpus: 1,
    ramBytes: 512 << 20,
    pageSize: 4096,
    ramId: 'ram',
  },
  ram: { file: 'ram', index: 'ram.index', digest: '0123456789abcdef', pages: 10, zeroPages: 2 },
  device: { file: 'device', bytes: 100, sha256: 'a'.repeat(64) },
  disks: [],
};

describe('05 manifests', () => {
  test('are read as they were written', () => {
    expect(parseManifest(renderManifest(manifest), 'm')).toEqual(manifest);
  });

  test('any character that differs is found', () => {
    const text = renderManifest(manifest);
    const at = fc.integer({ min: 0, max: text.length - 2 });
    fc.assert(
      fc.property(at, fc.constantFrom('0', 'x', '"', ' ', '{'), (where, char) => {
        const changed = text.slice(0, where) + char + text.slice(where + 1);
        let parsed: Manifest;
        try {
          parsed = parseManifest(changed, 'm');
        } catch (error) {
          expect(error).toBeInstanceOf(DamagedError);
          expect((error as Error).message).toMatch(/^m /);
          return;
        }
        expect(parsed).toEqual(manifest); // white space between the tokens
      }),
      { numRuns: 400 },
    );
  });

  test('of another version, or with a path for a file name, are refused', () => {
    expect(() => parseManifest(renderManifest({ ...manifest, version: 2 as 1 }), 'm')).toThrow('version 2');
    const evil = { ...manifest, ram: { ...manifest.ram, file: '../../etc/passwd' } };
    expect(() => parseManifest(renderManifest(evil), 'm')).toThrow(DamagedError);
    expect(() => parseManifest('{}', 'm')).toThrow('magic');
    expect(() => parseManifest('', 'm')).toThrow('not JSON');
  });
});
