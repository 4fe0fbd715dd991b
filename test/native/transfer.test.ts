/** openSender and openReceiver: what arrives, in which order, and what is left behind. */

import { closeSync, existsSync, openSync, readFileSync, truncateSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { unavailableSenders } from '../../lib/send/sender-availability.js';
import { senderStrategies } from '../../lib/send/sender-choice.js';
import { openReceiver } from '../../lib/transfer/receiver.js';
import { openSender } from '../../lib/transfer/sender.js';
import { type Footprint, footprint, nothingPinned, pageBytes, Region, TransferPair } from './transfer-lab.js';

const unavailable = unavailableSenders(native.probeSenders());
const strategies = senderStrategies.filter((strategy) => !unavailable.has(strategy));

let before: Footprint;

beforeEach(() => {
  before = footprint();
});

afterEach(async () => {
  expect(footprint()).toEqual(before);
  await nothingPinned();
});

const whole = (region: Region) => ({ firstPage: 0, pages: region.pages });

describe('a transfer', () => {
  test.each(['auto', ...strategies] as const)('by %s, direct and staged', async (strategy) => {
    using region = new Region(600);
    region.randomize(whole(region));
    region.write({ firstPage: 100, pages: 50 }, new Uint8Array());
    for (const staged of [false, true]) {
      await using pair = await TransferPair.open(region, { sender: { strategy, staged } });
      const sending = pair.sender.send([whole(region)], { metadata: Buffer.from('all of it') });
      const { id, metadata, applied, pages } = await pair.received();
      await applied;
      const result = await sending;
      expect(result).toMatchObject({ id: 1, pages: 550, zeroPages: 50 });
      expect(result.copiedBytes + result.referenceBytes).toBe(550 * pageBytes);
      expect(result.ackMs).toBeGreaterThan(0);
      if (strategy !== 'auto') expect(result.strategy).toBe(strategy);
      expect({ id, pages, metadata: Buffer.from(metadata).toString() }).toEqual({
        id: 1,
        pages: 550,
        metadata: 'all of it',
      });
      expect(await region.differences()).toEqual([]);
    }
  });

  test.each([1, 4])('over %d streams, only the pages named', async (streams) => {
    using region = new Region(5000);
    await using pair = await TransferPair.open(region, { sender: { streams } });
    region.randomize(whole(region));
    const [sent, received] = await Promise.all([
      pair.sender.send(Uint32Array.of(1, 2, 10, 4000)),
      pair.received(),
    ]);
    expect(sent.pages).toBe(4002);
    expect(received.pages).toBe(4002);
    const different = await region.differences();
    expect(different).toEqual([0, 3, 4, 5, 6, 7, 8, 9, 4010, 4011]);
  });

  test('of metadata alone, and of nothing', async () => {
    using region = new Region(1);
    await using pair = await TransferPair.open(region);
    void pair.sender.send([], { metadata: Uint8Array.of(7) });
    void pair.sender.send([]);
    expect(await pair.received()).toMatchObject({ id: 1, pages: 0, metadata: Buffer.of(7) });
    expect(await pair.received()).toMatchObject({ id: 2, pages: 0, metadata: Buffer.alloc(0) });
  });

  test('from a descriptor and an offset, without digest', async () => {
    using region = new Region(64);
    region.randomize(whole(region));
    const fd = openSync(region.path, 'r');
    const opening = TransferPair.open(region, {
      sender: { file: fd, fileOffset: 32 * pageBytes, regionBytes: 32 * pageBytes, verify: false },
      receiver: { regionBytes: 32 * pageBytes, verify: false },
    });
    await using pair = await opening;
    closeSync(fd); // the sender has its own
    const [result] = await Promise.all([pair.sender.send([{ firstPage: 0, pages: 32 }]), pair.received()]);
    expect(result.pages).toBe(32);
    const sent = readFileSync(region.path).subarray(32 * pageBytes);
    expect(readFileSync(region.replicaPath).equals(sent)).toBe(true);
  });

  test('staged: the region may change once `staged` has settled', async () => {
    using region = new Region(256);
    region.randomize(whole(region));
    const original = readFileSync(region.path);
    await using pair = await TransferPair.open(region, { sender: { staged: true, strategy: 'splice' } });
    const transfer = pair.sender.send([whole(region)]);
    await transfer.staged;
    region.write(whole(region), Buffer.from('overwritten'));
    const [result] = await Promise.all([transfer, pair.received()]);
    expect(result.stageMs).toBeGreaterThan(0);
    expect(readFileSync(region.replicaPath).equals(original)).toBe(true);
  });

  test('after transfer, a thousand times', async () => {
    using region = new Region(64);
    await using pair = await TransferPair.open(region, {
      sender: { staged: true },
      receiver: { aheadMax: 16 },
    });
    const ids = (async () => {
      const seen: number[] = [];
      for await (const received of pair.receiver) {
        expect(Buffer.from(received.metadata).readUInt32LE()).toBe(received.id);
        seen.push(received.id);
        if (received.id === 1000) {
          await received.applied;
          break;
        }
      }
      return seen;
    })();
    let warm: Footprint | undefined;
    for (let id = 1; id <= 1000; id++) {
      region.write({ firstPage: id % 64, pages: 1 }, Buffer.from(`transfer ${id}`));
      const metadata = Buffer.alloc(4);
      metadata.writeUInt32LE(id);
      expect((await pair.sender.send([{ firstPage: id % 64, pages: 1 }], { metadata })).id).toBe(id);
      if (id === 100) warm = footprint();
    }
    expect(footprint()).toEqual(warm);
    expect(await ids).toEqual(Array.from({ length: 1000 }, (_, index) => index + 1));
    expect(await region.differences()).toEqual([]);
  });
});

describe('the receiver', () => {
  test('leaves the file alone until the next transfer is asked for', async () => {
    using region = new Region(16);
    await using pair = await TransferPair.open(region);
    const contents = ['first', 'second', 'third'];
    for (const content of contents.slice(0, 2)) {
      region.write(whole(region), Buffer.from(content));
      await pair.sender.send([whole(region)]);
    }
    // Two are acknowledged: the third has to wait, for nobody has taken the first yet.
    region.write(whole(region), Buffer.from('third'));
    const third = pair.sender.send([whole(region)]);
    let settled = false;
    void third.then(() => (settled = true));
    for (let look = 0; look < 3; look++) {
      await new Promise(setImmediate);
      expect(settled).toBe(false);
    }
    for (const content of contents) {
      const { applied } = await pair.received();
      await applied;
      for (let look = 0; look < 3; look++) {
        expect(readFileSync(region.replicaPath).toString('latin1', 0, content.length)).toBe(content);
        await new Promise(setImmediate);
      }
    }
    await third;
  });

  test('serves one sender after the other', async () => {
    using region = new Region(8);
    await using pair = await TransferPair.open(region);
    await Promise.all([pair.sender.send([whole(region)]), pair.received()]);
    await pair.sender.close();
    region.randomize(whole(region));
    const { port, token } = pair.receiver;
    const options = { to: { host: '127.0.0.1', port, token }, file: region.path, regionBytes: region.bytes };
    await using next = await retryBusy(() => openSender({ ...options, firstId: 2 }));
    const [result] = await Promise.all([next.send([whole(region)]), pair.received()]);
    expect(result.id).toBe(2);
    expect(await region.differences()).toEqual([]);
    expect(pair.receiver.lastInterruption).toBeUndefined();
    // An id that was committed already is refused.
    await next.close();
    await using late = await retryBusy(() => openSender({ ...options, firstId: 2 }));
    await expect(late.send([])).rejects.toMatchObject({ code: 'HOLDFAST_E_PROTOCOL' });
  });

  test('once: ends with the first connection, after what it sent', async () => {
    using region = new Region(8);
    await using pair = await TransferPair.open(region, { receiver: { once: true } });
    await pair.sender.send([whole(region)]);
    await pair.sender.send([whole(region)]);
    await pair.sender.close();
    const ids: number[] = [];
    for await (const { id } of pair.receiver) ids.push(id);
    expect(ids).toEqual([1, 2]);
  });

  test('closed: the iterator ends, what was not applied never will be', async () => {
    using region = new Region(8);
    await using pair = await TransferPair.open(region);
    await pair.sender.send([whole(region)]);
    const { value } = await pair.receiver[Symbol.asyncIterator]().next();
    await value!.applied;
    const next = pair.receiver[Symbol.asyncIterator]().next();
    await pair.receiver.close();
    expect(await next).toEqual({ value: undefined, done: true });
    await expect(pair.sender.send([whole(region)])).rejects.toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
    expect(existsSync(region.replicaPath)).toBe(true);
  });
});

describe('refused', () => {
  test.each([
    ['a wrong token', { token: new Uint8Array(32).fill(1) }, {}, 'HOLDFAST_E_AUTH'],
    ['another page size', {}, { pageSize: 8192 }, 'HOLDFAST_E_PROTOCOL'],
    ['another region', {}, { regionBytes: 8 * pageBytes }, 'HOLDFAST_E_PROTOCOL'],
    ['a file shorter than the region', {}, { fileOffset: 8 * pageBytes }, 'HOLDFAST_E_LIMIT'],
    ['a file that does not exist', {}, { file: '/nonexistent' }, 'HOLDFAST_E_SYSCALL'],
    ['a descriptor that is not open', {}, { file: 9999 }, 'HOLDFAST_E_SYSCALL'],
  ])('%s', async (_name, to, sender, code) => {
    using region = new Region(16);
    await using receiver = await openReceiver({
      listen: { host: '127.0.0.1' },
      file: region.replicaPath,
      regionBytes: region.bytes,
    });
    const address = { host: '127.0.0.1', port: receiver.port, token: receiver.token, ...to };
    await expect(
      openSender({ to: address, file: region.path, regionBytes: region.bytes, ...sender }),
    ).rejects.toMatchObject({ code });
  });

  test('a strategy that this kernel lacks, with the reason', async () => {
    using region = new Region(1);
    for (const [strategy, reason] of unavailable) {
      await expect(TransferPair.open(region, { sender: { strategy } })).rejects.toMatchObject({
        code: 'HOLDFAST_E_UNSUPPORTED',
        message: expect.stringContaining(reason),
      });
    }
  });

  test('nobody listens', async () => {
    using region = new Region(1);
    const receiver = await openReceiver({
      listen: { host: '127.0.0.1' },
      file: region.replicaPath,
      regionBytes: region.bytes,
    });
    await receiver.close();
    const to = { host: '127.0.0.1', port: receiver.port };
    await expect(openSender({ to, file: region.path, regionBytes: region.bytes })).rejects.toMatchObject({
      code: 'HOLDFAST_E_CONNECT',
    });
  });

  test('a file system that is full, a path that is a directory', async () => {
    using region = new Region(1);
    const listen = { host: '127.0.0.1' };
    await expect(
      openReceiver({ listen, file: region.replicaPath, regionBytes: 2 ** 38 }),
    ).rejects.toMatchObject({ code: 'HOLDFAST_E_NO_SPACE' });
    expect(existsSync(region.replicaPath)).toBe(false);
    await expect(openReceiver({ listen, file: region.directory, regionBytes: 4096 })).rejects.toMatchObject({
      code: 'HOLDFAST_E_SYSCALL',
    });
  });

  test('runs, metadata and queue out of bounds; the sender goes on', async () => {
    using region = new Region(16);
    await using pair = await TransferPair.open(region, {
      sender: { staged: true, stagingBytesMax: 8 * pageBytes },
    });
    const refusals = [
      [[{ firstPage: 16, pages: 1 }], 'HOLDFAST_E_CONFIG'],
      [Uint32Array.of(1), 'HOLDFAST_E_CONFIG'],
      [[{ firstPage: 0, pages: 9 }], 'HOLDFAST_E_LIMIT'],
    ] as const;
    for (const [runs, code] of refusals) {
      const transfer = pair.sender.send(runs);
      await expect(transfer).rejects.toMatchObject({ code });
      await expect(transfer.staged).rejects.toMatchObject({ code });
    }
    await expect(pair.sender.send([], { metadata: new Uint8Array(2 ** 20 + 1) })).rejects.toMatchObject({
      code: 'HOLDFAST_E_LIMIT',
    });
    const queued = Array.from({ length: 65 }, () => pair.sender.send([{ firstPage: 0, pages: 8 }]));
    await expect(queued.pop()).rejects.toMatchObject({ code: 'HOLDFAST_E_LIMIT' });
    const consumed = (async () => {
      for await (const { id } of pair.receiver) if (id === 64) return;
    })();
    // The one that could not be staged left no gap.
    expect((await Promise.all(queued)).map(({ id }) => id)).toEqual(
      Array.from({ length: 64 }, (_, index) => index + 1),
    );
    await consumed;
  });

  test('a file that has shrunk', async () => {
    using region = new Region(16);
    await using pair = await TransferPair.open(region);
    truncateSync(region.path, 8 * pageBytes);
    await expect(pair.sender.send([{ firstPage: 0, pages: 1 }])).rejects.toMatchObject({
      code: 'HOLDFAST_E_LIMIT',
    });
  });
});

/** The receiver notices a moment later than we that a connection has ended. */
const retryBusy = async <T>(attempt: () => Promise<T>): Promise<T> => {
  const deadline = Date.now() + 5_000;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if ((error as { code?: string }).code !== 'HOLDFAST_E_CONNECT' || Date.now() > deadline) throw error;
    }
  }
};
