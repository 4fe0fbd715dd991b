/**
 * `holdfast migrate --resume-early`: the guest runs on the destination while its memory still follows. It checks
 * its own memory meanwhile, answers its clients, and waits where the link is cut; and who dies takes with it
 * what the documentation says, no more.
 */

import { expect, test } from 'vitest';
import { announceSelf } from '../../lib/qmp/recipes.js';
import { startMigration } from '../lab/daemons.js';
import { checkMemwriter, guestBootId, openEcho, startMemwriter } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import {
  bootRedisGuest,
  isRunning,
  killOrphan,
  otherHost,
  type RunningVm,
  ramFiles,
  startBackupFor,
  startPrimaryFor,
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

/** The operator's word; and the network, which has heard of it elsewhere, learns where it is. */
const goOn = async ({ qmpPath }: RunningVm): Promise<void> => {
  await withQmp(qmpPath, async (qmp) => {
    await qmp.execute('cont');
    await announceSelf(qmp);
  });
};

const whereItRuns = (host: 'a' | 'b', takeover: Readonly<Record<string, unknown>>): RunningVm => ({
  host,
  pid: Number(takeover.pid),
  qmpPath: String(takeover.qmp),
});

test('while memory follows: who dies takes the VM along, a cut link is waited for, and nothing else is lost', async () => {
  const lab = await makeLab();
  const onA = await bootRedisGuest(lab);
  const bootId = await guestBootId(lab.client);
  // As fast as it can: no link of this test carries what it writes.
  await startMemwriter(lab.client, { pagesPerSecond: 0, workingSetPages: 8_192, randomOrder: true });
  await limitLink(lab, 'a', '20mbit');
  const soon = ['--resume-early', '--early-wait', '1s'];

  // The source dies: what runs over there ends. The VM here is as it was when it was stopped.
  const first = await startBackupFor(lab, onA);
  const orphaned = await migrate(lab, onA, soon);
  await orphaned.message('runs-early');
  const ran = whereItRuns('b', await first.message('took-over'));
  process.kill(orphaned.pid, 'SIGKILL');
  const lost = await first.message('pages-lost');
  expect(lost.code).toBe('HOLDFAST_E_PEER_LOST');
  expect(lost.message).toContain('was lost, and not back within');
  expect(await first.ended()).toEqual({ code: 5, signal: null });
  expect(isRunning(ran.pid)).toBe(false);
  expect(await isVmRunning(onA)).toBe(false);

  // Asked again, a backup that is started anew knows: it stays stopped, until the operator takes back what it did.
  const second = await startBackupFor(lab, onA);
  const asking = await migrate(lab, onA, soon);
  expect(await asking.ended()).toEqual({ code: 5, signal: null });
  expect(asking.failure).toMatchObject({ code: 'HOLDFAST_E_VM_LOST' });
  expect(asking.failure?.message).toContain('was lost before all of its memory had come');
  expect(await isVmRunning(onA)).toBe(false);
  await goOn(onA);

  // The destination's daemon does: its VM waits for ever. Here it stays stopped, whatever happens.
  const alone = await migrate(lab, onA, soon);
  await alone.message('runs-early');
  const waiting = whereItRuns('b', await second.message('took-over'));
  process.kill(second.pid, 'SIGKILL');
  expect(await alone.ended()).toEqual({ code: 5, signal: null });
  expect(alone.failure?.message).toContain('before all pages were there');
  expect(alone.failure?.message).toContain('the VM is left stopped here');
  expect(await isVmRunning(onA)).toBe(false);

  // One that is started anew there doesn't give up the whole copy for the one that waits.
  const anew = await startBackupFor(lab, onA);
  const refused = await startPrimaryFor(lab, onA);
  expect(await refused.ended()).toEqual({ code: 5, signal: null });
  expect(refused.failure).toMatchObject({ code: 'HOLDFAST_E_VM_LOST' });
  expect(refused.failure?.cure).toContain(`end process ${waiting.pid} there`);
  expect(await isVmRunning(onA)).toBe(false);
  process.kill(anew.pid, 'SIGTERM');
  await anew.ended();
  await killOrphan(waiting.pid);
  await goOn(onA);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);

  // Nobody does; the link is cut, and the source's QEMU killed, whose memory is in the daemon's hands.
  const load = await RedisLoad.start(lab.client);
  const echo = await openEcho(lab.client);
  await echo('before');
  await limitLink(lab, 'a', '300mbit');
  const toB = await startBackupFor(lab, onA);
  const there = await migrate(lab, onA, ['--resume-early']);
  const early = await there.message('runs-early');
  expect(Number(early.pages)).toBeGreaterThan(5_000);
  const onB = whereItRuns('b', await toB.message('took-over'));
  await there.message('pages');
  await lab.host('a').setLink('repl0', 'down');
  await killOrphan(onA.pid);
  await lab.host('a').setLink('repl0', 'up');
  await echo('early');
  expect(await there.ended()).toEqual({ code: 0, signal: null });
  const complete = await toB.message('pages-complete');
  expect(complete).toMatchObject({ pages: early.pages, pagesLeft: 0, waitingFaults: 0 });
  expect(Number(complete.demandedPages)).toBeGreaterThan(0);
  expect(there.of('round')).toEqual([]);
  const [ended] = there.of('ended');
  expect(ended?.outcome).toMatchObject({ kind: 'moved', rounds: 0, early: { pages: early.pages } });
  await load.advance(20);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);

  // Back, with rounds first: the guest writes more than the link carries in the downtime that is allowed.
  await limitLink(lab, 'b', '300mbit');
  const toA = await startBackupFor(lab, onB);
  const back = await migrate(lab, onB, [
    ...['--policy', 'auto', '--resume-early', 'auto', '--downtime', '20ms'],
  ]);
  expect(await back.ended()).toEqual({ code: 0, signal: null });
  expect(back.of('round').at(-1)).toMatchObject({ decision: { step: 'post-copy' } });
  const [backEnded] = back.of('ended');
  expect(backEnded?.outcome).toMatchObject({ kind: 'moved', early: { pages: expect.any(Number) } });
  expect(await toB.ended()).toEqual({ code: 0, signal: null });
  const onA2 = whereItRuns('a', await toA.message('took-over'));
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  await echo('again');
  expect(await guestBootId(lab.client)).toBe(bootId);
  expect(await isVmRunning(onA2)).toBe(true);
  expect(
    ramFiles(lab).filter((name) => name.startsWith('holdfast-') && name.includes('backup')),
  ).toHaveLength(1);
});
