/**
 * `--gate plug` on a real guest with a tap. A kernel without the plug qdisc (NET_SCH_PLUG) can only be
 * shown to be refused; what the gate does there up to the qdisc itself, native/test/plug_test.cc shows.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { holdfast } from '../lab/daemons.js';
import type { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { bootRedisGuest, protect, startPrimaryFor, withQmp } from './support/lab.js';
import { GuestOutput } from './support/lab-output.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('plug');
const WITHHELD_MS = 1_000;
const patient = ['--heartbeat-timeout', '60s', '--ack-timeout', '10m'];

/** Network devices and what sits on the tap's ingress side: the same before and after. */
const networkOf = async (lab: Lab): Promise<string> => {
  const host = lab.host('a');
  const { stdout: links } = await host.exec('ip', ['-o', 'link', 'show']);
  const { stdout: ingress } = await host.exec('tc', ['qdisc', 'show', 'dev', 'tap0', 'ingress']);
  const names = links.split('\n').map((line) => /^\d+: ([^:@]+)/.exec(line)?.[1] ?? '');
  return `${names.join(' ')}${ingress}`;
};

test('a host that lacks it refuses before anything is touched, and names the cure', {
  timeout: 120_000,
}, async (context) => {
  const { ok, lacks } = await native.probePlug();
  if (ok) context.skip('this host has all that the gate needs');
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const before = await networkOf(lab);
  const primary = await startPrimaryFor(lab, vm, ['--gate', 'plug']);
  expect(await primary.ended()).toMatchObject({ code: 3 });
  expect(primary.failure).toMatchObject({
    code: 'HOLDFAST_E_UNSUPPORTED',
    details: { lacks },
    cure: expect.stringContaining('--gate filter-buffer'),
  });
  if (lacks === 'qdisc') expect(primary.failure?.cure).toContain('CONFIG_NET_SCH_PLUG');
  expect(await networkOf(lab)).toBe(before);
  await withQmp(vm.qmpPath, async (qmp) => {
    expect(await qmp.execute('query-status')).toMatchObject({ running: true });
  });
});

test('holds what is not acknowledged, lets it go in order, and gives the tap back', {
  timeout: 180_000,
}, async (context) => {
  const { ok, reason } = await native.probePlug();
  if (!ok) context.skip(reason ?? 'the plug qdisc does not work here');
  const lab = await makeLab();
  const vm = await bootRedisGuest(lab);
  const before = await networkOf(lab);
  const output = await GuestOutput.start(lab);
  const { backup, primary } = await protect(lab, vm, { primary: [...patient, '--gate', 'plug'] });
  const begin = await output.settled('a');
  await output.advance(20);

  process.kill(backup.pid, 'SIGSTOP');
  try {
    let last = await output.settled('a');
    await waitFor('what was acknowledged to have left', async () => {
      await sleep(300);
      const now = await output.settled('a');
      const isStill = now === last;
      last = now;
      return isStill;
    });
    await sleep(WITHHELD_MS);
    expect(await output.settled('a')).toBe(last);
  } finally {
    process.kill(backup.pid, 'SIGCONT');
  }
  await output.advance(80);
  const numbers = output.numbers.slice(begin);
  expect(numbers).toEqual(Array.from(numbers, (_, index) => numbers[0]! + index));

  // A daemon that dies leaves the output held; the next one takes it over.
  await primary.process.kill('SIGKILL');
  const held = await output.settled('a');
  await sleep(WITHHELD_MS);
  expect(await output.settled('a')).toBe(held);
  const next = await startPrimaryFor(lab, vm, [...patient, '--gate', 'plug']);
  await next.message('protected');
  await output.advance(80);

  await holdfast(lab, 'a', ['detach']);
  await next.ended();
  await output.advance(20);
  expect(await networkOf(lab)).toBe(before);
  await backup.process.kill('SIGTERM');
});
