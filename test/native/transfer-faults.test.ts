/** Ends of a transfer that die, stop, or were handed a connected socket. */

import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, readdirSync, readFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { unavailableSenders } from '../../lib/send/sender-availability.js';
import { senderStrategies } from '../../lib/send/sender-choice.js';
import { openReceiver } from '../../lib/transfer/receiver.js';
import { openSender } from '../../lib/transfer/sender.js';
import { waitFor } from '../lab/wait.js';
import { type Footprint, footprint, nothingPinned, Region } from './transfer-lab.js';

const unavailable = unavailableSenders(native.probeSenders());
const strategies = senderStrategies.filter((strategy) => !unavailable.has(strategy));
const script = fileURLToPath(new URL('../../dist/test/native/transfer-child.js', import.meta.url));
interface Line {
  readonly port?: number;
  readonly token?: string;
  readonly id?: number;
  readonly end?: string | null;
}

/** A child process and the lines it says. */
class Child implements AsyncDisposable {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #exited: Promise<unknown>;

  constructor(
    role: 'sender' | 'receiver',
    options: object,
    extra: readonly string[] = [],
    stdio: StdioOptions = [],
  ) {
    this.process = spawn(process.execPath, [script, role, JSON.stringify(options), ...extra], {
      stdio: ['ignore', 'pipe', 'inherit', ...(stdio as [])],
    });
    this.#exited = once(this.process, 'close');
    this.#lines = createInterface(this.process.stdout!)[Symbol.asyncIterator]();
  }

  async line(): Promise<Line> {
    const { value, done } = await this.#lines.next();
    return done ? { end: 'no line' } : JSON.parse(value);
  }

  async ids(): Promise<{ ids: number[]; end: string | null | undefined }> {
    const ids: number[] = [];
    for (;;) {
      const { id, end } = await this.line();
      if (id === undefined) return { ids, end };
      ids.push(id);
    }
  }

  /** All its threads stand when this resolves: the signal reaches them one after the other. */
  async stop(): Promise<void> {
    this.process.kill('SIGSTOP');
    const tasks = `/proc/${this.process.pid}/task`;
    await waitFor('the process to stop', () =>
      readdirSync(tasks).every((id) => / T /.test(readFileSync(`${tasks}/${id}/stat`, 'utf8'))),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill('SIGKILL');
    await this.#exited;
  }
}

let region: Region;
let before: Footprint;

beforeEach(() => {
  before = footprint();
  region = new Region(2000);
  region.randomize(everything(region));
});

afterEach(() => {
  region[Symbol.dispose]();
});

const everything = ({ pages }: Region) => ({ firstPage: 0, pages });
const receiverOptions = () => ({ file: region.replicaPath, regionBytes: region.bytes });
const senderOptions = () => ({ file: region.path, regionBytes: region.bytes });

describe('a receiving process', () => {
  test('that is killed: the transfer rejects, and nothing is left behind', async () => {
    for (const strategy of strategies) {
      {
        await using child = new Child('receiver', { listen: { host: '127.0.0.1' }, ...receiverOptions() });
        const { port, token } = await child.line();
        const to = { host: '127.0.0.1', port: port!, token: Buffer.from(token!, 'hex') };
        await using sender = await openSender({ to, ...senderOptions(), strategy });
        await sender.send([everything(region)]);
        expect(await child.line()).toEqual({ id: 1 });
        await child.stop(); // so that the next one cannot be over before it is killed
        const transfers = [sender.send([everything(region)]), sender.send([everything(region)])];
        const outcomes = Promise.allSettled(transfers);
        await new Promise((resolve) => setTimeout(resolve, 20));
        child.process.kill('SIGKILL');
        for (const outcome of await outcomes) {
          expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'HOLDFAST_E_PEER_LOST' } });
        }
        // It stays so.
        await expect(sender.send([])).rejects.toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
      }
    }
    expect(footprint().native).toEqual(before.native);
    await nothingPinned();
  });

  test('that stops for a while: the sender waits, all arrives', async () => {
    await using child = new Child('receiver', {
      listen: { host: '127.0.0.1' },
      ...receiverOptions(),
      once: true,
    });
    const { port, token } = await child.line();
    const to = { host: '127.0.0.1', port: port!, token: Buffer.from(token!, 'hex') };
    const sender = await openSender({ to, ...senderOptions(), staged: true });
    for (let id = 1; id <= 5; id++) {
      child.process.kill('SIGSTOP');
      const transfer = sender.send([everything(region)]);
      await transfer.staged;
      await new Promise((resolve) => setTimeout(resolve, 20));
      child.process.kill('SIGCONT');
      await transfer;
    }
    await sender.close();
    expect(await child.ids()).toEqual({ ids: [1, 2, 3, 4, 5], end: null });
    expect(await region.differences()).toEqual([]);
  });
});

test('a sending process that is killed: what it had not finished leaves no trace', async () => {
  for (let round = 0; round < 5; round++) {
    await using receiver = await openReceiver({
      listen: { host: '127.0.0.1' },
      ...receiverOptions(),
      once: true,
    });
    const token = Buffer.from(receiver.token).toString('hex');
    const to = { host: '127.0.0.1', port: receiver.port, token };
    await using child = new Child('sender', { to, ...senderOptions() }, ['100000']);
    let last = 0;
    let failure: { code?: string } | undefined;
    try {
      for await (const { id, applied } of receiver) {
        await applied;
        expect(id).toBe(last + 1);
        last = id;
        if (id === 3) setTimeout(() => child.process.kill('SIGKILL'), round);
      }
    } catch (error) {
      failure = error as { code: string };
    }
    expect(last).toBeGreaterThanOrEqual(3);
    if (failure !== undefined) expect(failure.code).toBe('HOLDFAST_E_PEER_LOST');
    expect(await region.differences()).toEqual([]);
  }
  expect(footprint().native).toEqual(before.native);
});

describe('connected sockets', () => {
  /** Both ends of a connection; whoever inherits one owns it, and ours are closed. */
  const betweenChildren = async (
    link: 'unix' | 'tcp',
    roles: (ends: { a: unknown; b: unknown }) => [Child, Child],
  ) => {
    const server = createServer({ pauseOnConnect: true });
    server.listen(link === 'tcp' ? { host: '127.0.0.1', port: 0 } : { path: `${region.directory}/socket` });
    await once(server, 'listening');
    const accepting = once(server, 'connection');
    const address = server.address();
    const a = typeof address === 'string' ? connect(address) : connect(address!.port, '127.0.0.1');
    await once(a, 'connect');
    a.pause();
    const [b] = (await accepting) as [Socket];
    const children = roles({ a, b });
    a.destroy();
    b.destroy();
    server.close();
    return children;
  };

  test.each(['unix', 'tcp'] as const)('%s: from a descriptor to a descriptor', async (link) => {
    const [sender, receiver] = await betweenChildren(link, ({ a, b }) => [
      new Child('sender', { to: { fd: 3 }, ...senderOptions() }, ['3'], [a] as StdioOptions),
      new Child('receiver', { listen: { fd: 3 }, ...receiverOptions() }, [], [b] as StdioOptions),
    ]);
    await using _sender = sender;
    await using _receiver = receiver;
    expect(await receiver.line()).toEqual({ port: 0, token: '00'.repeat(32) });
    expect(await sender.ids()).toEqual({ ids: [1, 2, 3], end: null });
    expect(await receiver.ids()).toEqual({ ids: [1, 2, 3], end: null });
    expect(await region.differences()).toEqual([]);
  });

  test('the other end is somebody else', async () => {
    const [sender, receiver] = await betweenChildren('unix', ({ a, b }) => [
      new Child('sender', { to: { fd: 3 }, ...senderOptions(), pageSize: 8192 }, ['3'], [a] as StdioOptions),
      new Child('receiver', { listen: { fd: 3 }, ...receiverOptions() }, [], [b] as StdioOptions),
    ]);
    await using _sender = sender;
    await using _receiver = receiver;
    await receiver.line();
    expect(await sender.line()).toEqual({ end: 'HOLDFAST_E_PROTOCOL' });
    expect(await receiver.line()).toEqual({ end: 'HOLDFAST_E_PROTOCOL' });
  });

  test('a descriptor that is no socket is refused, and closed', async () => {
    const fd = openSync('/dev/null', 'r+');
    await expect(openSender({ to: { fd }, ...senderOptions() })).rejects.toMatchObject({
      code: expect.stringMatching(/^HOLDFAST_E_/),
    });
    const other = openSync('/dev/null', 'r+');
    await expect(openReceiver({ listen: { fd: other }, ...receiverOptions() })).rejects.toMatchObject({
      code: expect.stringMatching(/^HOLDFAST_E_/),
    });
    expect(footprint().descriptors).toBe(before.descriptors + 1); // the region's
  });
});
