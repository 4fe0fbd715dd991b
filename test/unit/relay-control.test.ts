/** The client of the relay's control socket, against a relay that says what the test wants. */

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RelayControl } from '../../lib/output/relay-control.js';
import {
  encodeRelayRequest,
  type RelayMessage,
  RelayMessageDecoder,
  relayRequests,
} from '../../lib/output/relay-protocol.js';

const message = (type: number, value = 0n, body: Buffer = Buffer.alloc(0)): Buffer => {
  const head = Buffer.alloc(16);
  head.writeUInt32LE(type, 0);
  head.writeBigUInt64LE(value, 8);
  return Buffer.concat([head, body]);
};
const hello = (holding: boolean, version = 1n): Buffer =>
  message(0x201, (version << 32n) | (holding ? 1n : 0n));
const output = message(0x200);

/** 96 bytes in which every field has a value of its own. */
const statsBody = (): Buffer => {
  const body = Buffer.alloc(96);
  for (let offset = 0; offset < 72; offset += 8) body.writeBigUInt64LE(BigInt(offset + 1), offset);
  body.writeUInt32LE(5, 72);
  body.writeUInt32LE(1 | 4 | 16, 76);
  body.writeBigUInt64LE(1500n, 80);
  body.writeUInt32LE(7, 88);
  body.writeUInt32LE(8, 92);
  return body;
};
const stats = {
  heldFrames: 1,
  heldBytes: 9,
  boundaryFrames: 17,
  heldBytesPeak: 25,
  outFrames: 33,
  outBytes: 41,
  inFrames: 49,
  inBytes: 57,
  droppedFrames: 65,
  lastDropErrno: 5,
  holding: true,
  qemuConnected: false,
  targetConnected: true,
  stalled: false,
  socketWide: true,
  stalledMs: 1.5,
  stalls: 7,
  discardedFrames: 8,
};

describe('relay protocol', () => {
  it('takes the stream apart at every cut', () => {
    const stream = Buffer.concat([
      hello(true),
      message(0x102, 3n),
      output,
      message(0x105, 0n, statsBody()),
      output,
    ]);
    const expected: RelayMessage[] = [
      { type: 'hello', holding: true, version: 1 },
      { type: 'answer', request: 'boundary', frames: 3 },
      { type: 'output' },
      { type: 'answer', request: 'stats', frames: 0, stats },
      { type: 'output' },
    ];
    for (let cut = 0; cut <= stream.length; cut += 1) {
      const decoder = new RelayMessageDecoder();
      const messages = [...decoder.push(stream.subarray(0, cut)), ...decoder.push(stream.subarray(cut))];
      expect(messages, `cut at ${cut}`).toEqual(expected);
    }
  });

  it('encodes requests, and refuses what no relay sends', () => {
    expect(encodeRelayRequest('release').toString('hex')).toBe(`03000000${'00'.repeat(12)}`);
    for (const type of [0, 3, 0x100, 0x109, 0x202, 0x47455420]) {
      expect(() => new RelayMessageDecoder().push(message(type))).toThrow(/unknown type/);
    }
  });
});

describe('relay control', () => {
  let directory: string;
  let path: string;
  let server: Server;
  let sockets: Socket[];
  /** What the relay answers to a request, by its type. */
  let answer: (type: number, socket: Socket) => void;
  let greeting: Buffer | undefined;

  beforeEach(async () => {
    directory = mkdtempSync('/tmp/hf-relay-');
    path = join(directory, 'control');
    sockets = [];
    greeting = hello(false);
    answer = (type, socket) => socket.write(message(type | 0x100, 2n, type === 5 ? statsBody() : undefined));
    server = createServer((socket) => {
      sockets.push(socket);
      socket.on('error', () => {});
      if (greeting !== undefined) socket.write(greeting);
      socket.on('data', (chunk: Buffer) => {
        for (let at = 0; at < chunk.length; at += 16) answer(chunk.readUInt32LE(at), socket);
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
  });

  afterEach(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
    rmSync(directory, { recursive: true });
  });

  it('asks and gets answers, in order', async () => {
    await using control = await RelayControl.connect(path);
    expect(control.holding).toBe(false);
    expect(await control.hold()).toBe(2);
    expect(control.holding).toBe(true);
    const asked = [control.prepare(), control.boundary(), control.release(), control.stats()];
    expect(await Promise.all(asked)).toEqual([2, 2, 2, stats]);
    expect(await control.open()).toBe(2);
    expect(control.holding).toBe(false);
    await control.pause();
    expect(await control.switchQemu()).toBe(false); // only 1 says that there is one
    expect(Object.keys(relayRequests)).toHaveLength(8);
  });

  it('knows from the greeting that the relay holds', async () => {
    greeting = hello(true);
    await using control = await RelayControl.connect(path);
    expect(control.holding).toBe(true);
  });

  it('hears of output, also of one that came before it listened', async () => {
    greeting = Buffer.concat([hello(true), output]);
    await using control = await RelayControl.connect(path);
    await control.stats(); // behind the output
    let heard = 0;
    control.onOutput(() => {
      heard += 1;
    });
    expect(heard).toBe(1);
    sockets[0]!.write(output);
    await control.stats();
    expect(heard).toBe(2);
  });

  it('tells of the next epoch only when the boundary is known', async () => {
    await using control = await RelayControl.connect(path);
    answer = (type, socket) => socket.write(Buffer.concat([output, message(type | 0x100, 1n), output]));
    const order: string[] = [];
    control.onOutput(() => order.push('output'));
    await control.boundary();
    order.push('boundary');
    await new Promise(setImmediate);
    expect(order).toEqual(['output', 'boundary', 'output']);
  });

  it('says what to do when there is no relay', async () => {
    await expect(RelayControl.connect(join(directory, 'none'))).rejects.toMatchObject({
      code: 'HOLDFAST_E_CONNECT',
      cure: expect.stringContaining('holdfast relay'),
    });
  });

  it('refuses another version, and what is no relay', async () => {
    greeting = hello(true, 2n);
    await expect(RelayControl.connect(path)).rejects.toMatchObject({ code: 'HOLDFAST_E_VERSION' });
    greeting = Buffer.from('220 mail.example.org ESMTP');
    await expect(RelayControl.connect(path)).rejects.toMatchObject({ code: 'HOLDFAST_E_PROTOCOL' });
  });

  it('rejects what waits, and what comes later, when the relay is gone', async () => {
    await using control = await RelayControl.connect(path);
    answer = (_type, socket) => socket.destroy();
    const waiting = Promise.allSettled([control.boundary(), control.release()]);
    for (const { status, reason } of (await waiting) as PromiseRejectedResult[]) {
      expect(status).toBe('rejected');
      expect(reason).toMatchObject({ code: 'HOLDFAST_E_PEER_LOST', cure: expect.stringContaining('relay') });
    }
    expect(await control.closed).toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
    expect(control.isClosed).toBe(true);
    await expect(control.release()).rejects.toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
  });

  it('ends on an answer that was not asked for', async () => {
    await using control = await RelayControl.connect(path);
    answer = (_type, socket) => socket.write(message(0x104));
    await expect(control.release()).rejects.toMatchObject({ code: 'HOLDFAST_E_PROTOCOL' });
  });

  it('is cancelled by its own close', async () => {
    const control = await RelayControl.connect(path);
    answer = () => {};
    const waiting = control.boundary();
    waiting.catch(() => {});
    await control.close();
    await control.close();
    await expect(waiting).rejects.toMatchObject({ code: 'HOLDFAST_E_CANCELLED' });
    expect(await control.closed).toMatchObject({ code: 'HOLDFAST_E_CANCELLED' });
  });
});
