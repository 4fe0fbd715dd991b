/** Overlays into their images, where QEMU refuses, fails or ends meanwhile: which are left, and why, is always told. */
import { EventEmitter } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { commitNode } from '../../lib/checkpoint/commit-job.js';
import { commitLeftOverlays } from '../../lib/checkpoint/disk-overlays.js';
import { overlayOf } from '../../lib/checkpoint/overlay-file.js';
import { DiskError, QmpConnectionError, QmpError } from '../../lib/errors.js';
import { commitOverlays, makeOverlay } from '../../lib/handoff/overlays.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import { identifyProcess, type ProcessIdentity } from '../../lib/vm/process.js';

let dir: string;
let self: ProcessIdentity;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'holdfast-overlays-'));
  self = await identifyProcess(process.pid);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(dir, { recursive: true });
});

const imageNamed = (name: string): string => {
  const image = join(dir, name);
  writeFileSync(image, 'image');
  writeFileSync(overlayOf(image), 'overlay');
  return image;
};

/** What becomes of a job: QEMU's own error, before or after it was ready; or the connection goes. */
type Fate = 'done' | 'fails at once' | 'fails when told to complete' | 'connection lost';

/** As much of QEMU as commits: a device on each overlay, nodes with names that QEMU made up. */
class FakeQemu {
  readonly executed: string[] = [];
  readonly #events = new EventEmitter();
  readonly #images: readonly string[];
  readonly #fates: Fate[];
  #fate: Fate = 'done';

  constructor(images: readonly string[], fates: readonly Fate[]) {
    this.#images = images;
    this.#fates = [...fates];
  }

  once(event: string, { where }: { where: (event: object) => boolean }): Promise<unknown> {
    return new Promise((resolve) => {
      this.#events.on(event, (data: object) => {
        if (where({ data })) resolve({ event, data });
      });
    });
  }

  async execute(command: string): Promise<unknown> {
    return this.executeAny(command);
  }

  async executeAny(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    this.executed.push(command);
    const job = args['job-id'] ?? args.id;
    switch (command) {
      case 'query-block':
        return this.#images.map((image, n) => ({
          inserted: {
            ...{ 'node-name': `#block${n}`, ro: false, drv: 'qcow2', file: overlayOf(image) },
            cache: { direct: false, 'no-flush': false },
            image: { 'virtual-size': 4096, 'backing-filename': image },
          },
        }));
      case 'query-block-jobs':
      case 'query-named-block-nodes':
        return [];
      case 'block-commit':
        this.#fate = this.#fates.shift()!;
        if (this.#fate === 'connection lost') throw new QmpConnectionError('QEMU closed the connection');
        if (this.#fate === 'fails at once') this.#completed(job, 'No space left on device');
        else setImmediate(() => this.#events.emit('BLOCK_JOB_READY', { device: job }));
        return {};
      case 'job-complete':
        if (this.#fate === 'done') {
          this.#completed(job);
          return {};
        }
        this.#completed(job, 'Input/output error');
        throw new QmpError("job-complete: Job 'x' not found");
      default:
        throw new QmpError(`the fake does not know ${command}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #completed(device: unknown, error?: string): void {
    this.#events.emit('BLOCK_JOB_COMPLETED', { device, ...(error === undefined ? {} : { error }) });
  }
}

const asClient = (qemu: FakeQemu) => qemu as unknown as QmpClient;

describe('a commit job', () => {
  it.each<[Fate, string]>([
    ['fails at once', 'No space left on device'],
    ['fails when told to complete', 'Input/output error'],
  ])('that %s tells QEMU’s reason', async (fate, reason) => {
    const qemu = new FakeQemu([], [fate]);
    await expect(commitNode(asClient(qemu), '#block0')).rejects.toThrow(new DiskError(reason));
    expect(qemu.executed.includes('job-complete')).toBe(fate !== 'fails at once');
  });
});

describe('the overlays of a hand-off', () => {
  it('are gone when their images have all', async () => {
    const images = ['a', 'b'].map(imageNamed);
    const qemu = new FakeQemu(images, ['done', 'done']);
    await commitOverlays(self, async () => asClient(qemu), images.map(overlayOf));
    expect(images.map(overlayOf).filter(existsSync)).toEqual([]);
  });

  it.each<[Fate, string]>([
    ['fails at once', 'No space left on device'],
    ['connection lost', 'QEMU closed the connection'],
  ])('are named where the second one is not committed: %s', { timeout: 10_000 }, async (fate, reason) => {
    const images = ['a', 'b', 'c'].map(imageNamed);
    const left = images.slice(1).map(overlayOf);
    const qemu = new FakeQemu(images, ['done', fate]);
    const committed = commitOverlays(self, async () => asClient(qemu), images.map(overlayOf));
    const error = await committed.catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(DiskError);
    expect(error).toMatchObject({
      message: expect.stringContaining(
        `is only in ${left.join(', ')}, and could not be committed: ${reason}`,
      ),
      cure: expect.stringContaining('The VM runs on over it'),
      details: { overlays: left },
    });
    expect(images.map(overlayOf).filter(existsSync)).toEqual(left);
  });

  it('are all that has the guest’s last writes where its QEMU has ended, and nobody else is asked', async () => {
    const overlays = [overlayOf(imageNamed('a'))];
    const gone = { ...self, startTicks: '1' };
    const error = await commitOverlays(gone, () => expect.unreachable(), overlays).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(DiskError);
    expect(error).toMatchObject({
      message: expect.stringContaining(`what the guest wrote in it is only in ${overlays[0]}`),
      cure: expect.stringContaining('Before the VM is started again, `qemu-img commit`'),
    });
    expect(existsSync(overlays[0]!)).toBe(true);
  });

  it('are taken up by a capture', async () => {
    const image = imageNamed('a');
    const qemu = new FakeQemu([image], ['done']);
    expect(await commitLeftOverlays(asClient(qemu), '/')).toBe(1);
    expect(existsSync(overlayOf(image))).toBe(false);
    expect(qemu.executed).not.toContain('blockdev-del');
  });

  it('leave no part of one where they cannot be made', async () => {
    const image = join(dir, 'c');
    const script = join(dir, 'qemu-img');
    const info = `info) echo '{"virtual-size": 4096}' ;;`;
    const create = `create) echo part > '${overlayOf(image)}'; exit 1 ;;`;
    writeFileSync(script, `#!/bin/sh\ncase $1 in ${info} ${create} esac\n`);
    chmodSync(script, 0o755);
    vi.stubEnv('PATH', `${dir}:${process.env.PATH}`);
    await expect(makeOverlay(image)).rejects.toThrow(`no overlay could be made over ${image}`);
    expect(existsSync(overlayOf(image))).toBe(false);
  });
});
