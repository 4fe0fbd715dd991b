/** Real backups on loopback are asked for a place, and the best is picked; those that say nothing are named. */

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Backup } from '../../lib/backup/backup.js';
import { idleBetween, parseAvailableBytes, parseCpuTimes } from '../../lib/backup/host-load.js';
import { connectControl } from '../../lib/control/channel.js';
import { controlMessage } from '../../lib/control/messages.js';
import { connectWithToken } from '../../lib/control/token-stream.js';
import {
  AuthError,
  ConnectError,
  type HoldfastError,
  NoSpaceError,
  PeerLostError,
} from '../../lib/errors.js';
import { noneWillDo, pickTarget } from '../../lib/migrate/pick-target.js';

const KEY = Buffer.from('a key of at least sixteen bytes');
const HOST = '127.0.0.1';
const needs = { ramBytes: 1 << 20, vcpus: 1 };

let dir: string;
const cleanUps: (() => unknown)[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'holdfast-pick-'));
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  rmSync(dir, { recursive: true, force: true });
});

const startBackup = async (name: string): Promise<Backup> => {
  const backup = await Backup.start({
    ...{ key: KEY, name, listen: `${HOST}:0`, runDir: dir, ramDir: dir, diskDir: dir },
  });
  cleanUps.push(() => backup.close());
  return backup;
};

/** Of hosts that are this one: there are a few seconds for those that are not. */
const ANSWER_MS_MAX = 1_000;

const pick = (to: readonly string[], key: Uint8Array = KEY) =>
  pickTarget({ to, key, needs, answerMsMax: ANSWER_MS_MAX });

const failed = async (work: Promise<unknown>): Promise<HoldfastError> =>
  (await work.then(
    () => undefined,
    (error: unknown) => error,
  )) as HoldfastError;

describe('01 asked', () => {
  test('each says what it has, the rate is measured; who does not answer is named and left out', async () => {
    const [one, other] = [await startBackup('one'), await startBackup('other')];
    const deaf = createServer(() => {}); // accepts, and says nothing
    await new Promise<void>((resolve) => deaf.listen(0, HOST, resolve));
    cleanUps.push(() => deaf.close());
    const { port } = deaf.address() as { port: number };
    const to = [`${HOST}:${one.port}`, `${HOST}:${port}`, `${HOST}:1`, `${HOST}:${other.port}`];
    const picked = await pick(to);
    expect([to[0], to[3]]).toContain(picked.to);
    expect(picked.reason).toContain(`${to[1]}: cannot reach the backup`);
    expect(picked.reason).toMatch(new RegExp(`${to[2]}: .*ECONNREFUSED`));
    expect(picked.candidates).toMatchObject([
      { name: to[0], freeBytes: expect.any(Number), linkRate: expect.any(Number) },
      { name: to[1], silence: expect.any(String) },
      { name: to[2], silence: expect.any(String) },
      { name: to[3] },
    ]);
    for (const candidate of picked.candidates) {
      if ('silence' in candidate) continue;
      expect(candidate.linkRate).toBeGreaterThan(1_000); // a megabyte a second
      expect(candidate.roundTripMs).toBeGreaterThan(0);
      expect(candidate.freeBytes).toBeGreaterThan(0);
    }
    // They still wait for a VM: being asked has changed nothing.
    expect([one, other].map((backup) => backup.status().phase)).toEqual(['idle', 'idle']);
  });

  test('none will do: each with its cause, and the code that they share', async () => {
    const refused = await failed(pick([`${HOST}:1`, `${HOST}:2`]));
    expect(refused).toBeInstanceOf(ConnectError);
    expect(refused.message).toMatch(/None of the targets will do\. 127\.0\.0\.1:1: .*127\.0\.0\.1:2: /);
    const backup = await startBackup('one');
    const strangers = await failed(pick([`${HOST}:${backup.port}`], Buffer.alloc(16, 1)));
    expect(strangers).toBeInstanceOf(AuthError);
    const small = await failed(
      pickTarget({ to: [`${HOST}:${backup.port}`], key: KEY, needs: { ramBytes: 2 ** 52, vcpus: 1 } }),
    );
    expect(small).toBeInstanceOf(NoSpaceError);
  });

  test('a probe takes the token of its own enquiry', async () => {
    const backup = await startBackup('one');
    const channel = await connectControl({ host: HOST, port: backup.port }, KEY);
    cleanUps.push(() => channel.close());
    const offered = new Promise<number>((resolve) => {
      channel.on('message', (message) => {
        if (message.type === 'offer') resolve(message.probePort ?? 0);
      });
    });
    channel.start();
    channel.send({ type: 'enquiry' });
    const port = await offered;
    const stranger = await connectWithToken({ host: HOST, port }, Buffer.alloc(32), { timeoutMs: 1_000 });
    stranger.resume();
    await new Promise((resolve) => stranger.once('close', resolve));
    const own = await connectWithToken({ host: HOST, port }, channel.bulkToken, { timeoutMs: 1_000 });
    const probed = new Promise((resolve) => channel.on('message', resolve));
    own.resume();
    own.end('some bytes');
    expect(await probed).toMatchObject({ type: 'probed' });
  });
});

describe('02 pure', () => {
  test('causes that differ have no code in common', () => {
    const silent = (name: string, failure: HoldfastError) => ({
      candidate: { name, silence: failure.message },
      failure,
    });
    const [cut, wrongKey] = [new PeerLostError('cut'), new AuthError('keys differ')];
    expect(noneWillDo([silent('a', cut), silent('b', cut)], 'why').code).toBe('HOLDFAST_E_PEER_LOST');
    expect(noneWillDo([silent('a', cut), silent('b', wrongKey)], 'why')).toBeInstanceOf(ConnectError);
  });

  test('CPU time between two looks', () => {
    const look = (user: number, idle: number, iowait: number): string =>
      `cpu  ${user} 0 0 ${idle} ${iowait} 0 0 0 ${user} 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n`;
    const before = parseCpuTimes(look(100, 1_000, 10));
    expect(before).toEqual({ cpus: 2, idle: 1_010, total: 1_110 });
    expect(idleBetween(before, parseCpuTimes(look(110, 1_025, 15)))).toEqual({ cpus: 2, idleCpus: 1.5 });
    expect(idleBetween(before, before)).toEqual({ cpus: 2, idleCpus: 0 });
    expect(parseCpuTimes('')).toEqual({ cpus: 0, idle: 0, total: 0 });
  });

  test('memory', () => {
    expect(parseAvailableBytes('MemTotal: 9 kB\nMemAvailable:    2048 kB\n')).toBe(2 << 20);
    expect(parseAvailableBytes('')).toBe(0);
  });

  test('messages are checked where they arrive', () => {
    const offer = { type: 'offer', freeBytes: 1, cpus: 2, idleCpus: 0.5, probePort: 1 };
    expect(controlMessage.safeParse(offer).success).toBe(true);
    for (const wrong of [
      { ...offer, idleCpus: -1 },
      { ...offer, freeBytes: 1.5 },
      { ...offer, probePort: 0 },
      { ...offer, extra: 1 },
      { type: 'probed', bytes: -1, ms: 1 },
      { type: 'echo' },
      { type: 'enquiry', name: 'x' },
      { type: 'stream-taken', port: 1 },
    ]) {
      expect(controlMessage.safeParse(wrong).success).toBe(false);
    }
  });
});
