/**
 * The same identity as memory.test.ts, with vCPUs that run in hardware: what the guest writes then reaches the
 * dirty tracker through KVM's own page tables. A flat multiboot guest, since a Linux guest does not boot under
 * every /dev/kvm (a paravirtual one inside a VM, for example).
 */

import { accessSync, constants } from 'node:fs';
import { afterAll, beforeAll, expect, type TestContext, test } from 'vitest';
import { type NativeCaptureMode, native } from '../../lib/native.js';
import type { DeviceStatePath } from '../../lib/primary/vm-driver.js';
import { QmpClient } from '../../lib/qmp/client.js';
import { queryVm } from '../../lib/qmp/recipes.js';
import { unavailableSenders } from '../../lib/send/sender-availability.js';
import { senderStrategies } from '../../lib/send/sender-choice.js';
import { Lab } from '../lab/lab.js';
import { EPOCHS_ON_KVM } from './support/compared-epochs.js';
import { type MemoryGuest, startFlat } from './support/memory-guest.js';
import { assertAccounted, assertIdentical, MemoryPair } from './support/memory-pair.js';

const RUN_MS = 5;
const PAGES = 1024;
/** Of the staged epochs, one in so many is sent while the VM runs on. */
const RUNNING_EVERY = 4;

let lab: Lab | undefined;
let guest: MemoryGuest | undefined;
/** Why KVM cannot run the guest here; found without Holdfast having touched anything. */
let impossible = '';

beforeAll(async () => {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch (error) {
    impossible = `/dev/kvm cannot be opened: ${(error as Error).message}`;
    return;
  }
  lab = await Lab.create({ tag: 'kvm' });
  try {
    guest = await startFlat(lab, { accel: 'kvm', pages: PAGES });
  } catch (error) {
    impossible = `/dev/kvm does not run the flat guest: ${(error as Error).message}`;
  }
});

afterAll(async () => {
  await lab?.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

const guestOrSkip = (context: TestContext): MemoryGuest => {
  if (guest === undefined) context.skip(impossible);
  return guest!;
};

const modes: readonly NativeCaptureMode[] = ['staged', 'direct'];
const devicePaths: readonly DeviceStatePath[] = ['xen-save', 'migrate-fd'];
const streamCounts = [1, 3] as const;
/** Senders that this kernel does not have, each with the reason. */
const unavailable = unavailableSenders(native.probeSenders());
const cases = modes.flatMap((mode, m) =>
  senderStrategies.flatMap((strategy, s) =>
    devicePaths.map((deviceState, d) => ({
      mode,
      strategy,
      deviceState,
      streams: streamCounts[(m + s + d) % 2]!,
    })),
  ),
);

test('01 it is KVM', async (context) => {
  const { observerPath } = guestOrSkip(context);
  await using qmp = await QmpClient.connect(observerPath);
  expect(await queryVm(qmp)).toMatchObject({ accelerator: 'kvm', running: true });
});

test.for(cases)('02 identity, $mode by $strategy, $deviceState, streams: $streams', async (one, context) => {
  const { mode, strategy } = one;
  const writing = guestOrSkip(context);
  context.skip(unavailable.has(strategy), `no ${strategy} here: ${unavailable.get(strategy)}`);
  await using pair = await MemoryPair.open(lab!, writing, one);
  let pages = 0;
  for (let n = 1; n <= EPOCHS_ON_KVM; n++) {
    const send = mode === 'staged' && n % RUNNING_EVERY === 0 ? 'running' : 'stopped';
    const checked = await pair.epoch({ mode, send, runMs: RUN_MS });
    assertIdentical(checked);
    assertAccounted(checked, strategy);
    pages += checked.captured.dirtyPages;
  }
  expect(pages).toBeGreaterThan(EPOCHS_ON_KVM * 20);
});
