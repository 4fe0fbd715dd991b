/**
 * `holdfast migrate --resume-early`: the guest runs on the destination while its memory still follows. It checks
 * its own memory meanwhile, answers its clients, and waits where the link is cut; and who dies takes with it
 * what the documentation says, no more.
 */

import { expect, test } from 'vitest';
import { startMigration } from '../lab/daemons.js';
import { checkMemwriter, guestBootId, startMemwriter } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { guestAddress } from '../lab/network.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor } from '../lab/wait.js';
import {
  bootRedisGuest,
  isRunning,
  killOrphan,
  otherHost,
  type RunningVm,
  ramFiles,
  runFiles,
  startBackupFor,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('early');

/** Of what leaves this host towards the other one: slow enough to look at memory that is on its way. */
const limitLink = async (lab: Lab, host: 'a' | 'b', rate: string): Promise<void> => {
  const limit = ['root', 'tbf', 'rate', rate, 'burst', '64kb', 'latency', '50ms'];
  await lab.host(host).exec('tc', ['qdisc', 'replace', 'dev', 'repl0', ...limit]);
};

const migrate = async (lab: Lab, vm: RunningVm, args: readonly string[]): Promise<JsonProcess> =>
  await startMigration(lab, {
    ...{ host: vm.host, to: otherHost(vm.host), qmpPath: vm.qmpPath },
    args,
  });

const isVmRunning = async ({ qmpPath }: RunningVm): Promise<boolean> =>
  await withQmp(qmpPath, async (qmp) => (await qmp.execute('query-status')).running);

const goOn = async ({ qmpPath }: RunningVm): Promise<void> => {
  await withQmp(qmpPath, async (qmp) => {
    await qmp.execute('cont');
  });
};

const whereItRuns = (host: 'a' | 'b', takeover: Readonly<Record<string, unknown>>): RunningVm => ({
  host,
  pid: Number(takeover.pid),
  qmpPath: String(takeover.qmp),
});

test('a guest runs there before its memory does: at once, over a cut link, and when the policy says so', async () => {
  const lab = await makeLab();
  const onA = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  const shell = await lab.client.spawn('busybox', ['nc', guestAddress, '2222']);
  const echo = async (word: string): Promise<void> => {
    shell.child.stdin.write(`echo ${word}\n`);
    await expect.poll(() => shell.stdout, { timeout: 10_000 }).toContain(`${word}\n`);
  };
  await startMemwriter(lab.client, { pagesPerSecond: 4_000, workingSetPages: 8_192, randomOrder: true });
  const load = await RedisLoad.start(lab.client);
  await load.advance(20);
  await echo('before');

  await limitLink(lab, 'a', '200mbit');
  const toB = await startBackupFor(lab, onA);
  const there = await migrate(lab, onA, ['--resume-early']);
  const early = await there.message('runs-early');
  expect(Number(early.pages)).toBeGreaterThan(5_000);
  const onB = whereItRuns('b', await toB.message('took-over'));
  await echo('early');
  await there.message('pages');
  // Cut while it lacks pages: it waits, and goes on. Each side notices by itself.
  await lab.host('a').setLink('repl0', 'down');
  await lab.host('a').setLink('repl0', 'up');
  expect(await there.ended()).toEqual({ code: 0, signal: null });
  const complete = await toB.message('pages-complete');
  expect(complete).toMatchObject({ pages: early.pages, pagesLeft: 0, waitingFaults: 0 });
  expect(Number(complete.demandedPages)).toBeGreaterThan(0);
  expect(there.of('round')).toEqual([]);
  const [ended] = there.of('ended');
  expect(ended?.outcome).toMatchObject({ kind: 'moved', term: 2, rounds: 0, early: { pages: early.pages } });
  expect(isRunning(onA.pid)).toBe(false);
  await load.advance(50);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  await echo('after');

  // Back, with rounds first: the guest writes more than the link carries in the downtime that is allowed.
  await limitLink(lab, 'b', '400mbit');
  const toA = await startBackupFor(lab, onB);
  const back = await migrate(lab, onB, [
    ...['--policy', 'auto', '--resume-early', 'auto', '--downtime', '20ms'],
  ]);
  expect(await back.ended()).toEqual({ code: 0, signal: null });
  expect(back.of('round').at(-1)).toMatchObject({ decision: { step: 'post-copy' } });
  const [backEnded] = back.of('ended');
  expect(backEnded?.outcome).toMatchObject({ kind: 'moved', term: 3, early: { pages: expect.any(Number) } });
  expect(await toB.ended()).toEqual({ code: 0, signal: null });
  const onA2 = whereItRuns('a', await toA.message('took-over'));
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  await echo('again');
  expect(await guestBootId(lab.client)).toBe(bootId);
  expect(await isVmRunning(onA2)).toBe(true);
  expect(runFiles(lab, 'b')).toEqual([]);
  expect(ramFiles(lab).filter((name) => name.startsWith('holdfast-'))).toHaveLength(1);
});

test('who dies while memory follows takes the VM with it, and the other side says so', async () => {
  const lab = await makeLab();
  const onA = await bootRedisGuest(lab);
  await startMemwriter(lab.client, { pagesPerSecond: 2_000, workingSetPages: 4_096 });
  await limitLink(lab, 'a', '20mbit');
  const args = ['--resume-early', '--early-wait', '1s'];

  // The source: what runs over there ends. The VM here is as it was when it was stopped.
  const toB = await startBackupFor(lab, onA);
  const orphaned = await migrate(lab, onA, args);
  await orphaned.message('runs-early');
  const onB = whereItRuns('b', await toB.message('took-over'));
  process.kill(orphaned.pid, 'SIGKILL');
  const lost = await toB.message('pages-lost');
  expect(lost.code).toBe('HOLDFAST_E_PEER_LOST');
  expect(lost.message).toContain('was lost, and not back within');
  expect(await toB.ended()).toEqual({ code: 5, signal: null });
  expect(isRunning(onB.pid)).toBe(false);
  expect(await isVmRunning(onA)).toBe(false);
  await goOn(onA);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);

  // The destination's daemon: its VM waits for ever. Here it stays stopped, whatever happens.
  const again = await startBackupFor(lab, onA);
  const alone = await migrate(lab, onA, args);
  await alone.message('runs-early');
  const waiting = whereItRuns('b', await again.message('took-over'));
  process.kill(again.pid, 'SIGKILL');
  expect(await alone.ended()).toEqual({ code: 5, signal: null });
  expect(alone.failure?.message).toContain('before all pages were there');
  expect(alone.failure?.message).toContain('the VM is left stopped here');
  expect(await isVmRunning(onA)).toBe(false);
  await killOrphan(waiting.pid);
  await goOn(onA);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);

  // A source's QEMU that is killed takes nothing with it: its memory outlives it in the daemon's hands.
  await limitLink(lab, 'a', '200mbit');
  const last = await startBackupFor(lab, onA);
  const moved = await migrate(lab, onA, args);
  await moved.message('runs-early');
  await killOrphan(onA.pid);
  expect(await moved.ended()).toEqual({ code: 0, signal: null });
  await last.message('pages-complete');
  await waitFor('the guest to answer', async () => (await checkMemwriter(lab.client)).errors === 0);
});
