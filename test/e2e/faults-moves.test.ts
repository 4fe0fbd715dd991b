/** Moves and ends that somebody wanted: switchover, takeover by the operator, the guest's own shutdown. */

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { TakeoverReport } from '../../lib/backup/backup.js';
import { backupStatus, holdfast, startBackup, startPrimary } from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import { guestBootId, guestCommand } from '../lab/guest-shell.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import {
  bootRedisGuest,
  calm,
  isRunning,
  killOrphan,
  protect,
  type RunningVm,
  ramFiles,
  redisGuestArgs,
  runFiles,
  serialReplacement,
  statusOf,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('fmov');

test('switchover there and back, under load: nothing is lost, no connection breaks', async () => {
  const lab = await makeLab();
  const onA = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  const there = await protect(lab, onA);
  const load = await RedisLoad.start(lab.client);
  await load.advance(50);

  const moved = await holdfast(lab, 'a', ['switchover', '--json']);
  expect(JSON.parse(moved.stdout)).toMatchObject({ outcome: { kind: 'switched-over', term: 2 } });
  expect(await there.primary.ended()).toEqual({ code: 0, signal: null });
  const takeover = await there.backup.message('took-over');
  expect(takeover).toMatchObject({ planned: true, term: 2 });
  expect(isRunning(onA.pid)).toBe(false);
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup active'] });
  expect((await statusOf(lab, 'a')).code).toBe(11);
  await load.advance(50);

  const onB: RunningVm = { host: 'b', pid: Number(takeover.pid), qmpPath: String(takeover.qmp) };
  const back = await protect(lab, onB);
  await load.advance(50);
  await holdfast(lab, 'b', ['switchover', 'primary']);
  expect(await back.primary.ended()).toEqual({ code: 0, signal: null });
  expect(await back.backup.message('took-over')).toMatchObject({ planned: true, term: 3 });
  // The first backup watched the VM on b: that has ended now, and its files are gone.
  expect(await there.backup.ended()).toEqual({ code: 0, signal: null });
  expect(ramFiles(lab).filter((name) => name.startsWith('holdfast-'))).toHaveLength(1);
  expect(runFiles(lab, 'b').filter((name) => name !== 'primary.sock')).toEqual([]);
  await load.advance(50);
  expect(await guestBootId(lab.client)).toBe(bootId);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('takeover by the operator only: a lost primary waits for the word', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { backup, primary } = await protect(lab, vm, { backup: ['--takeover', 'manual'] });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  process.kill(primary.pid, 'SIGKILL');
  await killOrphan(vm.pid);
  await backup.until('grace', () => backup.messages.at(-1)?.event === 'grace');
  await sleep(500);
  expect(backup.of('took-over')).toEqual([]);
  expect(await statusOf(lab, 'b')).toEqual({ code: 10, phases: ['backup grace'] });
  const { committedEpoch } = await backupStatus(lab);

  const { stdout } = await holdfast(lab, 'b', ['takeover', '--json']);
  const { report } = JSON.parse(stdout) as { report: TakeoverReport };
  expect(report).toMatchObject({ epoch: committedEpoch, planned: false, term: 2 });
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup active'] });
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });

  // Ended in order, the backup leaves the VM alone.
  await backup.process.kill('SIGTERM');
  expect(backup.of('ended')).toMatchObject([{ outcome: { kind: 'left-running' } }]);
  expect(isRunning(report.pid)).toBe(true);
  await withQmp(report.qmp, async (qmp) => {
    expect((await qmp.execute('query-status')).running).toBe(true);
  });
});

test('takeover from a primary that lives: it is fenced, its VM stopped', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { primary } = await protect(lab, vm);
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  await holdfast(lab, 'b', ['takeover']);
  expect(await primary.ended()).toEqual({ code: 9, signal: null });
  await withQmp(vm.qmpPath, async (qmp) => {
    expect((await qmp.execute('query-status')).running).toBe(false);
  });
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('the guest shuts down: no takeover, both sides end with it, nothing is left', async () => {
  const lab = await makeLab();
  const backup = await startBackup(lab, 'b', serialReplacement(lab, 'b'));
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...calm],
    vm: ['--', 'qemu-system-x86_64', ...redisGuestArgs(lab)],
  });
  const { pid } = await primary.message('launched');
  await primary.message('protected');
  await waitForText(lab.path('serial-a'), guestReadyText, { timeoutMs: 120_000 });
  const { standbyPid } = await backupStatus(lab);
  await guestCommand(lab.client, '(usleep 100000; poweroff -f) > /dev/null 2>&1 &');

  const end = await primary.ended();
  expect({ ...end, failure: primary.failure }).toEqual({ code: 0, signal: null });
  expect(primary.of('ended')).toMatchObject([{ outcome: { kind: 'vm-ended', reason: 'guest-shutdown' } }]);
  expect(isRunning(Number(pid))).toBe(false);
  await backup.message('idle', { count: 2 });
  expect(backup.of('took-over')).toEqual([]);
  await waitFor('the standby to be ended', () => !isRunning(standbyPid!));
  await waitFor('the RAM and the replica to be removed', () => ramFiles(lab).length === 0);

  // The same backup is there for the next VM.
  expect(await statusOf(lab, 'b')).toEqual({ code: 10, phases: ['backup idle'] });
  expect((await holdfast(lab, 'b', ['takeover'], { check: false })).code).toBe(10);
  expect((await holdfast(lab, 'a', ['switchover'], { check: false })).code).toBe(11);
  expect(await backup.process.kill('SIGTERM')).toEqual({ code: 0, signal: null });
  expect(runFiles(lab, 'a')).toEqual([]);
  expect(runFiles(lab, 'b')).toEqual([]);
});
