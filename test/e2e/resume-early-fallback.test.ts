/**
 * `holdfast migrate --resume-early --fallback DIR`: the source is lost while memory follows, and the guest goes on
 * over there from its last checkpoint, as any VM that runs there; what is left at the source is fenced.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { announceSelf } from '../../lib/qmp/recipes.js';
import { backupStatus, runDirOf, startMigration } from '../lab/daemons.js';
import { repositoryRoot } from '../lab/guest.js';
import { guestBootId, guestOutput } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { limitLink } from '../lab/limit-link.js';
import {
  bootRedisGuest,
  isRunning,
  killOrphan,
  ramFiles,
  startBackupFor,
  startPrimaryFor,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('fallen');

const checkpoint = async (lab: Lab, host: 'a' | 'b', qmpPath: string, dir: string): Promise<void> => {
  const cli = join(repositoryRoot(), 'dist/lib/cli/main.js');
  const args = ['checkpoint', '--qmp', qmpPath, '--run-dir', runDirOf(lab, host), dir];
  await lab.host(host).exec(process.execPath, [cli, ...args]);
};

const mark = async (lab: Lab, text: string): Promise<void> => {
  await guestOutput(lab.client, `echo ${text} > /run/mark`);
};
const markOf = async (lab: Lab): Promise<string> => (await guestOutput(lab.client, 'cat /run/mark')).trim();

const runs = async (qmpPath: string): Promise<boolean> =>
  await withQmp(qmpPath, async (qmp) => (await qmp.execute('query-status')).running);

test('a source that is lost while memory follows: the guest goes on from its checkpoint, alone', async () => {
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const { qmpPath } = vm;
  const bootId = await guestBootId(lab.client);
  await mark(lab, 'before');
  const dir = lab.path('checkpoints');
  await checkpoint(lab, 'a', qmpPath, dir);
  await mark(lab, 'after');
  await limitLink(lab, 20);
  const first = await startBackupFor(lab, vm);
  const migrate = (fallback: string): Promise<JsonProcess> =>
    startMigration(lab, {
      ...{ host: 'a', to: 'b', qmpPath },
      args: ['--resume-early', '--early-wait', '1s', '--fallback', fallback],
    });
  const goOn = (): Promise<void> =>
    withQmp(qmpPath, async (qmp) => {
      await qmp.execute('cont');
      await announceSelf(qmp);
    });

  // Where there is nothing to go on from, nothing moves.
  const empty = lab.path('empty');
  mkdirSync(empty);
  const refused = await migrate(empty);
  expect(await refused.ended()).toEqual({ code: 2, signal: null });
  expect(refused.failure?.message).toContain(`there is no checkpoint in ${empty}`);
  expect(await runs(qmpPath)).toBe(true);
  expect(await markOf(lab)).toBe('after');

  // The checkpoint is damaged meanwhile: nobody runs it, and the backup says so.
  const device = join(dir, 'epoch-000001', 'device');
  const state = readFileSync(device);
  const doomed = await migrate(dir);
  await doomed.message('runs-early');
  await first.message('took-over');
  writeFileSync(device, state.subarray(1));
  process.kill(doomed.pid, 'SIGKILL');
  await first.message('fall-back-failed');
  expect(await first.ended()).toEqual({ code: 5, signal: null });
  expect(first.failure?.message).toMatch(
    /was lost.*; and it does not go on from checkpoint 1 of .*: .*device is damaged/,
  );
  writeFileSync(device, state);
  await goOn();
  // The VM's QEMU over there dies, not its source, which has all of it: no checkpoint runs.
  const second = await startBackupFor(lab, vm);
  const whole = await migrate(dir);
  await whole.message('runs-early');
  await killOrphan(Number((await second.message('took-over')).pid));
  await second.ended();
  expect(second.of('fell-back')).toEqual([]);
  expect(await whole.ended()).toEqual({ code: 5, signal: null });
  const backup = await startBackupFor(lab, vm);
  const asks = await startPrimaryFor(lab, vm);
  await asks.ended();
  expect(asks.failure).toMatchObject({ code: 'HOLDFAST_E_VM_LOST' });
  expect(await runs(qmpPath)).toBe(false);
  await goOn();
  expect(await markOf(lab)).toBe('after');

  const lost = await migrate(dir);
  expect(await lost.message('fallback')).toMatchObject({ dir, epoch: 1, ageMs: expect.any(Number) });
  await lost.message('runs-early');
  const ran = await backup.message('took-over');
  expect((await backupStatus(lab)).fallBack).toMatchObject({ dir, epoch: 1, underWay: false });
  process.kill(lost.pid, 'SIGKILL');
  await backup.message('pages-lost');
  const fell = await backup.message('fell-back');
  expect(fell).toMatchObject({ dir, epoch: 1, reason: expect.stringContaining('was lost, and not back') });
  expect(isRunning(Number(ran.pid))).toBe(false);
  expect(await markOf(lab)).toBe('before');
  expect(await guestBootId(lab.client)).toBe(bootId);
  const pid = Number(fell.pid);
  expect(await backupStatus(lab)).toMatchObject({
    phase: 'active',
    takeover: { pid, fellBack: { epoch: 1 } },
  });

  const asking = await migrate(dir);
  expect(await asking.ended()).toEqual({ code: 9, signal: null });
  expect(asking.failure?.message).toContain(`from checkpoint 1 of ${dir}`);
  expect(await runs(qmpPath)).toBe(false);

  // A VM as any other, until its end.
  await checkpoint(lab, 'b', String(fell.qmp), lab.path('again'));
  await mark(lab, 'goes on');
  await withQmp(String(fell.qmp), (qmp) => qmp.execute('quit'));
  expect(await backup.ended()).toEqual({ code: 0, signal: null });
  expect(isRunning(pid)).toBe(false);
  expect(ramFiles(lab).filter((name) => name.startsWith('holdfast-'))).toEqual([]);
});
