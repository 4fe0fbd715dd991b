/**
 * The packet relay, which a VM that Holdfast launches gets by itself: the same proof of output commit as for
 * QEMU's filters (output.test.ts), and what happens when one of the three, VM, daemon or relay, is gone.
 *
 * One VM goes through all tests in turn: launched on a, moved to b by a failure, and back.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  holdfast,
  type LaunchedRelay,
  primaryStatus,
  relayPid,
  startBackup,
  startPrimary,
} from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import {
  isRunning,
  killOrphan,
  protect,
  type RunningVm,
  redisGuestArgs,
  remainsOf,
  serialReplacement,
} from './support/lab.js';
import { GuestOutput } from './support/lab-output.js';
import {
  arrivedWhileWithheld,
  expectAllInOrder,
  expectExactRelease,
  patient,
  WITHHELD_MS,
  withholdAcknowledgements,
} from './support/withheld.js';

let lab: Lab;
let vm: RunningVm;
let relay: LaunchedRelay;
let output: GuestOutput;
let backup: JsonProcess;
let primary: JsonProcess;

const qemu = (): string[] => ['--', 'qemu-system-x86_64', ...redisGuestArgs(lab)];

beforeAll(async () => {
  lab = await Lab.create({ tag: 'relay' });
  backup = await startBackup(lab, 'b', [...serialReplacement(lab, 'b'), '--connection-grace', '60s']);
  primary = await startPrimary(lab, { host: 'a', backup: 'b', args: patient, vm: qemu() });
  const { pid, qmp, relays } = await primary.message('launched');
  vm = { host: 'a', pid: Number(pid), qmpPath: String(qmp) };
  relay = (relays as LaunchedRelay[])[0]!;
  await primary.message('protected');
  await waitForText(lab.path('serial-a'), guestReadyText, { timeoutMs: 60_000 });
  output = await GuestOutput.start(lab);
}, 120_000);

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

test('01 a launched VM is protected over a relay, without being asked for', async () => {
  expect(relay).toMatchObject({ netdev: 'net0', tap: 'tap0' });
  expect(await primaryStatus(lab)).toMatchObject({
    outputHeld: true,
    gate: { kind: 'relay', seesOutput: true, droppedFrames: 0 },
  });
  const begin = await output.settled('a');
  expect(await arrivedWhileWithheld(lab, backup, output)).toBe(0);
  await expectAllInOrder(output, begin, 80);
});

test('02 a daemon that is killed leaves the output held; started anew it goes on from there', async () => {
  const begin = await output.settled('a');
  await output.advance(20);
  await primary.process.kill();
  await backup.until('grace', () => backup.messages.at(-1)?.event === 'grace');
  const before = await output.settled('a');
  await sleep(WITHHELD_MS);
  expect(await output.settled('a')).toBe(before);
  primary = await startPrimary(lab, { host: 'a', backup: 'b', args: patient, vm: qemu() });
  expect(await primary.message('found')).toMatchObject({ pid: vm.pid });
  await primary.message('protected');
  expect(primary.process.stderr).toMatch(/"gateAdopted":true/);
  await expectAllInOrder(output, begin, 80);
});

test('03 a relay that is killed is replaced; what it held is lost, and what follows is held again', async () => {
  const old = (await relayPid(relay.socket))!;
  process.kill(old, 'SIGKILL');
  const replaced = await waitFor('another relay', async () => {
    const pid = await relayPid(relay.socket);
    return pid !== undefined && pid !== old ? pid : undefined;
  });
  expect(isRunning(replaced)).toBe(true);
  await output.advance(20);
  expect(primary.process.stderr).toMatch(/the relay is lost/);
  const begin = await output.settled('a');
  expect(await arrivedWhileWithheld(lab, backup, output)).toBe(0);
  await expectAllInOrder(output, begin, 80);
  expect(await primaryStatus(lab)).toMatchObject({ phase: 'protected', outputHeld: true });
});

test('04 detach leaves the network working, and the same relay', async () => {
  const pid = await relayPid(relay.socket);
  const begin = await output.settled('a');
  await output.advance(20);
  await holdfast(lab, 'a', ['detach']);
  expect((await primary.ended()).code).toBe(0);
  await expectAllInOrder(output, begin, 50);
  expect(await relayPid(relay.socket)).toBe(pid);
  await backup.process.kill('SIGTERM');
});

test('05 without the gate output leaves before its time, over the same relay: the tests above can fail', async () => {
  expect(await withholdAcknowledgements(lab, vm, output, ['--gate', 'none'])).toBeGreaterThan(20);
  expect(await withholdAcknowledgements(lab, vm, output, ['--gate', 'filter-buffer'])).toBe(0);
});

test('06 an acknowledgement releases exactly what its checkpoint explains; the next VM has a relay too', async () => {
  const { takeover, backup: monitor } = await expectExactRelease(lab, vm, output, []);
  const gone = relay.socket;
  await waitFor('the old relay to end with its VM', async () => (await relayPid(gone)) === undefined);
  vm = { host: 'b', pid: Number(takeover.pid), qmpPath: String(takeover.qmp) };
  backup = monitor;
});

test('07 after a failover it is protected again, fails back, and loses nothing', async () => {
  const load = await RedisLoad.start(lab.client);
  for (const to of ['a', 'b'] as const) {
    await load.advance(20);
    const next = await protect(lab, vm);
    const status = await primaryStatus(lab, vm.host);
    expect(status).toMatchObject({ outputHeld: true, gate: { kind: 'relay' } });
    await load.advance(50);
    process.kill(next.primary.pid, 'SIGKILL');
    await killOrphan(vm.pid);
    const takeover = await next.backup.message('took-over');
    await load.advance(50);
    await backup.process.kill();
    backup = next.backup;
    vm = { host: to, pid: Number(takeover.pid), qmpPath: String(takeover.qmp) };
  }
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, broken: [], violations: [] });
});
