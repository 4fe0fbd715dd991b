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
import { Lab } from '../lab/lab.js';
import { type MemoryGuest, startFlat } from './support/memory-guest.js';
import { assertIdentical, MemoryPair } from './support/memory-pair.js';

/** Each mode meets both device-state paths: 200 epochs for either mode. */
const EPOCHS = 100;
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
const cases = modes.flatMap((mode) => devicePaths.map((deviceState) => ({ mode, deviceState })));

test('01 it is KVM', async (context) => {
  const { observerPath } = guestOrSkip(context);
  await using qmp = await QmpClient.connect(observerPath);
  expect(await queryVm(qmp)).toMatchObject({ accelerator: 'kvm', running: true });
});

test.for(cases)('02 identity, $mode, $deviceState', async ({ mode, deviceState }, context) => {
  const writing = guestOrSkip(context);
  await using pair = await MemoryPair.open(lab!, writing, { strategy: 'sendfile', deviceState });
  let pages = 0;
  for (let n = 1; n <= EPOCHS; n++) {
    const send = mode === 'staged' && n % RUNNING_EVERY === 0 ? 'running' : 'stopped';
    const checked = await pair.epoch({ mode, send, runMs: RUN_MS });
    assertIdentical(checked);
    pages += checked.captured.dirtyPages;
  }
  expect(pages).toBeGreaterThan(EPOCHS * 20);
});
