/**
 * The replica is the guest's RAM, page for page, at every commit: a Linux guest writes without pause, for every
 * capture mode, sender and device-state path, with one vCPU and with two.
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type NativeCaptureMode, native, type SenderStrategy } from '../../lib/native.js';
import type { DeviceStatePath } from '../../lib/primary/vm-driver.js';
import { Lab } from '../lab/lab.js';
import { countInFile } from '../lab/wait.js';
import { type MemoryGuest, startWriter, writerProgress } from './support/memory-guest.js';
import { assertIdentical, type CheckedEpoch, MemoryPair } from './support/memory-pair.js';

/** Each mode and sender meets both device-state paths: 200 epochs for either pair. */
const EPOCHS = 100;
const RUN_MS = 8;
const WORKING_SET_PAGES = 4096;
/** Of the staged epochs, one in so many is sent while the VM runs on. */
const RUNNING_EVERY = 4;
/** And one in so many is staged before the pause, too. */
const PRESTAGED_EVERY = 3;

const modes: readonly NativeCaptureMode[] = ['staged', 'direct'];
const strategies: readonly SenderStrategy[] = ['copy', 'sendfile', 'splice'];
const devicePaths: readonly DeviceStatePath[] = ['xen-save', 'migrate-fd'];

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

  // Each mode and sender meets either device-state path: one with 1 vCPU, the other with 2.
  const cases = modes.flatMap((mode, m) =>
    strategies.map((strategy, s) => ({ mode, strategy, deviceState: devicePaths[(m + s + vcpus) % 2]! })),
  );

  test.each(cases)('$mode by $strategy, $deviceState', async ({ mode, strategy, deviceState }) => {
    await using pair = await MemoryPair.open(lab, guest, { strategy, deviceState });
    let pages = 0;
    let prestaged = 0;
    for (let n = 1; n <= EPOCHS; n++) {
      const send = mode === 'staged' && n % RUNNING_EVERY === 0 ? 'running' : 'stopped';
      const prestage = mode === 'staged' && n % PRESTAGED_EVERY === 0;
      const checked = await pair.epoch({ mode, send, runMs: RUN_MS, prestage });
      assertIdentical(checked);
      expect(checked.captured.mode).toBe(mode);
      expect(checked.sent.pages + checked.sent.zeroPages).toBe(checked.captured.dirtyPages);
      pages += checked.captured.dirtyPages;
      prestaged += checked.captured.prestagedPages;
    }
    // An idle guest would prove nothing.
    expect(pages).toBeGreaterThan(EPOCHS * 20);
    expect(prestaged > EPOCHS * 5).toBe(mode === 'staged');
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
    const { epoch, paused } = await pair.capture(mode);
    expect(paused.captured.dirtyPages).toBeGreaterThan(400);
    await pair.engine.abort(epoch);
    await pair.driver.resume();
    const next = await pair.epoch({ mode, send: 'stopped', runMs: RUN_MS });
    assertIdentical(next);
    expect(next.captured.dirtyPages).toBeGreaterThanOrEqual(paused.captured.dirtyPages);
  });
});
