/**
 * The replica is the guest's RAM, page for page, at every commit: a Linux guest writes without pause, for every
 * capture mode, sender and device-state path, with one vCPU and with two.
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type NativeCaptureMode, native } from '../../lib/native.js';
import type { DeviceStatePath } from '../../lib/primary/vm-driver.js';
import { unavailableSenders } from '../../lib/send/sender-availability.js';
import { senderStrategies } from '../../lib/send/sender-choice.js';
import { Lab } from '../lab/lab.js';
import { countInFile } from '../lab/wait.js';
import { EPOCHS_ON_TCG } from './support/compared-epochs.js';
import { type MemoryGuest, startWriter, writerProgress } from './support/memory-guest.js';
import {
  assertAccounted,
  assertIdentical,
  type CheckedEpoch,
  MemoryPair,
  type Slice,
} from './support/memory-pair.js';

const RUN_MS = 8;
const WORKING_SET_PAGES = 4096;
/** Of the staged epochs, one in so many is sent while the VM runs on. */
const RUNNING_EVERY = 4;
/** And one in so many is staged, or also sent, before the pause, in one to three slices. */
const SPECULATIVE_EVERY = 3;
const SLICES_MAX = 3;
const SLICE_RUN_MS = 2;
/** Where each has a sender of its own: some for each sender and mode. */
const MIXED_EPOCHS = 36;

const modes: readonly NativeCaptureMode[] = ['staged', 'direct'];
const streamCounts = [1, 3] as const;
const devicePaths: readonly DeviceStatePath[] = ['xen-save', 'migrate-fd'];
/** Ahead of the pause of epoch n: one to three slices, most of them sent, some only staged. */
const slicesOf = (n: number): readonly Slice[] => {
  if (n % SPECULATIVE_EVERY > 0) return [];
  const turn = n / SPECULATIVE_EVERY;
  const slices = Array.from({ length: 1 + (turn % SLICES_MAX) }, (_, i) => (turn + i) % 4 > 0);
  return slices.map((send) => ({ send, runMs: SLICE_RUN_MS }));
};

/** Senders that this kernel does not have, each with the reason; their tests are skipped, visibly. */
const unavailable = unavailableSenders(native.probeSenders());

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.create({ tag: 'memory' });
});
afterAll(async () => {
  await lab.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

describe.each([1, 2])('01 identity, %i vCPU', (vcpus) => {
  let guest: MemoryGuest;
  beforeAll(async () => {
    guest = await startWriter(lab, {
      vcpus,
      pagesPerSecond: 40_000,
      workingSetPages: WORKING_SET_PAGES,
      randomOrder: true,
    });
  });
  afterAll(async () => {
    await guest.process.kill();
  });

  // The device-state path and the number of streams that a mode and sender does not meet with 1 vCPU, it does with 2.
  const cases = modes.flatMap((mode, m) =>
    senderStrategies.map((strategy, s) => ({
      mode,
      strategy,
      deviceState: devicePaths[(m + s + vcpus) % 2]!,
      streams: streamCounts[(m + vcpus) % 2]!,
    })),
  );

  test.for(cases)('$mode by $strategy, $deviceState, streams: $streams', async (one, context) => {
    const { mode, strategy } = one;
    context.skip(unavailable.has(strategy), `no ${strategy} here: ${unavailable.get(strategy)}`);
    await using pair = await MemoryPair.open(lab, guest, one);
    let pages = 0;
    let prestaged = 0;
    let ahead = 0;
    let superseded = 0;
    for (let n = 1; n <= EPOCHS_ON_TCG; n++) {
      const send = mode === 'staged' && n % RUNNING_EVERY === 0 ? 'running' : 'stopped';
      // A direct epoch may have slices ahead of it as well; what of them was not sent is of no use then.
      const checked = await pair.epoch({ mode, send, runMs: RUN_MS, slices: slicesOf(n) });
      assertIdentical(checked);
      expect(checked.captured.mode).toBe(mode);
      assertAccounted(checked, strategy);
      pages += checked.captured.dirtyPages;
      prestaged += checked.captured.prestagedPages;
      ahead += checked.captured.aheadPages;
      superseded += checked.sent.supersededBytes / 4096;
    }
    // Also with QEMU's memory written to in every pause.
    expect(pair.clock.status()).toMatchObject({ state: 'following' });
    // An idle guest would prove nothing.
    expect(pages).toBeGreaterThan(EPOCHS_ON_TCG * 20);
    expect(prestaged).toBeGreaterThan(EPOCHS_ON_TCG * 5);
    expect(ahead).toBeGreaterThan(EPOCHS_ON_TCG);
    // The guest writes while slices are copied: some of it in vain, or there was nothing to supersede.
    expect(superseded).toBeGreaterThan(0);
  });

  test('a sender of its own for each epoch', async () => {
    await using pair = await MemoryPair.open(lab, guest, {
      strategy: 'copy',
      deviceState: 'xen-save',
      streams: vcpus,
    });
    const usable = senderStrategies.filter((strategy) => !unavailable.has(strategy));
    for (let n = 1; n <= MIXED_EPOCHS; n++) {
      // The parity of either number goes through both with each sender.
      const mode = modes[(n + Math.trunc(n / usable.length)) % 2]!;
      const strategy = usable[n % usable.length]!;
      const checked = await pair.epoch({ mode, send: 'stopped', runMs: RUN_MS, strategy });
      assertIdentical(checked);
      assertAccounted(checked, strategy);
    }
  });

  test('the guest saw nothing of it', async () => {
    expect(await writerProgress(guest.ramPath, 4 * WORKING_SET_PAGES)).toMatchObject({ errors: 0 });
    expect(countInFile(guest.serialPath, 'ERROR')).toBe(0);
  });
});

describe('02 the check can fail', () => {
  let guest: MemoryGuest;
  beforeAll(async () => {
    guest = await startWriter(lab, { pagesPerSecond: 20_000, workingSetPages: 8192 });
  });
  afterAll(async () => {
    await guest.process.kill();
  });

  test('pages that were captured and never sent are found missing', async () => {
    await using pair = await MemoryPair.open(lab, guest, { strategy: 'copy', deviceState: 'xen-save' });
    assertIdentical(await pair.epoch({ mode: 'staged', send: 'stopped', runMs: RUN_MS }));
    // Another engine on the same userfaultfd takes a capture of its own and forgets it.
    const forgetful = new native.PrimaryEngine({
      pid: guest.process.pid,
      ram: pair.ram,
      stagingBytesMax: guest.ramBytes,
      strategy: 'copy',
      copyThreads: 1,
    });
    expect(await forgetful.attach()).toMatchObject({ adopted: true });
    await writerProgress(guest.ramPath, 500);
    await pair.driver.stop(); // or the guest might write the same pages again, which would hide the loss
    const { dirtyPages } = await forgetful.capture({ epoch: 1, mode: 'direct' });
    expect(dirtyPages).toBeGreaterThan(0);
    await forgetful.close();
    const { differences } = await pair.epoch({ mode: 'staged', send: 'stopped', runMs: 0 });
    expect(differences.length).toBeGreaterThan(0);
    expect(() => assertIdentical({ differences, epoch: 2 } as CheckedEpoch)).toThrow(
      /differs .* in pages \d+/,
    );
  });

  test.each(modes)('pages of an aborted %s epoch travel with the next', async (mode) => {
    await using pair = await MemoryPair.open(lab, guest, { strategy: 'sendfile', deviceState: 'xen-save' });
    assertIdentical(await pair.epoch({ mode, send: 'stopped', runMs: RUN_MS }));
    await writerProgress(guest.ramPath, 500);
    const { epoch, paused } = await pair.capture(mode, [
      { send: true, runMs: RUN_MS },
      { send: true, runMs: RUN_MS },
    ]);
    expect(paused.captured.dirtyPages).toBeGreaterThan(400);
    expect(paused.captured.prestagedPages).toBeGreaterThan(0);
    await pair.engine.abort(epoch);
    await pair.driver.resume();
    const next = await pair.epoch({ mode, send: 'stopped', runMs: RUN_MS, slices: slicesOf(3) });
    assertIdentical(next);
    expect(next.captured.dirtyPages).toBeGreaterThanOrEqual(paused.captured.dirtyPages);
  });
});
