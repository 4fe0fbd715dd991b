/** The client of the disk server's control socket, against a server that says what the test wants. */

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DiskControl } from '../../lib/disk/disk-control.js';
import {
  type DiskMessage,
  DiskMessageDecoder,
  diskRequests,
  encodeDiskRequest,
} from '../../lib/disk/disk-protocol.js';
import {
  ConnectError,
  DiskError,
  NoSpaceError,
  PeerLostError,
  ProtocolError,
  VersionError,
} from '../../lib/errors.js';

const message = (type: number, value = 0n, errno = 0, body: Buffer = Buffer.alloc(0)): Buffer => {
  const head = Buffer.alloc(16);
  head.writeUInt32LE(type, 0);
  head.writeUInt32LE(errno, 4);
  head.writeBigUInt64LE(value, 8);
  return Buffer.concat([head, body]);
};
const hello = (flags: bigint, version = 1n): Buffer => message(0x201, (version << 32n) | flags);

/** 160 bytes in which every field has a value of its own. */
const statsBody = (): Buffer => {
  const body = Buffer.alloc(160);
  for (let offset = 0; offset < 160; offset += 8) body.writeBigUInt64LE(BigInt(offset + 1), offset);
  body.writeUInt32LE(28, 144);
  body.writeUInt32LE(1 | 4 | 16, 148);
  return body;
};
const stats = {
  ...{ imageBytes: 1, reads: 9, readBytes: 17, writes: 25, writeBytes: 33, zeros: 41, trims: 49 },
  ...{ flushes: 57, flushMs: 0.065, flushMsMax: 0.073, stalls: 81, stalledMs: 0.089 },
  ...{ loggedBytes: 97, ringBytes: 105, ringUsedBytes: 113, ringUsedBytesPeak: 121, markedBlocks: 129 },
  ...{ errors: 137, lastErrno: 28, flushesEarly: 153 },
  ...{ logging: true, active: false, fault: true, stalled: false, bound: true },
};

describe('disk protocol', () => {
  it('takes the stream apart at every cut', () => {
    const stream = Buffer.concat([
      hello(2n),
      message(0x101, 4096n),
      message(0x108, 160n, 0, statsBody()),
      message(0x106, 0n, 16),
    ]);
    const expected: DiskMessage[] = [
      { type: 'hello', logging: false, active: true, version: 1 },
      { type: 'answer', request: 'logStart', errno: 0, value: 4096 },
      { type: 'answer', request: 'stats', errno: 0, value: 160, stats },
      { type: 'answer', request: 'activate', errno: 16, value: 0 },
    ];
    for (let cut = 0; cut <= stream.length; cut++) {
      const decoder = new DiskMessageDecoder();
      const messages = [...decoder.push(stream.subarray(0, cut)), ...decoder.push(stream.subarray(cut))];
      expect(messages).toEqual(expected);
    }
  });

  it('encodes requests, a sync id behind the head', () => {
    expect(encodeDiskRequest('bind', 4711)).toEqual(message(diskRequests.bind, 4711n));
    const id = '00112233445566778899aabbccddeeff';
    expect(encodeDiskRequest('syncIdSet', 0, id)).toEqual(message(5, 0n, 0, Buffer.from(id, 'hex')));
    expect(() => encodeDiskRequest('syncIdSet', 0, 'ff')).toThrow(RangeError);
  });

  it('refuses what no disk server says', () => {
    expect(() => new DiskMessageDecoder().push(message(0x123))).toThrow(ProtocolError);
    expect(() => new DiskMessageDecoder().push(message(3))).toThrow(ProtocolError);
  });
});

describe('control connection', () => {
  let dir: string;
  let server: Server;
  let peer: Socket;
  let greeting: Buffer;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'holdfast-disk-control-'));
    greeting = hello(2n);
    server = createServer((socket) => {
      peer = socket;
      socket.on('error', () => {});
      socket.write(greeting);
    });
    await new Promise<void>((resolve) => server.listen(join(dir, 'ctl'), resolve));
  });

  afterEach(async () => {
    peer?.destroy();
    await new Promise<void>((resolve) => server.close(() => resolve()));
    rmSync(dir, { recursive: true, force: true });
  });

  const connect = (): Promise<DiskControl> => DiskControl.connect(join(dir, 'ctl'));

  it('asks and is answered, in order', async () => {
    await using control = await connect();
    expect(control.isActive).toBe(true);
    peer.on('data', () => {});
    const asked = Promise.all([control.startLog(), control.rotateMap(), control.stats()]);
    peer.write(Buffer.concat([message(0x101, 7n), message(0x103, 8n), message(0x108, 160n, 0, statsBody())]));
    expect(await asked).toEqual([7, 8, stats]);
  });

  it('tells a refusal by its errno, and goes on', async () => {
    greeting = hello(0n);
    await using control = await connect();
    expect(control.isActive).toBe(false);
    const refused = control.activate();
    peer.write(message(0x106, 0n, 16));
    await expect(refused).rejects.toThrow(DiskError);
    await expect(refused).rejects.toThrow(/refused activate: EBUSY/);
    const full = control.activate();
    peer.write(message(0x106, 0n, 28));
    await expect(full).rejects.toThrow(NoSpaceError);
    const again = control.activate();
    peer.write(message(0x106));
    await again;
    expect(control.isActive).toBe(true);
  });

  it('rejects what waits when the server goes, and says so once', async () => {
    const control = await connect();
    const asked = control.stats();
    peer.destroy();
    await expect(asked).rejects.toThrow(PeerLostError);
    expect(await control.closed).toBeInstanceOf(PeerLostError);
    await expect(control.startLog()).rejects.toThrow(PeerLostError);
    await control.close();
  });

  it('ends the connection on an answer that nobody asked for', async () => {
    const control = await connect();
    peer.write(message(0x101));
    expect(await control.closed).toBeInstanceOf(ProtocolError);
  });

  it('refuses another version, and where nobody listens', async () => {
    greeting = hello(2n, 2n);
    await expect(connect()).rejects.toThrow(VersionError);
    await expect(DiskControl.connect(join(dir, 'none'))).rejects.toThrow(ConnectError);
  });
});
