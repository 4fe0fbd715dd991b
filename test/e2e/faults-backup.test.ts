/** What becomes of a protected VM when something on the backup's side fails. */

import { mkdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { backupStatus, holdfast, primaryStatus, startBackup } from '../lab/daemons.js';
import { guestBootId } from '../lab/guest-shell.js';
import type { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor } from '../lab/wait.js';
import {
  bootRedisGuest,
  isRunning,
  killOrphan,
  protect,
  type RunningVm,
  ramFiles,
  startBackupFor,
  startPrimaryFor,
  statusOf,
} from './support/lab.js';
import { relayedBackupArgs, startRelay } from './support/lab-relay-process.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('fbak');

const epochsPass = async (lab: Lab, count: number): Promise<void> => {
  const { committedEpoch } = await primaryStatus(lab);
  await waitFor(
    `${count} epochs`,
    async () => (await primaryStatus(lab)).committedEpoch >= committedEpoch + count,
  );
};

/** SIGKILL to the VM and its primary: the host is gone. */
const killHost = async (vm: RunningVm, primaryPid: number): Promise<void> => {
  process.kill(primaryPid, 'SIGKILL');
  await killOrphan(vm.pid);
};

test('backup killed, policy hold: the VM stands still with its output held until a backup is back', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  const { backup, primary } = await protect(lab, vm);
  expect(await statusOf(lab, 'a')).toEqual({ code: 0, phases: ['primary protected'] });
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup protecting'] });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  const { standbyPid } = await backupStatus(lab);

  await backup.process.kill();
  await primary.message('waiting');
  await waitFor('the VM to be stopped', async () => !(await primaryStatus(lab)).vm.running);
  const { phase, outputHeld, committedEpoch } = await primaryStatus(lab);
  expect(['waiting', 'connecting']).toContain(phase);
  expect(outputHeld).toBe(true);
  expect((await statusOf(lab, 'a')).code).toBe(10);
  await holdfast(lab, 'a', ['switchover'], { check: false }).then(({ code }) => expect(code).toBe(10));
  const { acknowledged } = load;
  await sleep(500);
  expect(load.acknowledged).toBe(acknowledged);

  const second = await startBackupFor(lab, vm);
  await primary.message('protected', { count: 2 });
  expect(isRunning(standbyPid!)).toBe(false); // the new daemon cleared the old one's standby away
  expect(ramFiles(lab)).toHaveLength(2); // the VM's RAM and one replica
  await load.advance(50);
  const after = await primaryStatus(lab);
  expect(after).toMatchObject({ phase: 'protected', term: 1, vm: { pid: vm.pid } });
  expect(after.committedEpoch).toBeGreaterThan(committedEpoch);
  expect(await guestBootId(lab.client)).toBe(bootId);

  await killHost(vm, primary.pid);
  await second.message('took-over');
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('backup killed, policy release: the VM answers unprotected, and is protected again', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { backup, primary } = await protect(lab, vm, { primary: ['--on-backup-lost', 'release'] });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);

  await backup.process.kill();
  await primary.message('waiting');
  await load.advance(200);
  const { phase, term, outputHeld, vm: guest } = await primaryStatus(lab);
  expect(['waiting', 'connecting']).toContain(phase);
  expect({ term, outputHeld, running: guest.running }).toEqual({ term: 2, outputHeld: false, running: true });
  expect((await statusOf(lab, 'a')).code).toBe(10);

  const second = await startBackupFor(lab, vm);
  await primary.message('protected', { count: 2 });
  expect((await primaryStatus(lab)).outputHeld).toBe(true);
  await load.advance(50);
  await killHost(vm, primary.pid);
  expect(await second.message('took-over')).toMatchObject({ term: 3 });
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('no acknowledgement in time, though both sides live: a new session, the same VM, no takeover', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const relay = await startRelay(lab);
  const { backup, primary } = await protect(lab, vm, {
    backup: relayedBackupArgs,
    primary: ['--ack-timeout', '500ms'],
  });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);

  relay.say('withhold');
  await primary.message('waiting');
  expect(primary.of('waiting')[0]?.reason).toMatch(/not acknowledged within 500 ms/);
  // Meanwhile the earlier checkpoint stands, and its standby has the tap device.
  await backup.until('the grace of a primary that reconnects', () => backup.of('grace').length > 0);
  relay.say('pass');
  await primary.message('protected', { count: 2 });
  await load.advance(50);
  expect(backup.of('took-over')).toEqual([]);
  const { standbyPid } = await waitFor('the new standby', async () => {
    const status = await backupStatus(lab);
    return status.standbyPid !== undefined && status;
  });
  expect(isRunning(standbyPid!)).toBe(true);

  await killHost(vm, primary.pid);
  expect(await backup.message('took-over')).toMatchObject({ pid: standbyPid });
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('standby QEMU killed: another takes its place, and protection goes on', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { backup, primary } = await protect(lab, vm);
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);

  const { standbyPid: first } = await backupStatus(lab);
  process.kill(first!, 'SIGKILL');
  const second = await waitFor('another standby', async () => {
    const { standbyPid } = await backupStatus(lab);
    return standbyPid !== first && standbyPid;
  });
  await epochsPass(lab, 20);
  expect(primary.of('waiting')).toEqual([]);

  // Once more, together with the primary's host: the takeover itself has to start one.
  process.kill(second, 'SIGKILL');
  await killHost(vm, primary.pid);
  const { pid } = await backup.message('took-over');
  expect([first, second]).not.toContain(pid);
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('no room for the replica: the primary is told so, and the VM is untouched', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const dir = lab.path('small');
  mkdirSync(dir);
  const backup = await startBackup(lab, 'b', ['--ram-dir', dir], { dir, sizeMb: 64 });
  const primary = await startPrimaryFor(lab, vm);
  expect(await primary.ended()).toEqual({ code: 7, signal: null });
  expect(primary.failure).toMatchObject({ code: 'HOLDFAST_E_NO_SPACE', exitCode: 7 });
  expect(primary.failure?.message).toContain(dir);
  expect(await statusOf(lab, 'b')).toEqual({ code: 10, phases: ['backup idle'] });

  const load = await RedisLoad.start(lab.client);
  await load.advance(100);
  await backup.process.kill('SIGTERM');
  await protect(lab, vm);
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});
