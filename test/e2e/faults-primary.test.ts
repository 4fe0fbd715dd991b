/** What becomes of a protected VM when something on the primary's side fails. */

import { appendFileSync, readdirSync, readlinkSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import {
  backupStatus,
  holdfast,
  primaryStatus,
  runDirOf,
  startBackup,
  startPrimary,
} from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import { guestBootId } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import {
  bootRedisGuest,
  calm,
  killOrphan,
  protect,
  redisGuestArgs,
  serialReplacement,
  startPrimaryFor,
  statusOf,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('fpri');

/** Lines of a daemon's log with this text. */
const logged = (daemon: JsonProcess, text: string): Record<string, unknown>[] =>
  daemon.process.stderr
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter(({ msg }) => msg === text);

/** '' for a descriptor that has just been closed. */
const linkOf = (path: string): string => {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
};

const isGuestRunning = async (qmpPath: string): Promise<boolean> =>
  await withQmp(qmpPath, async (qmp) => (await qmp.execute('query-status')).running);

test('daemon killed and started anew within the grace: it takes up what is there', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  let { backup, primary } = await protect(lab, vm, { backup: ['--connection-grace', '30s'] });
  const load = await RedisLoad.start(lab.client);
  // Several times, at moments that differ: now and then the VM is left in the middle of a pause.
  for (const momentMs of [0, 7, 13, 19]) {
    await load.advance(20);
    const { committedEpoch: before } = await backupStatus(lab);
    await sleep(momentMs);
    await primary.process.kill();
    await backup.until('grace', () => backup.messages.at(-1)?.event === 'grace');
    expect(await statusOf(lab, 'b')).toEqual({ code: 10, phases: ['backup grace'] });
    expect((await backupStatus(lab)).committedEpoch).toBeGreaterThanOrEqual(before);
    // Nobody releases output now; what had left before has been reported by now.
    const { acknowledged } = load;
    await sleep(200);
    expect(load.acknowledged).toBe(acknowledged);
    primary = await startPrimaryFor(lab, vm);
    await primary.message('protected');
    expect(logged(primary, 'attached to the VM')).toMatchObject([{ adopted: true, gateAdopted: true }]);
  }
  await load.advance(50);
  expect(backup.of('took-over')).toEqual([]);
  expect(await primaryStatus(lab)).toMatchObject({ term: 1, vm: { pid: vm.pid, running: true } });
  expect(await guestBootId(lab.client)).toBe(bootId);
  const descriptors = readdirSync(`/proc/${vm.pid}/fd`).map((fd) => linkOf(`/proc/${vm.pid}/fd/${fd}`));
  expect(descriptors.filter((link) => link === 'anon_inode:[userfaultfd]')).toHaveLength(1);

  // The host dies while the daemon, started anew once more, copies RAM: the checkpoint from before stands.
  await primary.process.kill();
  await backup.until('grace', () => backup.messages.at(-1)?.event === 'grace');
  primary = await startPrimaryFor(lab, vm);
  await primary.message('syncing');
  process.kill(primary.pid, 'SIGKILL');
  await killOrphan(vm.pid);
  // To the backup it looks as before; the operator knows better.
  await backup.until('grace', () => backup.messages.at(-1)?.event === 'grace');
  await holdfast(lab, 'b', ['takeover']);
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('daemon killed, no grace: the backup takes over, and the old side is fenced when it returns', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { backup, primary } = await protect(lab, vm);
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  await primary.process.kill();
  const takeover = await backup.message('took-over');
  await load.advance(50);
  expect(await statusOf(lab, 'b')).toEqual({ code: 0, phases: ['backup active'] });

  const fenced = await startPrimaryFor(lab, vm);
  expect(await fenced.ended()).toEqual({ code: 9, signal: null });
  expect(fenced.failure).toMatchObject({ code: 'HOLDFAST_E_FENCED', exitCode: 9 });
  expect(await isGuestRunning(vm.qmpPath)).toBe(false);
  // It knows from now on, without asking anybody.
  const again = await startPrimaryFor(lab, vm);
  expect(await again.ended()).toEqual({ code: 9, signal: null });
  expect(await isGuestRunning(vm.qmpPath)).toBe(false);

  await load.advance(50);
  expect(await isGuestRunning(String(takeover.qmp))).toBe(true);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('link cut, policy hold: the old side stands still, and is fenced when the link is back', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { backup, primary } = await protect(lab, vm);
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  await lab.host('a').setLink('repl0', 'down');
  await backup.message('took-over');
  await primary.message('waiting');
  await waitFor('the old VM to be stopped', async () => !(await primaryStatus(lab)).vm.running);
  expect((await statusOf(lab, 'a')).code).toBe(10);
  await load.advance(50);
  await lab.host('a').setLink('repl0', 'up');
  expect(await primary.ended()).toEqual({ code: 9, signal: null });
  expect(await isGuestRunning(vm.qmpPath)).toBe(false);
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

test('no room for the device state: captures fail, the VM runs, and the last checkpoint can be resumed', async () => {
  const lab = await makeLab();
  const dir = runDirOf(lab, 'a');
  const serial = lab.path('serial-a');
  const backup = await startBackup(lab, 'b', serialReplacement(lab, 'b'));
  // Few epochs, so that the test can act in between two of them.
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...calm, '--interval', '1s'],
    vm: ['--', 'qemu-system-x86_64', ...redisGuestArgs(lab)],
    tmpfs: { dir, sizeMb: 4 },
  });
  const { pid } = await primary.message('launched');
  await primary.message('protected');
  await waitForText(serial, guestReadyText, { timeoutMs: 120_000 });
  const load = await RedisLoad.start(lab.client);
  await load.advance(8);

  // The daemon's own view of its run directory, which is a small tmpfs.
  const inside = `/proc/${primary.pid}/root${dir}`;
  const status = () => primaryStatus(lab, 'a', inside);
  const nextEpoch = async (): Promise<void> => {
    const { committedEpoch } = await status();
    await waitFor('the next epoch', async () => (await status()).committedEpoch > committedEpoch);
  };
  const scratch = readdirSync(inside).find((name) => name.startsWith('vm-'))!;
  let toppingUp: NodeJS.Timeout | undefined;
  const fill = async (): Promise<void> => {
    await nextEpoch();
    // QEMU would write over its own old files, which have their room.
    for (const file of ['d0', 'd1']) rmSync(join(inside, scratch, file), { force: true });
    topUp();
    toppingUp = setInterval(topUp, 20);
  };
  /** One that is still being written or read when it is removed gives its room back later. */
  const topUp = (): void => {
    try {
      const { bavail, bsize } = statfsSync(inside);
      if (bavail > 0) appendFileSync(join(inside, 'filler'), Buffer.alloc(bavail * bsize));
    } catch {
      // somebody else was faster, or the daemon has ended and its view with it
    }
  };

  await fill();
  await waitFor('a failed capture', () => logged(primary, 'capture failed').length >= 1);
  clearInterval(toppingUp);
  rmSync(join(inside, 'filler'));
  await nextEpoch();
  await load.advance(8);
  expect((await status()).vm).toMatchObject({ pid, running: true });
  expect(primary.of('waiting')).toEqual([]);

  await fill();
  const end = await primary.ended();
  clearInterval(toppingUp);
  expect(end.code).toBe(7);
  expect(primary.failure).toMatchObject({ code: 'HOLDFAST_E_NO_SPACE', exitCode: 7 });

  // Which of its two files it is depends on what had room until then.
  expect(primary.failure?.message).toMatch(new RegExp(`${join(dir, scratch)}/(d\\d|prefix)`));
  expect(primary.failure?.cure).toMatch(/room/);
  await backup.message('took-over');
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  await killOrphan(Number(pid));
});
