import { mkdtemp, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { askDaemon, askStatus, DaemonError, viewDaemons } from '../../lib/admin/client.js';
import { LineDecoder } from '../../lib/admin/lines.js';
import {
  ANSWER_BYTES_MAX,
  adminSocketPath,
  CLIENTS_MAX,
  PENDING_REQUESTS_MAX,
  REQUEST_BYTES_MAX,
} from '../../lib/admin/protocol.js';
import { type AdminHandlers, AdminServer } from '../../lib/admin/server.js';
import {
  CancelledError,
  ConfigError,
  FencedError,
  NoDaemonError,
  PeerLostError,
  ProtocolError,
  TimeoutError,
} from '../../lib/errors.js';

let runDir: string;
const servers: AdminServer[] = [];
const sockets: Socket[] = [];
const strangers: Server[] = [];

beforeEach(async () => {
  runDir = await mkdtemp(join(tmpdir(), 'holdfast-admin-'));
});
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  for (const server of servers.splice(0)) await server.close();
  for (const stranger of strangers.splice(0)) stranger.close();
  await rm(runDir, { recursive: true, force: true });
});

const backupStatus = { role: 'backup', name: 'b', phase: 'idle', listen: ':1', term: 0, committedEpoch: 0 };

const listen = async (
  commands: AdminHandlers['commands'] = { status: () => backupStatus },
  name = 'b',
): Promise<AdminServer> => {
  const server = await AdminServer.listen({ runDir, name, handlers: { role: 'backup', commands } });
  servers.push(server);
  return server;
};

const pathOf = (name = 'b'): string => adminSocketPath(runDir, name);
const soon = { timeoutMs: 5_000 };

/** A client that says what no client of ours would. */
const rawClient = async (
  path = pathOf(),
): Promise<{ readonly socket: Socket; readonly ended: Promise<string> }> => {
  const socket = createConnection({ path });
  sockets.push(socket);
  let text = '';
  socket.on('data', (chunk) => {
    text += String(chunk);
  });
  const ended = new Promise<string>((resolve) => {
    socket.on('error', () => {});
    socket.on('close', () => resolve(text));
  });
  await new Promise<void>((resolve) => socket.once('connect', resolve));
  return { socket, ended };
};

/** A daemon that answers what no daemon of ours would. */
const stranger = async (answer: string | undefined): Promise<void> => {
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
    if (answer !== undefined) socket.on('data', () => socket.end(answer));
  });
  strangers.push(server);
  await new Promise<void>((resolve) => server.listen(pathOf(), resolve));
};

describe('the socket', () => {
  it('is private to its user', async () => {
    await listen();
    expect((await stat(pathOf())).mode & 0o777).toBe(0o600);
  });

  it('holds the name while the daemon lives', async () => {
    await listen();
    await expect(listen()).rejects.toThrow(ConfigError);
    await expect(listen()).rejects.toThrow(/name: another daemon named 'b' runs/);
    expect(await askStatus(pathOf(), soon)).toMatchObject({ name: 'b' }); // and is unharmed by the attempt
  });

  it('of a killed daemon is replaced', async () => {
    // A bound socket file without a listener: what SIGKILL leaves behind.
    const left = createServer();
    await new Promise<void>((resolve) => left.listen(join(runDir, 'dead'), resolve));
    await rename(join(runDir, 'dead'), pathOf());
    await new Promise<void>((resolve) => left.close(() => resolve()));
    await expect(askStatus(pathOf(), soon)).rejects.toThrow(NoDaemonError);
    await listen();
    expect(await askStatus(pathOf(), soon)).toMatchObject({ name: 'b' });
  });

  it('is gone after close, which may be called twice', async () => {
    const server = await listen();
    await server.close();
    await server.close();
    expect(await readdir(runDir)).toEqual([]);
    await expect(askStatus(pathOf(), soon)).rejects.toThrow(NoDaemonError);
  });

  it('needs a usable directory and a path that fits', async () => {
    await writeFile(join(runDir, 'file'), '');
    const handlers: AdminHandlers = { role: 'backup', commands: {} };
    const notADir = AdminServer.listen({ runDir: join(runDir, 'file'), name: 'b', handlers });
    await expect(notADir).rejects.toThrow(/^runDir: /);
    const tooLong = AdminServer.listen({ runDir: join(runDir, 'x'.repeat(100)), name: 'b', handlers });
    await expect(tooLong).rejects.toThrow(/^runDir: .*107 bytes/);
  });
});

describe('requests', () => {
  it('are answered to several clients, each its own', async () => {
    let asked = 0;
    await listen({ status: () => ({ ...backupStatus, term: ++asked }) });
    const answers = await Promise.all(Array.from({ length: 8 }, () => askStatus(pathOf(), soon)));
    expect(answers.map(({ term }) => term).sort()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('on one connection are answered in any order, by id', async () => {
    let finish: (value: object) => void = () => {};
    const slow = new Promise<object>((resolve) => {
      finish = resolve;
    });
    await listen({ status: () => backupStatus, takeover: () => slow });
    const { socket, ended } = await rawClient();
    socket.write('{"id":1,"command":"takeover"}\n{"id":2,"command":"status"}\n');
    await new Promise<void>((resolve) => socket.once('data', () => resolve()));
    finish({ done: true });
    await new Promise<void>((resolve) => socket.once('data', () => resolve()));
    socket.end();
    const ids = (await ended)
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { id: number }).id);
    expect(ids).toEqual([2, 1]);
  });

  it("carry the daemon's error with code, cure and exit code", async () => {
    await listen({
      takeover: () => {
        throw new FencedError('too late', { cure: 'Quit it.', details: { term: 3 } });
      },
    });
    const error = await askDaemon(pathOf(), 'takeover', soon).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(DaemonError);
    expect(error).toMatchObject({
      code: 'HOLDFAST_E_FENCED',
      exitCode: 9,
      message: 'too late',
      cure: 'Quit it.',
      details: { term: 3 },
    });
  });

  it('that are not of the role are refused', async () => {
    await listen();
    const error = await askDaemon(pathOf(), 'switchover', soon).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'HOLDFAST_E_CONFIG', exitCode: 2 });
    expect(String(error)).toContain("'b' is a backup");
  });

  it('under way are answered before the daemon ends', async () => {
    let finish: () => void = () => {};
    const started = new Promise<void>((begun) => {
      void listen({
        takeover: () =>
          new Promise((resolve) => {
            begun();
            finish = () => resolve({ done: true });
          }),
      });
    });
    await expect.poll(() => readdir(runDir)).toEqual(['b.sock']);
    const asked = askDaemon(pathOf(), 'takeover', soon);
    await started;
    const closed = servers[0]!.close();
    finish();
    expect(await asked).toEqual({ done: true });
    await closed;
  });

  it('that cannot be parsed are answered once, and the connection ends', async () => {
    await listen();
    for (const garbage of [
      'hello\n',
      '[]\n',
      '{"id":1}\n',
      '{"id":1,"command":"reboot"}\n',
      '{"id":-1,"command":"status"}\n',
      '{"id":1,"command":"status","more":1}\n',
      '\n',
      '\u0000\u0001\u0002\n',
    ]) {
      const { socket, ended } = await rawClient();
      socket.write(`${garbage}{"id":7,"command":"status"}\n`);
      const lines = (await ended).trim().split('\n');
      expect(lines).toHaveLength(1);
      expect(JSON.parse(lines[0]!)).toMatchObject({ ok: false, error: { code: 'HOLDFAST_E_PROTOCOL' } });
    }
    expect(await askStatus(pathOf(), soon)).toMatchObject({ name: 'b' });
  });

  it('that are too long are cut off before they end', async () => {
    await listen();
    const { socket, ended } = await rawClient();
    socket.write('x'.repeat(REQUEST_BYTES_MAX + 1));
    expect(JSON.parse(await ended)).toMatchObject({ error: { message: expect.stringContaining('limit') } });
  });

  it('that are too many at a time end the connection', async () => {
    let finish: () => void = () => {};
    const slow = new Promise<void>((resolve) => {
      finish = resolve;
    });
    await listen({ takeover: () => slow });
    const { socket, ended } = await rawClient();
    for (let id = 0; id <= PENDING_REQUESTS_MAX; id += 1) socket.write(`{"id":${id},"command":"takeover"}\n`);
    expect(await ended).toContain('HOLDFAST_E_LIMIT');
    finish();
  });

  it('of too many clients are refused, and of the next when one has left', async () => {
    await listen();
    const clients: Socket[] = [];
    for (let count = 0; count < CLIENTS_MAX; count += 1) clients.push((await rawClient()).socket);
    await expect(askStatus(pathOf(), soon)).rejects.toThrow(/clients/);
    clients[0]!.destroy();
    await expect.poll(() => askStatus(pathOf(), soon).catch(() => undefined)).toMatchObject({ name: 'b' });
  });

  it('survive any garbage', async () => {
    await listen();
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (bytes) => {
        const { socket, ended } = await rawClient();
        socket.end(bytes);
        await ended;
      }),
      { numRuns: 50 },
    );
    expect(await askStatus(pathOf(), soon)).toMatchObject({ name: 'b' });
  });
});

describe('the client', () => {
  it.each([
    ['{"id":1', PeerLostError], // never completed: the daemon ended
    ['hello\n', ProtocolError],
    ['{"ok":true}\n', ProtocolError],
    [`${'x'.repeat(ANSWER_BYTES_MAX + 1)}`, ProtocolError],
    ['{"id":1,"ok":true,"result":{"role":"chief"}}\n', ProtocolError],
    ['', PeerLostError],
  ])('does not believe %.20s', async (answer, expected) => {
    await stranger(answer);
    await expect(askStatus(pathOf(), soon)).rejects.toBeInstanceOf(expected);
  });

  it('gives up at its deadline, and when it is cancelled', async () => {
    await stranger(undefined);
    await expect(askStatus(pathOf(), { timeoutMs: 30 })).rejects.toThrow(TimeoutError);
    const controller = new AbortController();
    const asked = askStatus(pathOf(), { timeoutMs: 5_000, signal: controller.signal });
    controller.abort();
    await expect(asked).rejects.toThrow(CancelledError);
  });

  it('sees all daemons of a directory, passing over dead ones', async () => {
    await listen();
    await listen({ status: () => ({ ...backupStatus, name: 'c' }) }, 'c');
    await writeFile(join(runDir, 'note.txt'), '');
    const left = createServer();
    await new Promise<void>((resolve) => left.listen(join(runDir, 'x'), resolve));
    await rename(join(runDir, 'x'), pathOf('dead'));
    await new Promise<void>((resolve) => left.close(() => resolve()));
    const views = await viewDaemons(runDir, soon);
    expect(views.map(({ name }) => name)).toEqual(['b', 'c']);
    expect(await viewDaemons(join(runDir, 'none'), soon)).toEqual([]);
    const [named] = await viewDaemons(runDir, soon, ['dead']);
    expect(named).toMatchObject({ name: 'dead', error: { code: 'HOLDFAST_E_NO_DAEMON' } });
  });
});

describe('lines', () => {
  it('come out whole, however the stream is split', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ maxLength: 20 }).map((text) => text.replaceAll('\n', ' '))),
        fc.array(fc.nat({ max: 30 })),
        (lines, cuts) => {
          const stream = Buffer.from(lines.map((line) => `${line}\n`).join(''));
          const decoder = new LineDecoder(1_000);
          const found: string[] = [];
          let at = 0;
          for (const cut of [...cuts, stream.length]) {
            found.push(...decoder.push(stream.subarray(at, at + cut)));
            at = Math.min(stream.length, at + cut);
          }
          expect(found).toEqual(lines);
        },
      ),
    );
  });
});
