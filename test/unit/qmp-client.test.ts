/** The QMP client against a scripted peer: what a real QEMU rarely does. */

import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { CancelledError, QmpConnectionError, QmpError } from '../../lib/errors.js';
import { QmpClient } from '../../lib/qmp/client.js';

const GREETING = {
  QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: '' }, capabilities: [] },
};

interface Command {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
  readonly id: number;
}

/** Called for each command after the negotiation; what it returns is written as a line. */
type Script = (command: Command, socket: Socket) => unknown;

let dir: string;
let path: string;
let server: Server | undefined;
let sockets: Socket[] = [];
/** What the client wrote, one entry per read of the peer. */
let chunks: string[] = [];

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
  path = join(dir, 'qmp');
  sockets = [];
  chunks = [];
});

afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  await new Promise((resolve) => (server === undefined ? resolve(undefined) : server.close(resolve)));
  server = undefined;
  await rm(dir, { recursive: true, force: true });
});

const line = (message: unknown): string => `${JSON.stringify(message)}\r\n`;

const listen = (script: Script, greeting = line(GREETING)): Promise<void> => {
  server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
    socket.write(greeting);
    let partial = '';
    socket.on('data', (chunk) => {
      chunks.push(chunk.toString());
      partial += chunk;
      const lines = partial.split('\n');
      partial = lines.pop()!;
      for (const text of lines) {
        const command = JSON.parse(text) as Command;
        const answer =
          command.execute === 'qmp_capabilities' ? { return: {}, id: command.id } : script(command, socket);
        if (answer !== undefined) socket.write(line(answer));
      }
    });
  });
  return new Promise((resolve) => server!.listen(path, resolve));
};

const silent: Script = () => undefined;
const running = { status: 'running', running: true };

const connect = (): Promise<QmpClient> => QmpClient.connect(path, { timeoutMs: 2000 });

describe('01 connecting', () => {
  test('waits for a socket that does not exist yet', async () => {
    const connecting = connect();
    await listen(silent);
    await using client = await connecting;
    expect(client.greeting.version.qemu.major).toBe(7);
  });

  test('gives up at the deadline, naming the socket, and what would listen there', async () => {
    await expect(QmpClient.connect(path, { timeoutMs: 50 })).rejects.toMatchObject({
      message: expect.stringContaining(path),
      cure: expect.stringContaining(`-qmp unix:${path},server=on`),
    });
  });

  test('a peer that does not greet is not waited for beyond the deadline', async () => {
    await listen(silent, '');
    await expect(QmpClient.connect(path, { timeoutMs: 50 })).rejects.toMatchObject({
      message: expect.stringContaining('no QMP greeting'),
      cure: expect.stringContaining('one client at a time'),
    });
  });

  test('a peer that is not QMP', async () => {
    await listen(silent, '{"hello":1}\n');
    await expect(connect()).rejects.toThrow(QmpConnectionError);
  });

  test('an abort ends the wait', async () => {
    const controller = new AbortController();
    const connecting = QmpClient.connect(path, { signal: controller.signal });
    controller.abort();
    await expect(connecting).rejects.toThrow(CancelledError);
  });
});

describe('02 commands', () => {
  test('answers are matched by id, in any order', async () => {
    const held: Command[] = [];
    await listen((command, socket) => {
      held.push(command);
      if (held.length < 2) return;
      for (const { id, execute } of held.reverse()) {
        socket.write(line({ return: execute === 'query-status' ? running : { name: 'vm' }, id }));
      }
      return;
    });
    await using client = await connect();
    const [status, name] = await Promise.all([client.execute('query-status'), client.execute('query-name')]);
    expect(status).toEqual(running);
    expect(name).toEqual({ name: 'vm' });
  });

  test('errors become QmpError', async () => {
    await listen(({ id }) => ({ error: { class: 'GenericError', desc: 'no' }, id }));
    await using client = await connect();
    const refused = client.execute('stop');
    await expect(refused).rejects.toThrow(QmpError);
    await expect(refused).rejects.toMatchObject({
      details: { command: 'stop', class: 'GenericError', desc: 'no' },
    });
  });

  test('an answer of another shape is refused, the connection stays', async () => {
    await listen(({ id, execute }) => ({ return: execute === 'stop' ? {} : { status: 3 }, id }));
    await using client = await connect();
    await expect(client.execute('query-status')).rejects.toThrow(/unexpected shape/);
    await expect(client.execute('stop')).resolves.toEqual({});
  });

  test('a late answer does not desynchronise', async () => {
    let late: Command | undefined;
    await listen((command, socket) => {
      if (command.execute === 'stop') {
        late = command;
        return;
      }
      socket.write(line({ return: {}, id: late!.id }));
      return { return: running, id: command.id };
    });
    await using client = await connect();
    await expect(client.execute('stop', {}, { timeoutMs: 20 })).rejects.toThrow(/within 20 ms/);
    await expect(client.execute('query-status')).resolves.toEqual(running);
  });

  test('an aborted command rejects, others go on', async () => {
    await listen(({ execute, id }) => (execute === 'stop' ? undefined : { return: running, id }));
    await using client = await connect();
    const controller = new AbortController();
    const stopping = client.execute('stop', {}, { signal: controller.signal });
    controller.abort();
    await expect(stopping).rejects.toThrow(CancelledError);
    await expect(client.execute('query-status')).resolves.toEqual(running);
  });

  test('a pipeline is one write', async () => {
    await listen(({ id }) => ({ return: {}, id }));
    await using client = await connect();
    chunks = [];
    const [stopped, saved, resumed] = client.pipeline([
      { execute: 'stop' },
      { execute: 'xen-save-devices-state', arguments: { filename: '/x', live: false } },
      { execute: 'cont' },
    ]);
    await Promise.all([stopped, saved, resumed]);
    expect(chunks).toHaveLength(1);
    expect(
      chunks[0]!
        .trim()
        .split('\n')
        .map((text) => JSON.parse(text).execute),
    ).toEqual(['stop', 'xen-save-devices-state', 'cont']);
  });

  test('a descriptor is passed on the same connection, after what was written before', async () => {
    await listen(({ id }) => ({ return: {}, id }));
    let sent: { text: string; fd: number; socketFd: number } | undefined;
    await using client = await QmpClient.connect(path, {
      sendWithFd: (socketFd, data, fd) => {
        const text = Buffer.from(data).toString();
        sent = { text, fd, socketFd };
        sockets[0]!.emit('data', Buffer.from(text));
      },
    });
    await client.passDescriptor('one', 1);
    expect(sent).toMatchObject({ fd: 1, socketFd: client.socketFd });
    expect(JSON.parse(sent!.text)).toMatchObject({ execute: 'getfd', arguments: { fdname: 'one' } });
  });

  test('a descriptor that cannot be passed rejects and leaves the connection usable', async () => {
    await listen(({ id }) => ({ return: running, id }));
    await using client = await QmpClient.connect(path, {
      sendWithFd: () => {
        throw new Error('EBADF');
      },
    });
    await expect(client.passDescriptor('one', 999)).rejects.toThrow(/EBADF/);
    await expect(client.execute('query-status')).resolves.toEqual(running);
  });
});

describe('03 what arrives in pieces, or is garbage', () => {
  test('half lines, joined lines and split characters', async () => {
    await listen(({ id }, socket) => {
      const bytes = Buffer.from(
        line({ return: { status: 'läuft', running: true }, id }) + line(event('STOP')),
      );
      const umlaut = bytes.indexOf(0xc3) + 1;
      socket.write(bytes.subarray(0, umlaut));
      setImmediate(() => socket.write(bytes.subarray(umlaut)));
      return;
    });
    await using client = await connect();
    const stopped = client.once('STOP');
    await expect(client.execute('query-status')).resolves.toMatchObject({ status: 'läuft' });
    await stopped;
  });

  for (const [what, text] of [
    ['not JSON', 'hello\n'],
    ['not an object', '[1]\n'],
    ['neither answer nor event', '{"a":1}\n'],
    ['a malformed event', '{"event":1}\n'],
    ['an error about no command', '{"error":{"class":"GenericError","desc":"JSON parse error"}}\n'],
    ['a line without end', 'x'.repeat(17 * 1024 * 1024)],
  ] as const) {
    test(`${what} ends the connection and rejects what is pending`, async () => {
      await listen((_, socket) => {
        socket.write(text);
        return;
      });
      const client = await connect();
      const pending = [client.execute('stop'), client.execute('cont'), client.once('STOP')];
      for (const promise of pending) await expect(promise).rejects.toThrow(QmpConnectionError);
      await expect(client.closed).resolves.toMatchObject({ kind: 'lost' });
      await expect(client.execute('stop')).rejects.toThrow(QmpConnectionError);
    });
  }

  test('an unknown id is passed over', async () => {
    await listen(({ id }, socket) => {
      socket.write(line({ return: {}, id: 'nobody' }));
      return { return: running, id };
    });
    await using client = await connect();
    await expect(client.execute('query-status')).resolves.toEqual(running);
  });

  test('a peer that goes away rejects what is pending', async () => {
    await listen((_, socket) => {
      socket.destroy();
      return;
    });
    const client = await connect();
    await expect(client.execute('stop')).rejects.toThrow(QmpConnectionError);
    await expect(client.closed).resolves.toMatchObject({ kind: 'lost' });
  });

  test('closing is not a loss, and is idempotent', async () => {
    await listen(silent);
    const client = await connect();
    const pending = client.execute('stop');
    await Promise.all([client.close(), client.close()]);
    await expect(pending).rejects.toThrow(/was closed/);
    await expect(client.closed).resolves.toEqual({ kind: 'closed' });
  });
});

const event = (name: string, data: Record<string, unknown> = {}): unknown => ({
  event: name,
  data,
  timestamp: { seconds: 1, microseconds: 2 },
});

describe('04 events', () => {
  const emitting: Script = ({ id }, socket) => {
    for (const number of [1, 2, 3]) socket.write(line(event('MIGRATION', { number })));
    socket.write(line(event('STOP')));
    return { return: {}, id };
  };

  test('listeners get theirs until they are removed', async () => {
    await listen(emitting);
    await using client = await connect();
    const all: string[] = [];
    let stops = 0;
    client.on('*', ({ event: name }) => all.push(name));
    const remove = client.on('STOP', () => {
      stops++;
    });
    await client.execute('stop');
    remove();
    await client.execute('stop');
    expect(all).toHaveLength(8);
    expect(stops).toBe(1);
  });

  test('once() passes over what does not match, and has a deadline', async () => {
    await listen(emitting);
    await using client = await connect();
    const third = client.once('MIGRATION', { where: ({ data }) => data.number === 3 });
    await client.execute('stop');
    expect((await third).data).toEqual({ number: 3 });
    await expect(client.once('RESUME', { timeoutMs: 10 })).rejects.toThrow(/no RESUME within 10 ms/);
  });

  test('an iterator yields in order, from its creation on', async () => {
    await listen(emitting);
    await using client = await connect();
    const events = client.events('MIGRATION');
    await client.execute('stop');
    const numbers: unknown[] = [];
    for await (const { data } of events) {
      numbers.push(data.number);
      if (numbers.length === 3) break;
    }
    expect(numbers).toEqual([1, 2, 3]);
  });

  test('an iterator ends with close(), and throws on a loss', async () => {
    await listen(silent);
    const closing = await connect();
    const first = closing.events('*').next();
    await closing.close();
    await expect(first).resolves.toEqual({ done: true, value: undefined });

    const losing = await connect();
    const second = losing.events('*').next();
    for (const socket of sockets) socket.destroy();
    await expect(second).rejects.toThrow(QmpConnectionError);
  });
});
