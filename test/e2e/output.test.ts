/**
 * Output commit: what the guest sent after a checkpoint's boundary leaves when the backup has acknowledged
 * that checkpoint, and not before. The guest counts, and sends each number as a datagram: nothing repeats
 * them, so a number that leaks, is lost or comes twice shows.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { holdfast, primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { bootRedisGuest, killOrphan, type RunningVm, remainsOf, serialReplacement } from './support/lab.js';
import { GuestOutput } from './support/lab-output.js';
import { relayedBackupArgs, startRelay } from './support/lab-relay-process.js';

/** Only an acknowledgement may be missing: nobody counts as dead meanwhile. */
const patient = ['--heartbeat-timeout', '60s', '--ack-timeout', '10m'];
/** How long acknowledgements are withheld; in this time the guest sends some fifty datagrams. */
const WITHHELD_MS = 1_000;

let lab: Lab;
let vm: RunningVm;
let output: GuestOutput;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'out' });
  vm = await bootRedisGuest(lab);
  output = await GuestOutput.start(lab);
});

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

const countUp = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, index) => first + index);

/** One epoch is sent, none is acknowledged: since it began, all output of those before has left. */
const waitUntilWithheld = async (): Promise<void> => {
  let [last, sinceMs] = [0, performance.now()];
  await waitFor('the epochs to stand still', async () => {
    const { epoch } = await primaryStatus(lab);
    if (epoch !== last) [last, sinceMs] = [epoch, performance.now()];
    return performance.now() - sinceMs > 300;
  });
};

/**
 * Protects the VM, stops the backup for a while so that nothing is acknowledged, and lets it go on.
 * Returns how many datagrams arrived in that while.
 */
const withholdAcknowledgements = async (gate: 'filter-buffer' | 'none'): Promise<number> => {
  const backup = await startBackup(lab, 'b', serialReplacement(lab, 'b'));
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...patient, '--gate', gate],
    vm: ['--qmp', vm.qmpPath],
  });
  await primary.message('protected');
  const begin = await output.settled('a');
  await output.advance(20);

  process.kill(backup.pid, 'SIGSTOP');
  let during: number;
  try {
    await waitUntilWithheld();
    const before = await output.settled('a');
    await sleep(WITHHELD_MS);
    during = (await output.settled('a')) - before;
    const { vm: guest, epoch, committedEpoch } = await primaryStatus(lab);
    expect(guest.running).toBe(true);
    expect(epoch).toBe(committedEpoch + 1);
  } finally {
    process.kill(backup.pid, 'SIGCONT');
  }
  // What was held and more comes, in order, nothing lost and nothing twice.
  await output.advance(80);
  const numbers = output.numbers.slice(begin);
  expect(numbers).toEqual(countUp(numbers[0]!, numbers.length));

  await holdfast(lab, 'a', ['detach']);
  await primary.ended();
  await backup.process.kill('SIGTERM');
  return during;
};

test('while no acknowledgement comes nothing leaves; afterwards all of it, in order', async () => {
  expect(await withholdAcknowledgements('filter-buffer')).toBe(0);
});

test('without a gate output does leave: the test above can fail', async () => {
  expect(await withholdAcknowledgements('none')).toBeGreaterThan(20);
});

test('an acknowledgement releases exactly what its checkpoint explains', async () => {
  const relay = await startRelay(lab);
  const backup = await startBackup(lab, 'b', [...relayedBackupArgs, ...serialReplacement(lab, 'b')]);
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...patient, '--interval', '200ms'],
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
  await waitUntilWithheld();
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
});
