/**
 * `holdfast migrate --engine qemu`, and a choice of destinations: one Linux guest whose RAM has a size that QEMU
 * 7.2 migrates soundly under TCG (qemu-dirty-log.ts) moves, or stays where something ends; it runs on one side.
 */

import { expect, test } from 'vitest';
import { backupAddress, startBackup, startMigration, startPrimary } from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import { checkMemwriter, guestBootId, openEcho, startMemwriter } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { type HostName, lanAddresses } from '../lab/network.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitForText } from '../lab/wait.js';
import {
  calm,
  isRunning,
  type RunningVm,
  ramFiles,
  redisGuestArgs,
  remainsOf,
  runFiles,
  serialPath,
  serialReplacement,
  startBackupFor,
  statusOf,
  withQmp,
} from './support/lab.js';

const RAM_MB = 128 + 8 / 1024;
/** Far more than a session says on its own; far less than the guest has. */
const ROUND_BYTES_MIN = 2 << 20;

/** So slow that all of RAM takes many seconds. */
const limitLink = async (lab: Lab, host: HostName, link: string): Promise<void> => {
  const tbf = ['tbf', 'rate', '32mbit', 'burst', '64kb', 'latency', '50ms'];
  await lab.host(host).exec('tc', ['qdisc', 'replace', 'dev', link, 'root', ...tbf]);
};

const freeLink = async (lab: Lab, host: HostName, link: string): Promise<void> => {
  await lab.host(host).exec('tc', ['qdisc', 'del', 'dev', link, 'root']);
};

const sentBytes = async (lab: Lab, host: HostName, link: string): Promise<number> =>
  Number((await lab.host(host).exec('cat', [`/sys/class/net/${link}/statistics/tx_bytes`])).stdout);

/** Settles in the middle of the first round. */
const underWay = async (lab: Lab, migration: JsonProcess): Promise<void> => {
  const before = await sentBytes(lab, 'a', 'repl0');
  await migration.message('syncing');
  await expect
    .poll(() => sentBytes(lab, 'a', 'repl0'), { timeout: 20_000 })
    .toBeGreaterThan(before + ROUND_BYTES_MIN);
};

/** Launched over a packet relay, protected, and let go of. */
const bootGuest = async (lab: Lab): Promise<RunningVm> => {
  const primary = await startPrimary(lab, {
    ...{ host: 'a', backup: 'b', args: ['--gate', 'relay', ...calm] },
    vm: ['--', 'qemu-system-x86_64', ...redisGuestArgs(lab, { ramMb: RAM_MB })],
  });
  const { pid, qmp } = await primary.message('launched');
  await waitForText(serialPath(lab, 'a'), guestReadyText, { timeoutMs: 60_000 });
  primary.process.child.kill('SIGINT');
  expect(await primary.ended()).toEqual({ code: 0, signal: null });
  return { host: 'a', pid: Number(pid), qmpPath: String(qmp) };
};

const expectRunning = async (vm: RunningVm): Promise<void> => {
  expect(isRunning(vm.pid)).toBe(true);
  await withQmp(vm.qmpPath, async (qmp) => {
    expect((await qmp.execute('query-status')).running).toBe(true);
  });
};

test('a guest moves by either engine to the best of several, or stays, whoever dies', async () => {
  const lab = await Lab.create({ tag: 'migeng', third: true });
  try {
    await moves(lab);
  } finally {
    await lab.close();
  }
  expect(remainsOf(lab)).toEqual([]);
}, 120_000);

const moves = async (lab: Lab): Promise<void> => {
  const killed = await startBackup(lab, 'b', serialReplacement(lab, 'b'));
  const onA = await bootGuest(lab);
  const bootId = await guestBootId(lab.client);
  const echo = await openEcho(lab.client);
  await echo('before');
  const byQemu = async (vm: RunningVm, args: readonly string[] = []): Promise<JsonProcess> =>
    await startMigration(lab, {
      ...{ host: vm.host, to: 'b', qmpPath: vm.qmpPath },
      args: ['--engine', 'qemu', ...args],
    });

  // The destination's daemon dies in the first round.
  await limitLink(lab, 'a', 'repl0');
  const lost = await byQemu(onA);
  await underWay(lab, lost);
  process.kill(killed.pid, 'SIGKILL');
  expect(await lost.ended()).toEqual({ code: 5, signal: null });
  expect(lost.failure).toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
  expect(lost.failure?.message).toContain('the VM stays here');
  await expectRunning(onA);
  await echo('still-on-a');

  // The command does; its destination waits for the next one.
  const toB = await startBackupFor(lab, onA);
  const orphaned = await byQemu(onA);
  await underWay(lab, orphaned);
  process.kill(orphaned.pid, 'SIGKILL');
  await toB.message('idle', { count: 2 });
  await expectRunning(onA);
  await echo('and-still');

  // The same command again.
  await freeLink(lab, 'a', 'repl0');
  await startMemwriter(lab.client, { pagesPerSecond: 5_000, workingSetPages: 2_048 });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  const moved = await byQemu(onA, ['--policy', 'mp', '--downtime', '50ms']);
  expect(await moved.ended()).toEqual({ code: 0, signal: null });
  const takeover = await toB.message('took-over');
  expect(takeover).toMatchObject({ planned: true, term: 2 });
  const onB: RunningVm = { host: 'b', pid: Number(takeover.pid), qmpPath: String(takeover.qmp) };
  expect(isRunning(onA.pid)).toBe(false);
  await expectRunning(onB);
  await echo('on-b');
  expect(runFiles(lab, 'a')).toEqual([]); // of the VM that was launched here
  expect(runFiles(lab, 'b').filter((name) => name.endsWith('.relay'))).toHaveLength(1);
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup active'] });
  const [ended] = moved.of('ended');
  expect(moved.of('round').length).toBeGreaterThan(0);
  expect(moved.of('final')).toHaveLength(1);
  expect(ended?.outcome).toMatchObject({ kind: 'moved', term: 2, rounds: moved.of('round').length });
  const { downtimeMs, totalMs } = Object(ended?.outcome) as Record<string, number>;
  expect(downtimeMs).toBeGreaterThan(0);
  expect(totalMs).toBeGreaterThan(downtimeMs!);

  // One of several: near and idle, far behind a slow link, not there at all. It is Holdfast's engine that moves it
  // back, as any VM that is here.
  await limitLink(lab, 'b', 'repl1');
  const far = await startBackup(lab, 'd');
  const near = `${lanAddresses.a}:7788`;
  const toA = await startBackupFor(lab, onB, ['--listen', near]);
  const nobody = `${lanAddresses.d}:1`;
  const several = ['--to', backupAddress('d'), '--to', nobody];
  const asked = await startMigration(lab, {
    ...{ host: 'b', to: 'a', qmpPath: onB.qmpPath },
    args: ['--to', near, '--to', nobody, '--dry-run'],
  });
  expect(await asked.ended()).toEqual({ code: 0, signal: null });
  const [choice] = asked.of('chosen');
  expect(choice).toMatchObject({ to: near });
  expect(String(choice?.reason)).toContain(`${nobody}: `);
  expect(asked.of('syncing')).toEqual([]);
  await expectRunning(onB);
  const back = await startMigration(lab, {
    ...{ host: 'b', to: 'a', qmpPath: onB.qmpPath },
    args: ['--to', near, ...several, '--policy', 'mp', '--downtime', '50ms'],
  });
  expect(await back.ended()).toEqual({ code: 0, signal: null });
  const again = await toA.message('took-over');
  const onA2: RunningVm = { host: 'a', pid: Number(again.pid), qmpPath: String(again.qmp) };
  expect(await toB.ended()).toEqual({ code: 0, signal: null });
  expect(far.of('preparing')).toEqual([]);
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  expect(await guestBootId(lab.client)).toBe(bootId);
  await echo('on-a-again');
  expect(runFiles(lab, 'b')).toEqual([]);

  // The VM itself dies while it moves: that is told on both sides, and nothing of it runs anywhere.
  await limitLink(lab, 'a', 'repl0');
  const last = await startBackupFor(lab, onA2);
  const gone = await byQemu(onA2);
  await underWay(lab, gone);
  process.kill(onA2.pid, 'SIGKILL');
  expect(await gone.ended()).toEqual({ code: 4, signal: null });
  expect(gone.failure?.message).toContain('QEMU was lost');
  await last.message('idle', { count: 2 });
  expect(last.of('took-over')).toEqual([]);
  await expect.poll(() => ramFiles(lab).filter((name) => name.startsWith('holdfast-'))).toEqual([]);
};
