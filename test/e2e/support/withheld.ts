/** Output commit, proved from outside: what leaves while acknowledgements are withheld, and what an acknowledgement lets go. */

import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { holdfast, primaryStatus, startBackup, startPrimary } from '../../lab/daemons.js';
import type { JsonMessage, JsonProcess } from '../../lab/json-process.js';
import type { Lab } from '../../lab/lab.js';
import { waitFor } from '../../lab/wait.js';
import { killOrphan, type RunningVm, serialReplacement } from './lab.js';
import type { GuestOutput } from './lab-output.js';
import { relayedBackupArgs, startRelay } from './lab-relay-process.js';

/** Only an acknowledgement may be missing: nobody counts as dead meanwhile. */
export const patient = ['--heartbeat-timeout', '60s', '--ack-timeout', '10m'] as const;
/** How long acknowledgements are withheld; in this time the guest sends some fifty datagrams. */
export const WITHHELD_MS = 1_000;

export const countUp = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, index) => first + index);

/** One epoch is sent, none is acknowledged: since it began, all output of those before has left. */
export const waitUntilWithheld = async (lab: Lab): Promise<void> => {
  let [last, sinceMs] = [0, performance.now()];
  await waitFor('the epochs to stand still', async () => {
    const { epoch } = await primaryStatus(lab);
    if (epoch !== last) [last, sinceMs] = [epoch, performance.now()];
    return performance.now() - sinceMs > 300;
  });
};

/** Stops the backup for a while. Returns how many datagrams arrived in that while. */
export const arrivedWhileWithheld = async (
  lab: Lab,
  backup: JsonProcess,
  output: GuestOutput,
): Promise<number> => {
  process.kill(backup.pid, 'SIGSTOP');
  try {
    await waitUntilWithheld(lab);
    const before = await output.settled('a');
    await sleep(WITHHELD_MS);
    const during = (await output.settled('a')) - before;
    const { vm: guest, epoch, committedEpoch } = await primaryStatus(lab);
    expect(guest.running).toBe(true);
    expect(epoch).toBe(committedEpoch + 1);
    return during;
  } finally {
    process.kill(backup.pid, 'SIGCONT');
  }
};

/** From `begin` on, in order, nothing lost and nothing twice, when `count` more have come. */
export const expectAllInOrder = async (output: GuestOutput, begin: number, count: number): Promise<void> => {
  await output.advance(count);
  const numbers = output.numbers.slice(begin);
  expect(numbers).toEqual(countUp(numbers[0]!, numbers.length));
};

/**
 * Protects the VM, stops the backup for a while so that nothing is acknowledged, and lets it go on.
 * Returns how many datagrams arrived in that while.
 */
export const withholdAcknowledgements = async (
  lab: Lab,
  vm: RunningVm,
  output: GuestOutput,
  gateArgs: readonly string[],
): Promise<number> => {
  const backup = await startBackup(lab, 'b', serialReplacement(lab, 'b'));
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...patient, ...gateArgs],
    vm: ['--qmp', vm.qmpPath],
  });
  await primary.message('protected');
  const begin = await output.settled('a');
  await output.advance(20);
  const during = await arrivedWhileWithheld(lab, backup, output);
  await expectAllInOrder(output, begin, 80);
  await holdfast(lab, 'a', ['detach']);
  await primary.ended();
  await backup.process.kill('SIGTERM');
  return during;
};

/**
 * An acknowledgement releases exactly what its checkpoint explains: it is withheld, given, and then the
 * host dies. Returns the takeover and the backup that runs the VM.
 */
export const expectExactRelease = async (
  lab: Lab,
  vm: RunningVm,
  output: GuestOutput,
  gateArgs: readonly string[],
): Promise<{ readonly takeover: JsonMessage; readonly backup: JsonProcess }> => {
  const relay = await startRelay(lab);
  const backup = await startBackup(lab, 'b', [...relayedBackupArgs, ...serialReplacement(lab, 'b')]);
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...patient, ...gateArgs, '--interval', '200ms'],
    vm: ['--qmp', vm.qmpPath],
  });
  await primary.message('protected');
  const begin = await output.settled('a');
  await output.advance(50);

  relay.say('withhold');
  const { epoch } = await relay.message('withheld');
  // The epoch before it has been released before it began, so nothing is on its way any more.
  const before = await output.settled('a');
  await sleep(WITHHELD_MS);
  expect(await output.settled('a')).toBe(before);

  relay.say('acknowledge');
  await waitFor('the next epoch, which is never acknowledged', async () => {
    const status = await primaryStatus(lab);
    return status.committedEpoch === epoch && status.epoch === Number(epoch) + 1;
  });
  await waitUntilWithheld(lab);
  const released = await output.settled('a');
  expect(released).toBeGreaterThan(before);
  await sleep(WITHHELD_MS);
  expect(await output.settled('a')).toBe(released);
  const lastReleased = output.numbers[released - 1]!;

  // The checkpoint itself tells where its boundary was: the VM that resumes from it sends the next number.
  process.kill(primary.pid, 'SIGKILL');
  await killOrphan(vm.pid);
  const takeover = await backup.message('took-over');
  expect(takeover.epoch).toBe(epoch);
  await output.advance(50);
  expect(output.numbers[released]).toBe(lastReleased + 1);
  const numbers = output.numbers.slice(begin);
  expect(numbers).toEqual(countUp(numbers[0]!, numbers.length));
  await relay.process.kill(); // its ports are the next backup's
  return { takeover, backup };
};
