/** A primary that tries again and again meets its backup at any moment of the backup's start. */

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Backup } from '../../lib/backup/backup.js';
import { type ControlChannel, connectControl } from '../../lib/control/channel.js';
import type { ControlMessage } from '../../lib/control/messages.js';
import { ConnectError } from '../../lib/errors.js';

const KEY = Buffer.from('a key of at least sixteen bytes');
const HOST = '127.0.0.1';
/** For each of them all processes are looked at: time in which a primary comes. */
const LEFTOVERS = 10;
/** No process has it. */
const ENDED_PID = 2 ** 30;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'holdfast-backup-start-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, HOST);
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
};

const leaveReplicas = (): void => {
  const runDirHash = createHash('sha256').update(dir).digest('hex').slice(0, 8);
  for (let n = 1; n <= LEFTOVERS; n++) {
    writeFileSync(join(dir, `holdfast-backup-${runDirHash}-${ENDED_PID}-g${n}.ram`), '');
  }
};

const replicas = (): string[] => readdirSync(dir).filter((name) => name.endsWith('.ram'));

/** As soon as somebody listens. */
const connectEarly = async (port: number): Promise<ControlChannel> => {
  for (;;) {
    try {
      return await connectControl({ host: HOST, port }, KEY);
    } catch (error) {
      if (!(error instanceof ConnectError)) throw error;
    }
  }
};

test('a connection made while leftovers are removed is answered once they are gone', async () => {
  leaveReplicas();
  const port = await freePort();
  let started = false;
  const starting = Backup.start({
    key: KEY,
    listen: `${HOST}:${port}`,
    runDir: dir,
    ramDir: dir,
  }).finally(() => {
    started = true;
  });
  const channel = await connectEarly(port);
  const cameEarly = !started;
  const answered = once(channel, 'message') as Promise<[ControlMessage]>;
  channel.start();
  channel.send({ type: 'heartbeat', sequence: 1 });
  // Refused, since it is no session; but by the backup itself.
  expect((await answered)[0]).toMatchObject({ type: 'session-refused', code: 'HOLDFAST_E_PROTOCOL' });
  expect(cameEarly).toBe(true);
  expect(replicas()).toEqual([]);
  await channel.close();
  await (await starting).close();
});
