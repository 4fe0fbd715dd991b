/** `holdfast migrate`: a VM moves and nobody notices; whatever ends before the hand-over, it goes on where it was. */

import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { BackupStatus } from '../../lib/backup/backup.js';
import { backupStatus, startMigration } from '../lab/daemons.js';
import { createDisk, diskPath, diskReplacements } from '../lab/disk.js';
import { guestArgs, guestReadyText } from '../lab/guest.js';
import { checkDiskchurn, checkMemwriter, guestBootId, openEcho, startMemwriter } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { limitLink } from '../lab/limit-link.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import {
  bootRedisGuest,
  isRunning,
  killOrphan,
  otherHost,
  type RunningVm,
  ramFiles,
  runFiles,
  startBackupFor,
  statusOf,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('migr');

/** A downtime that no stop can keep: its rounds go on until something ends them. */
const endless = ['--policy', 'fixed', '--downtime', '1ms', '--rounds-max', '10000'];

const migrate = async (lab: Lab, vm: RunningVm, args: readonly string[] = []): Promise<JsonProcess> =>
  await startMigration(lab, {
    ...{ host: vm.host, to: otherHost(vm.host), qmpPath: vm.qmpPath },
    args,
  });

const whereItRuns = (host: 'a' | 'b', takeover: Readonly<Record<string, unknown>>): RunningVm => ({
  host,
  pid: Number(takeover.pid),
  qmpPath: String(takeover.qmp),
});

const expectRunning = async (vm: RunningVm): Promise<void> => {
  expect(isRunning(vm.pid)).toBe(true);
  await withQmp(vm.qmpPath, async (qmp) => {
    expect((await qmp.execute('query-status')).running).toBe(true);
  });
};

test('an idle guest moves, and moves back under load: nothing is lost, no connection breaks', async () => {
  const lab = await makeLab();
  const onA = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  const echo = await openEcho(lab.client);
  await echo('before');

  const toB = await startBackupFor(lab, onA);
  const there = await migrate(lab, onA);
  expect(await there.ended()).toEqual({ code: 0, signal: null });
  const takeover = await toB.message('took-over');
  expect(takeover).toMatchObject({ planned: true, term: 2 });
  const onB = whereItRuns('b', takeover);
  expect(isRunning(onA.pid)).toBe(false);
  await expectRunning(onB);
  await echo('after');

  // All of it is told: each round with what the policy made of it, the last transfer, and what it came to.
  const rounds = there.of('round');
  expect(rounds.length).toBeGreaterThan(0);
  expect(rounds.slice(0, -1).every(({ decision }) => Object(decision).step === 'next-round')).toBe(true);
  expect(rounds.at(-1)).toMatchObject({ decision: { step: 'stop-and-copy' } });
  const [final] = there.of('final');
  const [ended] = there.of('ended');
  expect(ended?.outcome).toMatchObject({
    kind: 'moved',
    term: 2,
    rounds: rounds.length,
    final: { epoch: 1 },
  });
  const { downtimeMs, firstStopMs, totalMs, bytes } = Object(ended?.outcome) as Record<string, number>;
  expect(firstStopMs).toBeGreaterThan(0);
  expect(downtimeMs).toBeGreaterThan(Number(final?.stopMs) + Number(final?.ackMs));
  expect(totalMs).toBeGreaterThan(downtimeMs!);
  const sent = [...rounds, final].reduce((sum, each) => sum + Number(each?.bytes), 0);
  expect(bytes).toBe(sent);

  await startMemwriter(lab.client, { pagesPerSecond: 5_000, workingSetPages: 8_192, randomOrder: true });
  const load = await RedisLoad.start(lab.client);
  await load.advance(50);
  const toA = await startBackupFor(lab, onB);
  const back = await migrate(lab, onB, ['--policy', 'mp', '--downtime', '50ms']);
  expect(await back.ended()).toEqual({ code: 0, signal: null });
  const onA2 = whereItRuns('a', await toA.message('took-over'));
  expect(await toB.ended()).toEqual({ code: 0, signal: null }); // the VM that it watched has ended
  await load.advance(100);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  await echo('again');
  expect(await guestBootId(lab.client)).toBe(bootId);
  await expectRunning(onA2);
  expect(runFiles(lab, 'b')).toEqual([]);
  expect(ramFiles(lab).filter((name) => name.startsWith('holdfast-'))).toHaveLength(1);
});

/** With redis, diskchurn and SQLite on a disk of QEMU's own, on host a. */
const bootDiskGuest = async (lab: Lab): Promise<RunningVm> => {
  const qmpPath = lab.path('qmp');
  const serialPath = lab.path('serial-a');
  const image = await createDisk(diskPath(lab, 'a'), 48);
  const args = guestArgs({
    ...{ workload: 'disk', churnStepsPerSecond: 20, ramMb: 192, serialPath },
    ...{ qmpPath, ramPath: lab.sharedMemoryPath('ram'), disks: [{ path: image }] },
  });
  const qemu = await lab.host('a').spawn('qemu-system-x86_64', args);
  await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  return { host: 'a', pid: qemu.pid, qmpPath };
};

test('what ends before the hand-over leaves the guest, and its disk, where they are; then they move', async () => {
  const lab = await makeLab();
  const vm = await bootDiskGuest(lab);
  const startDestination = (): Promise<JsonProcess> =>
    startBackupFor(lab, vm, diskReplacements(lab, 'a', 'b'));
  await startMemwriter(lab.client, { pagesPerSecond: 2_000, workingSetPages: 2_048 });
  const load = await RedisLoad.start(lab.client);
  const goesOn = async (): Promise<void> => {
    await expectRunning(vm);
    await load.advance(5);
  };

  // The destination is killed during the rounds.
  const killed = await startDestination();
  const lost = await migrate(lab, vm, [...endless, '--move-disks', 'on']);
  await lost.message('round', { count: 3 });
  process.kill(killed.pid, 'SIGKILL');
  expect(await lost.ended()).toEqual({ code: 5, signal: null });
  expect(lost.failure).toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
  expect(lost.failure?.message).toContain('the VM stays here');
  await goesOn();

  // The source's daemon is: its destination waits for the next one.
  const backup = await startDestination();
  const orphaned = await migrate(lab, vm, endless);
  await orphaned.message('round', { count: 3 });
  process.kill(orphaned.pid, 'SIGKILL');
  await backup.message('idle', { count: 2 });
  await goesOn();

  // The operator changes their mind.
  const cancelled = await migrate(lab, vm, endless);
  await cancelled.message('round', { count: 3 });
  cancelled.process.child.kill('SIGINT');
  expect(await cancelled.ended()).toEqual({ code: 130, signal: null });
  await backup.message('idle', { count: 3 });
  await goesOn();

  // It does not converge.
  const endedByLimit = await migrate(lab, vm, [...endless, '--rounds-max', '4']);
  expect(await endedByLimit.ended()).toEqual({ code: 7, signal: null });
  expect(endedByLimit.of('round')).toHaveLength(4);
  expect(endedByLimit.failure?.message).toContain('within 4 rounds');
  await backup.message('idle', { count: 4 });
  await goesOn();
  expect(backup.of('took-over')).toEqual([]);

  const moved = await migrate(lab, vm);
  expect(await moved.ended()).toEqual({ code: 0, signal: null });
  expect(await backup.message('took-over')).toMatchObject({ planned: true });
  expect(isRunning(vm.pid)).toBe(false);
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup active'] });
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  expect((await checkDiskchurn(lab.client)).errors).toBe(0);
});

test('a hand-over that comes to nothing: the guest runs here again, or stands still until it is known', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const load = await RedisLoad.start(lab.client);

  // The destination's QEMU has another NIC: it refuses the state, each time.
  const unlike = await startBackupFor(lab, vm, ['--qemu', otherNic(lab)]);
  const refused = await migrate(lab, vm);
  expect(await refused.ended()).toEqual({ code: 8, signal: null });
  expect(refused.failure?.message).toContain('standby');
  expect(refused.failure?.message).toContain('the VM stays here');
  expect(unlike.of('took-over')).toEqual([]);
  await expectRunning(vm);
  await load.advance(20);
  process.kill(unlike.pid, 'SIGTERM');
  await unlike.ended();

  // The destination is killed when it has the hand-over, and before its standby can run.
  await limitLink(lab, 400); // so that there is time to freeze its standby
  const mute = await startBackupFor(lab, vm);
  const held = await migrate(lab, vm, ['--retry', '100ms']);
  await held.message('syncing'); // the standby has answered what it is asked before the rounds
  const { standbyPid = 0 } = await untilStandby(lab);
  process.kill(standbyPid, 'SIGSTOP');
  await held.message('final');
  await mute.until('the takeover', () => mute.messages.at(-1)?.event === 'taking-over');
  process.kill(mute.pid, 'SIGKILL');
  await held.message('waiting');
  await sleep(200); // until the load has told of its last answers
  const acknowledged = load.acknowledged;
  await sleep(500);
  expect(load.acknowledged).toBe(acknowledged);

  // Asked again, another daemon there knows that nobody runs it.
  await killOrphan(standbyPid);
  await limitLink(lab, undefined);
  const asked = await startBackupFor(lab, vm);
  expect(await held.ended()).toEqual({ code: 0, signal: null });
  await expectRunning(whereItRuns('b', await asked.message('took-over')));
  expect(isRunning(vm.pid)).toBe(false);
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

/** A QEMU that has another kind of NIC than it is told. */
const otherNic = (lab: Lab): string => {
  const path = lab.path('qemu-system-x86_64');
  const script = `#!/bin/sh
for argument; do
  shift
  case $argument in virtio-net-pci,*) argument=e1000,\${argument#*,} ;; esac
  set -- "$@" "$argument"
done
exec qemu-system-x86_64 "$@"
`;
  writeFileSync(path, script, { mode: 0o755 });
  return path;
};

/** On host b; what the daemon there says of itself. */
const untilStandby = async (lab: Lab): Promise<BackupStatus> =>
  await waitFor('the standby', async () => {
    const status = await backupStatus(lab);
    return status.standbyPid !== undefined && status;
  });
