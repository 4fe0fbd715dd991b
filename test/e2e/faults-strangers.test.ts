/** Who is not the primary, or not able to be: refused with a reason, and the protected VM is none the worse. */

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { encodeFrame } from '../../lib/control/framing.js';
import { native } from '../../lib/native.js';
import { CONTROL_PORT, primaryStatus, startPrimary } from '../lab/daemons.js';
import { guestArgs } from '../lab/guest.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { replicationLinks } from '../lab/network.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor } from '../lab/wait.js';
import {
  bootRedisGuest,
  calm,
  killOrphan,
  protect,
  type RunningVm,
  remainsOf,
  statusOf,
  withQmp,
} from './support/lab.js';

const BULK_PORT = 7790;

let lab: Lab;
let vm: RunningVm;
let backup: JsonProcess;
let primary: JsonProcess;
let load: RedisLoad;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'fstr' });
  vm = await bootRedisGuest(lab);
  ({ backup, primary } = await protect(lab, vm, { backup: ['--bulk-port', String(BULK_PORT)] }));
  load = await RedisLoad.start(lab.client);
});

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

/** Sends bytes from host a to a port of the backup and returns the answer, up to the close or `seconds`. */
const sendTo = async (port: number, bytes: Buffer, seconds = 1): Promise<string> => {
  const file = lab.path(`bytes-${randomBytes(4).toString('hex')}`);
  writeFileSync(file, bytes);
  const { address } = replicationLinks.aToB.to;
  // nc closes its side at the end of the file; sleep keeps it open, as a peer that only waits would.
  const command = `(cat ${file}; sleep ${seconds}) | timeout ${seconds} busybox nc ${address} ${port}`;
  const { stdout } = await lab.host('a').exec('bash', ['-c', command], { check: false });
  return stdout;
};

const expectUnaffected = async (): Promise<void> => {
  const { committedEpoch, term } = await primaryStatus(lab);
  await waitFor('more epochs', async () => (await primaryStatus(lab)).committedEpoch >= committedEpoch + 20);
  expect(term).toBe(1);
  expect(primary.of('waiting')).toEqual([]);
  expect((await statusOf(lab, 'b')).phases).toEqual(['backup protecting']);
  await load.advance(20);
  expect(load.brokenConnections).toBe(0);
};

/** A bulk frame's header (docs/wire-protocol.md), its hash right unless spoiled. */
const header = async (
  type: number,
  sizes: { readonly tableBytes?: number; readonly payloadBytes?: bigint },
): Promise<Buffer> => {
  const bytes = Buffer.alloc(40);
  bytes.writeUInt32LE(0x31424648, 0);
  bytes.writeUInt16LE(type, 4);
  bytes.writeUInt32LE(sizes.tableBytes ?? 0, 16);
  bytes.writeBigUInt64LE(sizes.payloadBytes ?? 0n, 24);
  const file = lab.path('header');
  writeFileSync(file, bytes.subarray(0, 32));
  bytes.writeBigUInt64LE(BigInt(`0x${await native.hashFile(file, 32)}`), 32);
  return bytes;
};

test('garbage, oversized and truncated frames on the control port', async () => {
  const oversized = Buffer.alloc(4);
  oversized.writeUInt32BE(0xffff_fff0);
  const answers = await Promise.all([
    sendTo(CONTROL_PORT, randomBytes(100_000)),
    sendTo(CONTROL_PORT, Buffer.from('GET / HTTP/1.1\r\nHost: backup\r\n\r\n')),
    sendTo(CONTROL_PORT, oversized),
    sendTo(CONTROL_PORT, encodeFrame(Buffer.from('{"type":"hello"'))),
    sendTo(CONTROL_PORT, encodeFrame(Buffer.from('{"type":"session"}'))),
    sendTo(CONTROL_PORT, Buffer.from([0, 0, 1])),
  ]);
  for (const answer of answers.slice(2, 5)) expect(answer).toContain('HOLDFAST_E_PROTOCOL');
  await expectUnaffected();
});

test('more connections than there may be, all of them silent', async () => {
  await Promise.all(Array.from({ length: 24 }, () => sendTo(CONTROL_PORT, Buffer.alloc(0), 2)));
  await expectUnaffected();
});

test('garbage, oversized, truncated and unasked-for frames on the bulk port', async () => {
  const hello = Buffer.alloc(48);
  hello.writeUInt32LE(1, 0);
  hello.writeUInt32LE(4096, 4);
  hello.writeBigUInt64LE(192n << 20n, 8);
  randomBytes(32).copy(hello, 16);
  const spoiled = await header(1, { payloadBytes: 48n });
  spoiled[39]! ^= 1;
  await Promise.all([
    sendTo(BULK_PORT, randomBytes(1_000_000)),
    sendTo(BULK_PORT, await header(4, { tableBytes: 0xffff_ffff, payloadBytes: 1n << 62n })),
    sendTo(BULK_PORT, await header(1, { payloadBytes: 1n << 40n })),
  ]);
  await Promise.all([
    sendTo(BULK_PORT, Buffer.concat([await header(1, { payloadBytes: 48n }), hello])),
    sendTo(BULK_PORT, (await header(1, { payloadBytes: 48n })).subarray(0, 20)),
    sendTo(BULK_PORT, Buffer.concat([spoiled, hello])),
    sendTo(BULK_PORT, await header(8, { payloadBytes: 24n })),
  ]);
  await expectUnaffected();
});

test('another key: exit code 6, nothing touched', async () => {
  const key = lab.path('other-key');
  writeFileSync(key, `${'f'.repeat(32)}\n`, { mode: 0o600 });
  await withSecondVm(async (qmpPath) => {
    const daemon = await startPrimary(lab, {
      host: 'a',
      backup: 'b',
      args: [...calm, '--key-file', key, '--name', 'second'],
      vm: ['--qmp', qmpPath],
    });
    expect(await daemon.ended()).toEqual({ code: 6, signal: null });
    expect(daemon.failure).toMatchObject({ code: 'HOLDFAST_E_AUTH', exitCode: 6 });
    await expectUntouched(qmpPath);
  });
  await expectUnaffected();
});

test('another version: refused by name', async () => {
  const hello = { type: 'hello', protocol: 'holdfast', versions: [99], nonce: 'a'.repeat(64) };
  const answer = await sendTo(CONTROL_PORT, encodeFrame(Buffer.from(JSON.stringify(hello))));
  expect(answer).toContain('"type":"refused"');
  expect(answer).toContain('HOLDFAST_E_VERSION');
  await expectUnaffected();
});

test('another VM: one backup keeps one VM, the second is refused and untouched', async () => {
  await withSecondVm(async (qmpPath) => {
    const second = await startPrimary(lab, {
      host: 'a',
      backup: 'b',
      args: [...calm, '--name', 'second'],
      vm: ['--qmp', qmpPath],
    });
    expect(await second.ended()).toEqual({ code: 7, signal: null });
    expect(second.failure).toMatchObject({ code: 'HOLDFAST_E_LIMIT', exitCode: 7 });
    await expectUntouched(qmpPath);
  });
  await expectUnaffected();
});

test('a second daemon of one name is refused before it touches anything', async () => {
  await withSecondVm(async (qmpPath) => {
    const second = await startPrimary(lab, { host: 'a', backup: 'b', vm: ['--qmp', qmpPath] });
    expect(await second.ended()).toEqual({ code: 2, signal: null });
    expect(second.failure).toMatchObject({ code: 'HOLDFAST_E_CONFIG' });
    await expectUntouched(qmpPath);
  });
  await expectUnaffected();
});

test('after all that the failover works', async () => {
  process.kill(primary.pid, 'SIGKILL');
  await killOrphan(vm.pid);
  await backup.message('took-over');
  await load.advance(50);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, violations: [] });
});

let seconds = 0;

/** Another VM on host a that could be protected; it need not even boot. */
const withSecondVm = async (use: (qmpPath: string) => Promise<void>): Promise<void> => {
  seconds += 1;
  const qmpPath = lab.path(`second-qmp-${seconds}`);
  const args = guestArgs({
    serialPath: lab.path('second-serial'),
    ramPath: lab.sharedMemoryPath(`second-ram-${seconds}`),
    qmpPath,
    ramMb: 64,
    tap: null,
  });
  const qemu = await lab.host('a').spawn('qemu-system-x86_64', args);
  try {
    await withQmp(qmpPath, async () => {});
    await use(qmpPath);
  } finally {
    await qemu.kill();
  }
};

const expectUntouched = async (qmpPath: string): Promise<void> => {
  await withQmp(qmpPath, async (qmp) => {
    const objects = await qmp.execute('qom-list', { path: '/objects' });
    expect(objects.filter(({ name }) => name.startsWith('holdfast'))).toEqual([]);
    expect((await qmp.execute('query-status')).running).toBe(true);
  });
};
