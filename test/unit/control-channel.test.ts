/**
 * The control connection over loopback: a well-behaved pair, and a raw socket
 * that speaks the protocol by hand, to say what no well-behaved peer would.
 */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { deriveSessionKey, frameMac, type HandshakeTranscript, proof } from '../../lib/control/auth.js';
import {
  type ControlChannel,
  ControlServer,
  connectControl,
  HANDSHAKES_MAX,
} from '../../lib/control/channel.js';
import { CONTROL_FRAME_BYTES_MAX, encodeFrame, FrameDecoder } from '../../lib/control/framing.js';
import { CONTROL_VERSIONS, type ControlMessage } from '../../lib/control/messages.js';
import {
  AuthError,
  ConnectError,
  type HoldfastError,
  ProtocolError,
  VersionError,
} from '../../lib/errors.js';

const KEY = Buffer.from('a key of at least sixteen bytes');
const HOST = '127.0.0.1';
const [version] = CONTROL_VERSIONS;

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const listen = async (options: { handshakeTimeoutMs?: number } = {}): Promise<ControlServer> => {
  const server = await ControlServer.listen({ host: HOST, port: 0 }, KEY, options);
  cleanUps.push(() => server.close());
  return server;
};

const pair = async (): Promise<{ client: ControlChannel; server: ControlChannel }> => {
  const listener = await listen();
  const accepted = once(listener, 'channel');
  const client = await connectControl({ host: HOST, port: listener.port }, KEY);
  const [server] = (await accepted) as [ControlChannel];
  cleanUps.push(() => Promise.all([client.close(), server.close()]));
  return { client, server };
};

const nextMessage = async (channel: ControlChannel): Promise<ControlMessage> =>
  ((await once(channel, 'message')) as [ControlMessage])[0];

const closed = async (channel: ControlChannel): Promise<HoldfastError> =>
  ((await once(channel, 'closed')) as [HoldfastError])[0];

const rejected = async (server: ControlServer): Promise<HoldfastError> =>
  ((await once(server, 'rejected')) as [{ error: HoldfastError }])[0].error;

const heartbeat = (sequence: number): ControlMessage => ({ type: 'heartbeat', sequence });

/** A client by hand. */
class Raw {
  readonly socket: Socket;
  readonly #decoder = new FrameDecoder();
  readonly #frames: Buffer[] = [];
  #sessionKey: Buffer | undefined;
  #wake: () => void = () => {};
  ended = false;

  constructor(port: number) {
    this.socket = connect({ host: HOST, port });
    this.socket.on('data', (chunk) => {
      this.#frames.push(...this.#decoder.push(chunk));
      this.#wake();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.ended = true;
      this.#wake();
    });
    cleanUps.push(() => this.socket.destroy());
  }

  say(value: unknown): void {
    this.socket.write(encodeFrame(Buffer.from(JSON.stringify(value))));
  }

  async hear(): Promise<Record<string, string>> {
    while (this.#frames.length === 0) {
      if (this.ended) throw new Error('closed');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return JSON.parse(String(this.#frames.shift())) as Record<string, string>;
  }

  async shake(): Promise<void> {
    const clientNonce = Buffer.alloc(32, 7);
    this.say({
      type: 'hello',
      protocol: 'holdfast',
      versions: [version],
      nonce: clientNonce.toString('hex'),
    });
    const challenge = await this.hear();
    const transcript: HandshakeTranscript = {
      version,
      clientNonce,
      serverNonce: Buffer.from(challenge.nonce ?? '', 'hex'),
    };
    this.say({ type: 'auth', mac: proof(KEY, 'client', transcript).toString('hex') });
    expect((await this.hear()).type).toBe('welcome');
    this.#sessionKey = deriveSessionKey(KEY, transcript);
  }

  frame(sequence: bigint, message: unknown): Buffer {
    const body = Buffer.from(typeof message === 'string' ? message : JSON.stringify(message));
    return encodeFrame(Buffer.concat([frameMac(this.#sessionKey as Buffer, 'client', sequence, body), body]));
  }
}

const rawSession = async (): Promise<{ raw: Raw; channel: ControlChannel; got: ControlMessage[] }> => {
  const listener = await listen();
  const accepted = once(listener, 'channel');
  const raw = new Raw(listener.port);
  await raw.shake();
  const [channel] = (await accepted) as [ControlChannel];
  cleanUps.push(() => channel.close());
  const got: ControlMessage[] = [];
  channel.on('message', (message) => got.push(message));
  channel.start();
  return { raw, channel, got };
};

describe('handshake', () => {
  it('1. ends in a channel on both sides, with the same bulk token', async () => {
    const { client, server } = await pair();
    expect(client.bulkToken).toEqual(server.bulkToken);
    expect(client.bulkToken).toHaveLength(32);
    client.start();
    server.start();
    const atServer = nextMessage(server);
    client.send({ type: 'detach' });
    expect(await atServer).toEqual({ type: 'detach' });
    const atClient = nextMessage(client);
    server.send(heartbeat(3));
    expect(await atClient).toEqual(heartbeat(3));
  });

  it('2. gives each connection a session key of its own', async () => {
    const [first, second] = [await pair(), await pair()];
    expect(first.client.bulkToken).not.toEqual(second.client.bulkToken);
  });

  it('3. with a wrong key is refused, with the reason on both sides', async () => {
    const listener = await listen();
    const refusal = rejected(listener);
    await expect(
      connectControl({ host: HOST, port: listener.port }, Buffer.from('another key of sixteen bytes')),
    ).rejects.toThrow(AuthError);
    expect(await refusal).toBeInstanceOf(AuthError);
  });

  it('4. does not accept a server that only pretends to hold the key', async () => {
    const impostor: Server = createServer((socket) => {
      const decoder = new FrameDecoder();
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        for (const frame of decoder.push(chunk)) {
          const { type } = JSON.parse(String(frame)) as { type: string };
          const answer =
            type === 'hello'
              ? { type: 'challenge', version, nonce: '00'.repeat(32) }
              : { type: 'welcome', mac: '00'.repeat(32) };
          socket.write(encodeFrame(Buffer.from(JSON.stringify(answer))));
        }
      });
    });
    impostor.listen(0, HOST);
    await once(impostor, 'listening');
    cleanUps.push(() => impostor.close());
    const { port } = impostor.address() as { port: number };
    await expect(connectControl({ host: HOST, port }, KEY)).rejects.toThrow(AuthError);
  });

  it('5. without a common version is refused', async () => {
    const listener = await listen();
    const refusal = rejected(listener);
    const raw = new Raw(listener.port);
    raw.say({ type: 'hello', protocol: 'holdfast', versions: [99], nonce: '00'.repeat(32) });
    expect(await raw.hear()).toMatchObject({ type: 'refused', code: 'HOLDFAST_E_VERSION' });
    expect(await refusal).toBeInstanceOf(VersionError);
  });

  it.each([
    ['text', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['zeros', Buffer.alloc(64)],
    ['an oversized length', Buffer.from([0x7f, 0xff, 0xff, 0xff])],
    ['a frame that only an authenticated peer may send', Buffer.from([0x00, 0x00, 0x20, 0x00])],
    ['a frame that is not JSON', encodeFrame(Buffer.from('not json'))],
    ['JSON that is no message', encodeFrame(Buffer.from('{"type":"hello"}'))],
    ['a message out of order', encodeFrame(Buffer.from(`{"type":"auth","mac":"${'00'.repeat(32)}"}`))],
    [
      'a flood of frames',
      Buffer.concat(Array.from({ length: 100 }, () => encodeFrame(Buffer.from('{"type":"x"}')))),
    ],
  ])('6. with %s is closed as a protocol error', async (_name, bytes) => {
    const listener = await listen();
    const refusal = rejected(listener);
    const raw = new Raw(listener.port);
    raw.socket.write(bytes);
    expect(await refusal).toBeInstanceOf(ProtocolError);
    if (!raw.ended) await once(raw.socket, 'close');
  });

  it('7. that is cut off ends', async () => {
    const listener = await listen();
    const refusal = rejected(listener);
    const raw = new Raw(listener.port);
    raw.socket.write(encodeFrame(Buffer.from('{"type":"hello"}')).subarray(0, 9));
    raw.socket.end();
    expect(await refusal).toBeInstanceOf(ConnectError);
  });

  it('8. that dawdles is given up at the deadline, however it drips', async () => {
    const listener = await listen({ handshakeTimeoutMs: 80 });
    const refusal = rejected(listener);
    const raw = new Raw(listener.port);
    const hello = encodeFrame(Buffer.from('{"type":"hello"}'));
    let sent = 0;
    const drip = setInterval(() => {
      if (sent < hello.length - 1) raw.socket.write(hello.subarray(sent, ++sent));
    }, 10);
    cleanUps.push(() => clearInterval(drip));
    expect(await refusal).toBeInstanceOf(ConnectError);
  });

  it('9. with a server that says nothing is given up at the deadline', async () => {
    const silent = createServer(() => {});
    silent.listen(0, HOST);
    await once(silent, 'listening');
    cleanUps.push(() => silent.close());
    const { port } = silent.address() as { port: number };
    await expect(connectControl({ host: HOST, port }, KEY, { timeoutMs: 50 })).rejects.toThrow(ConnectError);
  });

  it('10. is refused to more than the limit at a time, and open again afterwards', async () => {
    const listener = await listen({ handshakeTimeoutMs: 30_000 });
    const idle: Raw[] = [];
    for (let index = 0; index < HANDSHAKES_MAX; index += 1) {
      const raw = new Raw(listener.port);
      await once(raw.socket, 'connect');
      idle.push(raw);
    }
    await expect(connectControl({ host: HOST, port: listener.port }, KEY)).rejects.toThrow(ConnectError);
    const ended = rejected(listener);
    idle[0]?.socket.destroy();
    await ended;
    const client = await connectControl({ host: HOST, port: listener.port }, KEY);
    await client.close();
  });

  it('11. can be cancelled, and a port nobody listens on is reported as such', async () => {
    const listener = await listen();
    const { port } = listener;
    await expect(connectControl({ host: HOST, port }, KEY, { signal: AbortSignal.abort() })).rejects.toThrow(
      ConnectError,
    );
    await listener.close();
    await expect(connectControl({ host: HOST, port }, KEY)).rejects.toThrow(ConnectError);
  });
});

describe('channel', () => {
  it('20. keeps what comes right behind the welcome until start()', async () => {
    const listener = await listen();
    listener.on('channel', (channel) => {
      channel.send(heartbeat(1));
      channel.send(heartbeat(2));
      cleanUps.push(() => channel.close());
    });
    const client = await connectControl({ host: HOST, port: listener.port }, KEY);
    cleanUps.push(() => client.close());
    const got: ControlMessage[] = [];
    const both = new Promise<void>((resolve) => {
      client.on('message', (message) => {
        got.push(message);
        if (got.length === 2) resolve();
      });
    });
    client.start();
    await both;
    expect(got).toEqual([heartbeat(1), heartbeat(2)]);
  });

  it('21. carries the largest message a session needs, and refuses a larger one', async () => {
    const { client, server } = await pair();
    client.start();
    server.start();
    const message = (bytes: number): ControlMessage => ({
      type: 'session',
      vmId: '00000000-0000-4000-8000-000000000000',
      vmName: 'vm',
      term: 1,
      outputHeld: false,
      ramBytes: 1,
      pageSize: 4096,
      deviceBytesMax: 1,
      heartbeatIntervalMs: 40,
      heartbeatTimeoutMs: 200,
      standby: {
        binary: 'qemu-system-x86_64',
        qemuVersion: '7.2.22',
        argv: Array.from({ length: bytes / 1000 }, () => 'x'.repeat(997)),
        cwd: '/',
        machineType: 'q35',
        backendId: 'ram',
        replacements: [],
      },
    });
    const arrived = nextMessage(server);
    client.send(message(900_000));
    expect((await arrived).type).toBe('session');
    expect(() => client.send(message(CONTROL_FRAME_BYTES_MAX + 1000))).toThrow(ProtocolError);
  });

  it('22. is ended by a tampered frame', async () => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    const frame = raw.frame(0n, heartbeat(1));
    frame.writeUInt8(frame.readUInt8(frame.length - 2) ^ 1, frame.length - 2);
    raw.socket.write(frame);
    expect(await ended).toBeInstanceOf(ProtocolError);
    expect(got).toEqual([]);
  });

  it('23. is ended by a replayed frame', async () => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    const frame = raw.frame(0n, heartbeat(1));
    raw.socket.write(Buffer.concat([frame, frame]));
    expect(await ended).toBeInstanceOf(ProtocolError);
    expect(got).toEqual([heartbeat(1)]);
  });

  it('24. is ended by reordered frames', async () => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    raw.socket.write(Buffer.concat([raw.frame(1n, heartbeat(2)), raw.frame(0n, heartbeat(1))]));
    expect(await ended).toBeInstanceOf(ProtocolError);
    expect(got).toEqual([]);
  });

  it('25. is ended by a frame of its own, reflected', async () => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    const reflected = once(raw.socket, 'data');
    channel.send(heartbeat(9));
    raw.socket.write(((await reflected) as [Buffer])[0]);
    expect(await ended).toBeInstanceOf(ProtocolError);
    expect(got).toEqual([]);
  });

  it.each([
    ['an unknown type', { type: 'surrender' }],
    ['a key too many', { type: 'detach', force: true }],
    ['a wrong kind of value', { type: 'heartbeat', sequence: -1 }],
    ['no JSON', 'held'],
  ])('26. is ended by a message with %s', async (_name, message) => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    raw.socket.write(raw.frame(0n, message));
    expect(await ended).toBeInstanceOf(ProtocolError);
    expect(got).toEqual([]);
  });

  it('27. is ended by an oversized length and by a frame too short for a MAC', async () => {
    for (const bytes of [Buffer.from([0xff, 0xff, 0xff, 0xff]), encodeFrame(Buffer.alloc(32))]) {
      const { raw, channel } = await rawSession();
      const ended = closed(channel);
      raw.socket.write(bytes);
      expect(await ended).toBeInstanceOf(ProtocolError);
    }
  });

  it('28. is lost, not in error, when the peer goes in the middle of a frame', async () => {
    const { raw, channel, got } = await rawSession();
    const ended = closed(channel);
    raw.socket.write(raw.frame(0n, heartbeat(1)).subarray(0, 20));
    raw.socket.end();
    expect((await ended).code).toBe('HOLDFAST_E_PEER_LOST');
    expect(got).toEqual([]);
  });

  it('29. delivers what was sent before close(), then closes once on both sides', async () => {
    const { client, server } = await pair();
    const got: ControlMessage[] = [];
    let closings = 0;
    server.on('message', (message) => got.push(message));
    server.on('closed', () => {
      closings += 1;
    });
    client.on('closed', () => {
      closings += 1;
    });
    client.start();
    server.start();
    const ended = closed(server);
    for (let index = 0; index < 50; index += 1) server.send(heartbeat(index)); // unread when the client closes
    client.send({ type: 'vm-lost', reason: 'killed' });
    await client.close();
    await ended;
    await client.close();
    expect(got).toEqual([{ type: 'vm-lost', reason: 'killed' }]);
    expect(closings).toBe(2);
    expect(client.isClosed && server.isClosed).toBe(true);
    expect(client.send(heartbeat(1))).toBe(false);
  });

  it('30. ends when the peer reads nothing and the queue is at its limit', async () => {
    const { client, server } = await pair(); // the server's channel is never started: nothing is read
    client.start();
    const ended = closed(client);
    const text = 'x'.repeat(4000);
    for (let index = 0; index < 20_000 && !client.isClosed; index += 1) {
      client.send({ type: 'failure', code: 'HOLDFAST_E_LIMIT', message: text });
    }
    expect((await ended).code).toBe('HOLDFAST_E_PEER_LOST');
    expect(server.isClosed).toBe(false);
  });

  it('31. outlives the listener, whose close() does not wait for it', async () => {
    const listener = await listen();
    const accepted = once(listener, 'channel');
    const client = await connectControl({ host: HOST, port: listener.port }, KEY);
    const [server] = (await accepted) as [ControlChannel];
    cleanUps.push(() => Promise.all([client.close(), server.close()]));
    await listener.close();
    client.start();
    server.start();
    const arrived = nextMessage(server);
    client.send({ type: 'detach' });
    expect(await arrived).toEqual({ type: 'detach' });
  });
});
