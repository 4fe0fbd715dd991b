/**
 * A guest that floods the network while nothing is acknowledged: held output stays within its bound, QEMU has
 * to wait, so the guest's sender does, while the guest runs on; and not one packet is lost, neither there nor
 * at the pause that follows.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { guestReadyText, repositoryRoot } from '../lab/guest.js';
import { guestOutput } from '../lab/guest-shell.js';
import { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { lanAddresses } from '../lab/network.js';
import { waitFor, waitForText } from '../lab/wait.js';
import { redisGuestArgs, remainsOf, serialReplacement } from './support/lab.js';
import { patient } from './support/withheld.js';

const HELD_BYTES_MAX = 1 << 20;
/** What QEMU has ready when it is stopped is taken in past the bound (docs/relay.md). */
const PAST_BOUND_BYTES_MAX = 16 << 20;
/** Twice what the bound, QEMU's socket (8 MiB with the kernel's overhead) and the guest's own queues take in. */
const DATAGRAMS = 12_000;
const DATAGRAM_BYTES = 1_400;
const PORT = 9515;
/** Reports of the guest's sender, five a second, without one more datagram: else it sends hundreds in each. */
const REPORTS_OF_BLOCKED = 8;

let lab: Lab;
let backup: JsonProcess;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'flood' });
  backup = await startBackup(lab, 'b', [...serialReplacement(lab, 'b'), '--connection-grace', '60s']);
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [...patient, '--held-max', '1M'],
    vm: ['--', 'qemu-system-x86_64', ...redisGuestArgs(lab)],
  });
  await primary.message('protected');
  await waitForText(lab.path('serial-a'), guestReadyText, { timeoutMs: 60_000 });
}, 120_000);

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

/** Datagrams that reached the client's kernel, whether or not a socket had room for them. */
const datagramsArrived = async (): Promise<number> => {
  const { stdout } = await lab.client.exec('cat', ['/proc/net/snmp']);
  const [names = [], values = []] = stdout
    .split('\n')
    .filter((line) => line.startsWith('Udp: '))
    .map((line) => line.split(' '));
  return ['InDatagrams', 'NoPorts', 'InErrors']
    .map((name) => Number(values[names.indexOf(name)]))
    .reduce((sum, count) => sum + count, 0);
};

/** What the guest's kernel has taken of it, by report: on the console, which no gate holds back. */
const reportsOf = (serial: string): number[] =>
  [...readFileSync(serial, 'utf8').matchAll(/^FLOOD-SENT (\d+)\r?$/gm)].map(([, sent]) => Number(sent));

/** What was sent by then, when the guest's sender is blocked. */
const senderBlocked = async (serial: string): Promise<number> =>
  await waitFor(
    "the guest's sender to be blocked",
    () => {
      const last = reportsOf(serial).slice(-REPORTS_OF_BLOCKED);
      const sent = last.at(-1) ?? 0;
      return sent > 0 && last.length === REPORTS_OF_BLOCKED && last[0] === sent && { sent };
    },
    { timeoutMs: 20_000 },
  ).then(({ sent }) => sent);

test('a flood of packets is held up to the bound and slows the guest, and none is dropped', async () => {
  const serial = lab.path('serial-a');
  // It need not keep up: what counts is what arrives at its host.
  const sinkScript = join(repositoryRoot(), 'dist/test/e2e/support/lab-datagrams.js');
  const sink = new JsonProcess(
    await lab.client.spawn(process.execPath, [sinkScript, lanAddresses.c, String(PORT)]),
  );
  const { stdout } = await lab.client.exec('ip', ['-json', 'link', 'show', 'dev', 'lan']);
  const [{ address } = { address: '' }] = JSON.parse(stdout) as readonly { readonly address: string }[];
  const before = await datagramsArrived();
  // While nothing leaves, a neighbour could not be asked for its address again.
  await guestOutput(
    lab.client,
    `arp -s ${lanAddresses.c} ${address}
    (sleep 1; flood ${lanAddresses.c} ${PORT} ${DATAGRAMS} ${DATAGRAM_BYTES} > /dev/console 2>&1) > /dev/null 2>&1 &`,
  );
  process.kill(backup.pid, 'SIGSTOP');
  try {
    await waitFor(
      'the bound to be reached',
      async () => ((await primaryStatus(lab)).gate.backPressure ?? 0) > 0,
      { timeoutMs: 40_000 },
    );
    const sent = await senderBlocked(serial);
    expect(sent).toBeLessThan(DATAGRAMS);
    expect(readFileSync(serial, 'utf8')).not.toContain('FLOOD-OVER');
    expect((await primaryStatus(lab)).vm.running).toBe(true);
    expect(await datagramsArrived()).toBe(before);
  } finally {
    process.kill(backup.pid, 'SIGCONT');
  }
  await waitForText(serial, 'FLOOD-OVER', { timeoutMs: 60_000 });
  await waitFor('all of it to arrive', async () => (await datagramsArrived()) - before >= DATAGRAMS, {
    timeoutMs: 20_000,
  }).catch(() => {}); // the comparison says more
  expect((await datagramsArrived()) - before).toBe(DATAGRAMS);
  const numbers = sink.of('datagram').map(({ number }) => Number(number));
  expect(numbers.length).toBeGreaterThan(0);
  expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b));
  const { gate } = await primaryStatus(lab);
  expect(gate).toMatchObject({ kind: 'relay', droppedFrames: 0 });
  expect(gate.heldBytesMax).toBeGreaterThanOrEqual(HELD_BYTES_MAX);
  expect(gate.heldBytesMax).toBeLessThanOrEqual(HELD_BYTES_MAX + PAST_BOUND_BYTES_MAX);
  expect(gate.stalledMs).toBeGreaterThan(0);
  expect(readFileSync(serial, 'utf8')).not.toMatch(/NETDEV WATCHDOG/);
}, 300_000);
