import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import {
  chooseTarget,
  MEMORY_MARGIN,
  type TargetCandidate,
  type TargetOffer,
} from '../../lib/migrate/choose-target.js';

const GIB = 2 ** 30;
const needs = { ramBytes: 4 * GIB, vcpus: 2 };
/** A gigabit and some. */
const offer: TargetOffer = {
  name: 'a',
  freeBytes: 16 * GIB,
  idleCpus: 6,
  roundTripMs: 0.5,
  linkRate: 125_000,
};

const nameOf = (...candidates: TargetCandidate[]): string | undefined =>
  chooseTarget(candidates, needs).best?.name;

describe('01 the best target', () => {
  it('is the one that the VM reaches soonest', () => {
    const near = { ...offer, name: 'near', roundTripMs: 0.1 };
    const fast = { ...offer, name: 'fast', linkRate: 1_250_000, roundTripMs: 20 };
    expect(nameOf(offer, near)).toBe('near');
    expect(nameOf(offer, near, fast)).toBe('fast');
    expect(chooseTarget([offer, fast], needs).reason).toBe(
      "fast: 16 GiB of memory free, 6 CPUs idle for 2 of the VM, 20 ms there and back, 1.2 GiB/s: the VM's memory within 3,496 ms. a would take 34 s.",
    );
  });

  it('has its CPUs idle, however far it is', () => {
    const busy = { ...offer, name: 'busy', idleCpus: 0.5, linkRate: 1e9 };
    expect(nameOf(busy, offer)).toBe('a');
    expect(chooseTarget([busy, offer], needs).reason).toContain(
      'busy has only 0.5 CPUs idle for 2 of the VM.',
    );
    expect(nameOf(busy, { ...busy, name: 'busier', idleCpus: 0 })).toBe('busy');
    // What one moment's look tells of a twentieth of a CPU is not worth a slower link.
    const slow = { ...offer, name: 'slow', idleCpus: 0.05, linkRate: 3_000 };
    expect(nameOf(slow, { ...offer, name: 'fast', idleCpus: 0 })).toBe('fast');
  });

  it('has the memory, or is none', () => {
    const full = { ...offer, name: 'full', freeBytes: 4 * GIB };
    expect(nameOf(full)).toBeUndefined();
    expect(nameOf({ ...full, freeBytes: 4 * GIB * MEMORY_MARGIN })).toBe('full');
    expect(chooseTarget([full, offer], needs)).toMatchObject({
      best: { name: 'a' },
      reason: expect.stringContaining('full: only 4 GiB of memory are free, 4.2 GiB are needed.'),
    });
  });

  it('answered, and can be reached', () => {
    const silent = { name: 'silent', silence: 'it refused the connection' };
    const cut = { ...offer, name: 'cut', linkRate: 0 };
    expect(nameOf(silent, cut, offer)).toBe('a');
    expect(chooseTarget([silent, cut], needs)).toEqual({
      best: undefined,
      reason:
        'None of the targets will do. silent: it refused the connection. cut: nothing gets through to it.',
    });
  });

  it('of equals: more CPUs, more memory, named first', () => {
    const twin = { ...offer, name: 'twin' };
    expect(nameOf(twin, offer)).toBe('twin');
    expect(nameOf(offer, twin)).toBe('a');
    expect(nameOf(offer, { ...twin, idleCpus: 7 })).toBe('twin');
    expect(nameOf(offer, { ...twin, freeBytes: 17 * GIB })).toBe('twin');
    expect(chooseTarget([offer, twin], needs).reason).toContain('twin is no better.');
  });
});

describe('02 properties', () => {
  const anyOffer = fc.record({
    freeBytes: fc.nat(16).map((gib) => gib * GIB),
    idleCpus: fc.nat(8),
    roundTripMs: fc.double({ min: 0.01, max: 100, noNaN: true }),
    linkRate: fc.oneof(fc.constant(0), fc.double({ min: 1, max: 1e7, noNaN: true })),
  });
  const offers = fc
    .array(anyOffer, { maxLength: 6 })
    .map((all): TargetOffer[] => all.map((each, index) => ({ ...each, name: `host-${index}` })));

  test('it does not depend on the order, but among equals', () => {
    fc.assert(
      fc.property(offers, (all) => {
        const without = ({ name: _, ...rest }: TargetOffer) => rest;
        const [forth, back] = [chooseTarget(all, needs).best, chooseTarget(all.toReversed(), needs).best];
        expect(forth && without(forth)).toEqual(back && without(back));
      }),
    );
  });

  test('the best stays the best when it gets better, and each target is spoken of', () => {
    fc.assert(
      fc.property(offers, (all) => {
        const { best, reason } = chooseTarget(all, needs);
        for (const { name } of all) expect(reason).toContain(name);
        expect(reason).not.toMatch(/NaN|∞|undefined/);
        if (best === undefined) return;
        const better = {
          ...best,
          linkRate: best.linkRate * 2,
          roundTripMs: 0,
          idleCpus: 9,
          freeBytes: 99 * GIB,
        };
        const again = all.map((each) => (each === best ? better : each));
        expect(chooseTarget(again, needs).best).toBe(better);
      }),
    );
  });
});
