/**
 * A guest that floods the network while nothing is acknowledged: held output stays within its bound, the
 * guest waits, and not one packet is lost.
 */

import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import { guestOutput } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { lanAddresses } from '../lab/network.js';
import { countInFile, waitFor, waitForText } from '../lab/wait.js';
import { redisGuestArgs, remainsOf, serialReplacement } from './support/lab.js';
import { patient } from './support/withheld.js';

const HELD_BYTES_MAX = 1 << 20;
/** What QEMU has ready when it is stopped is taken in past the bound (docs/relay.md). */
const PAST_BOUND_BYTES_MAX = 16 << 20;
/** Enough for QEMU's socket to fill, too, from where on the guest itself waits. */
const STALLED_MS = 3_000;
const PINGERS = 8;
const PINGS = 1_500;
const PING_BYTES = 1_400;

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

/** Echo requests that reached the client's kernel. */
const pingsArrived = async (): Promise<number> => {
  const { stdout } = await lab.client.exec('cat', ['/proc/net/snmp']);
  const [names = [], values = []] = stdout
    .split('\n')
    .filter((line) => line.startsWith('Icmp: '))
    .map((line) => line.split(' '));
  return Number(values[names.indexOf('InEchos')]);
};

test('a flood of packets slows the guest instead of being dropped', async () => {
  const serial = lab.path('serial-a');
  const { stdout } = await lab.client.exec('ip', ['-json', 'link', 'show', 'dev', 'lan']);
  const [{ address } = { address: '' }] = JSON.parse(stdout) as readonly { readonly address: string }[];
  const before = await pingsArrived();
  const ping = `ping -q -c ${PINGS} -i 0.002 -s ${PING_BYTES} ${lanAddresses.c}`;
  // While nothing leaves, a neighbour could not be asked for its address again.
  await guestOutput(
    lab.client,
    `arp -s ${lanAddresses.c} ${address}
    for n in $(seq ${PINGERS}); do (sleep 2; ${ping}; echo PINGS-SENT > /dev/console) > /dev/null 2>&1 & done`,
  );
  process.kill(backup.pid, 'SIGSTOP');
  try {
    await waitFor(
      'the relay to let QEMU wait, and QEMU the guest',
      async () => ((await primaryStatus(lab)).gate.stalledMs ?? 0) >= STALLED_MS,
      { timeoutMs: 40_000 },
    );
  } finally {
    process.kill(backup.pid, 'SIGCONT');
  }
  await waitFor('every ping to be sent', () => countInFile(serial, 'PINGS-SENT') === PINGERS, {
    timeoutMs: 60_000,
  });
  expect((await pingsArrived()) - before).toBe(PINGERS * PINGS);
  const { gate } = await primaryStatus(lab);
  expect(gate).toMatchObject({ kind: 'relay', droppedFrames: 0 });
  expect(gate.heldBytesMax).toBeGreaterThanOrEqual(HELD_BYTES_MAX);
  expect(gate.heldBytesMax).toBeLessThanOrEqual(HELD_BYTES_MAX + PAST_BOUND_BYTES_MAX);
  expect(readFileSync(serial, 'utf8')).not.toMatch(/NETDEV WATCHDOG/);
}, 200_000);
