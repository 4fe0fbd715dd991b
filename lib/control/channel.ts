/**
 * The authenticated control connection, the same class on both sides.
 *
 * A channel exists only once both sides have proved that they hold the key
 * (auth.ts). Then it carries ControlMessages, each under a MAC with a sequence
 * number, so that nothing can be inserted, replayed or reordered. The first
 * frame that can't be parsed ends it: `closed` tells why.
 */
import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import {
  AuthError,
  ConnectError,
  type HoldfastError,
  PeerLostError,
  ProtocolError,
  toHoldfastError,
  VersionError,
} from '../errors.js';
import {
  type Direction,
  deriveBulkToken,
  deriveSessionKey,
  frameMac,
  type HandshakeTranscript,
  MAC_BYTES,
  NONCE_BYTES,
  proof,
  sameMac,
} from './auth.js';
import { encodeFrame, FrameDecoder } from './framing.js';
import {
  CONTROL_VERSIONS,
  type ControlMessage,
  controlMessage,
  type HandshakeMessage,
  handshakeMessage,
  warmUpMessages,
} from './messages.js';

/** A handshake that takes longer is given up. */
export const HANDSHAKE_TIMEOUT_MS = 5_000;
/** What a peer may send before it has proved that it holds the key; handshake messages take a few hundred bytes. */
export const HANDSHAKE_FRAME_BYTES_MAX = 4 << 10;
/** Frames that may lie unread behind a handshake message; nobody has a reason to send even two. */
export const HANDSHAKE_FRAMES_MAX = 16;
/** How long close() waits for the peer to have read everything and to close, too. */
const LINGER_MS = 200;
/** Connections in the handshake at one time; more are closed at once. */
export const HANDSHAKES_MAX = 8;
/** Bytes queued towards a peer that doesn't read; beyond it the channel ends. */
export const SEND_QUEUE_BYTES_MAX = 4 << 20;

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

interface ChannelEvents {
  message: [ControlMessage];
  closed: [HoldfastError];
}

export class ControlChannel extends EventEmitter<ChannelEvents> {
  readonly #socket: Socket;
  readonly #sessionKey: Buffer;
  readonly #self: Direction;
  readonly #decoder: FrameDecoder;
  readonly #early: readonly Buffer[];
  #sendSequence = 0n;
  #receiveSequence = 0n;
  #closed: HoldfastError | undefined;
  #lastReceivedMs = performance.now();

  /** @internal use connectControl or ControlServer */
  constructor(socket: Socket, sessionKey: Buffer, self: Direction, reader: HandshakeReader) {
    super();
    this.#early = reader.release();
    this.#decoder = reader.decoder;
    this.#decoder.liftLimit();
    this.#socket = socket;
    this.#sessionKey = sessionKey;
    this.#self = self;
    socket.pause(); // until start()
    socket.on('error', (error) => this.#end(new PeerLostError(`control connection: ${error.message}`)));
    socket.on('close', () => this.#end(new PeerLostError('control connection: closed by the peer')));
  }

  get remote(): string {
    return `${this.#socket.remoteAddress ?? '?'}:${this.#socket.remotePort ?? 0}`;
  }

  get isClosed(): boolean {
    return this.#closed !== undefined;
  }

  /** 32 bytes that bulk connections of this session must show. */
  get bulkToken(): Buffer {
    return deriveBulkToken(this.#sessionKey);
  }

  /** Milliseconds since anything valid arrived. */
  idleMs(): number {
    return performance.now() - this.#lastReceivedMs;
  }

  /** Queues a message; false if the channel is closed already. */
  send(message: ControlMessage): boolean {
    if (this.#closed !== undefined) return false;
    const body = Buffer.from(JSON.stringify(message));
    const mac = frameMac(this.#sessionKey, this.#self, this.#sendSequence, body);
    this.#sendSequence += 1n;
    this.#socket.write(encodeFrame(Buffer.concat([mac, body])));
    if (this.#socket.writableLength > SEND_QUEUE_BYTES_MAX) {
      this.#end(
        new PeerLostError(
          `control connection: the peer does not read (${this.#socket.writableLength} bytes queued)`,
        ),
      );
    }
    return this.#closed === undefined;
  }

  /**
   * Sends what is queued and closes; emits `closed` if it wasn't. Settles when
   * the peer has closed as well, or soon after: a socket that is closed over
   * unread data is reset, and the last message (vm-lost, detach) could be lost.
   */
  async close(): Promise<void> {
    if (this.#closed === undefined) {
      this.#closed = new PeerLostError('control connection: closed by this side');
      this.emit('closed', this.#closed);
    }
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS);
      this.#socket.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
      this.#socket.end();
      this.#socket.resume(); // what still arrives is read and dropped
    });
  }

  /** Begins delivery of messages. Call it once the listeners are in place. */
  start(): void {
    warmUpMessages();
    this.#lastReceivedMs = performance.now();
    for (const frame of this.#early) this.#handle(frame);
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.#socket.resume();
  }

  #receive(chunk: Buffer): void {
    if (this.#closed !== undefined) return; // lingering
    let frames: Buffer[];
    try {
      frames = this.#decoder.push(chunk);
    } catch (error) {
      this.#end(toHoldfastError(error));
      return;
    }
    for (const frame of frames) this.#handle(frame);
  }

  #handle(frame: Buffer): void {
    if (this.#closed !== undefined) return;
    const peer: Direction = this.#self === 'client' ? 'server' : 'client';
    const body = frame.subarray(MAC_BYTES);
    if (
      frame.length <= MAC_BYTES ||
      !sameMac(frame.subarray(0, MAC_BYTES), frameMac(this.#sessionKey, peer, this.#receiveSequence, body))
    ) {
      this.#end(new ProtocolError(`control frame ${this.#receiveSequence} has a wrong MAC`));
      return;
    }
    this.#receiveSequence += 1n;
    const parsed = parseJson(body, (value) => controlMessage.safeParse(value));
    if (!parsed.ok) {
      this.#end(new ProtocolError(`control message: ${parsed.why}`));
      return;
    }
    this.#lastReceivedMs = performance.now();
    this.emit('message', parsed.value);
  }

  #end(reason: HoldfastError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#socket.destroy();
    this.emit('closed', reason);
  }
}

type Parsed<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly why: string };

interface SafeParse<T> {
  readonly success: boolean;
  readonly data?: T;
  readonly error?: {
    readonly issues: readonly { readonly path: readonly PropertyKey[]; readonly message: string }[];
  };
}

const parseJson = <T>(body: Buffer, check: (value: unknown) => SafeParse<T>): Parsed<T> => {
  let value: unknown;
  try {
    value = JSON.parse(body.toString('utf8'));
  } catch {
    return { ok: false, why: 'not JSON' };
  }
  const result = check(value);
  if (result.success) return { ok: true, value: result.data as T };
  const issue = result.error?.issues[0];
  return {
    ok: false,
    why: `${issue?.path.map(String).join('.') || 'message'}: ${issue?.message ?? 'invalid'}`,
  };
};

/** Reads handshake frames one by one, within a deadline, without losing what follows them. */
class HandshakeReader {
  readonly decoder: FrameDecoder;
  readonly #frames: Buffer[] = [];
  #failure: HoldfastError | undefined;
  #wake: (() => void) | undefined;
  readonly #socket: Socket;
  readonly #onData = (chunk: Buffer): void => {
    try {
      this.#frames.push(...this.decoder.push(chunk));
      if (this.#frames.length > HANDSHAKE_FRAMES_MAX) {
        throw new ProtocolError('control handshake: more frames than it has');
      }
    } catch (error) {
      this.#failure = toHoldfastError(error);
      this.#socket.pause();
    }
    this.#wake?.();
  };
  readonly #onError = (error: Error): void => {
    this.#failure ??= new ConnectError(`control connection: ${error.message}`);
    this.#wake?.();
  };
  readonly #onClose = (): void => {
    this.#failure ??= new ConnectError('control connection: closed during the handshake');
    this.#wake?.();
  };

  /** @param frameBytesMax limit on what the peer sends before it is authenticated. */
  constructor(socket: Socket, frameBytesMax?: number) {
    this.decoder = new FrameDecoder(frameBytesMax);
    this.#socket = socket;
    socket.on('data', this.#onData);
    socket.on('error', this.#onError);
    socket.on('close', this.#onClose);
  }

  /** Lets go of the socket and returns frames that came early. */
  release(): readonly Buffer[] {
    this.#socket.off('data', this.#onData);
    this.#socket.off('error', this.#onError);
    this.#socket.off('close', this.#onClose);
    return this.#frames;
  }

  async next(signal: AbortSignal): Promise<HandshakeMessage> {
    while (this.#frames.length === 0 && this.#failure === undefined) {
      if (signal.aborted) throw new ConnectError('control connection: the handshake took too long');
      await new Promise<void>((resolve) => {
        const onAbort = (): void => resolve();
        signal.addEventListener('abort', onAbort, { once: true });
        this.#wake = () => {
          signal.removeEventListener('abort', onAbort);
          resolve();
        };
      });
    }
    const frame = this.#failure instanceof ProtocolError ? undefined : this.#frames.shift();
    if (frame === undefined) throw this.#failure ?? new ConnectError('control connection: no answer');
    const parsed = parseJson(frame, (value) => handshakeMessage.safeParse(value));
    if (!parsed.ok) throw new ProtocolError(`control handshake: ${parsed.why}`);
    return parsed.value;
  }
}

const sendHandshake = (socket: Socket, message: HandshakeMessage): void => {
  socket.write(encodeFrame(Buffer.from(JSON.stringify(message))));
};

const tune = (socket: Socket): void => {
  socket.setNoDelay(true); // heartbeats and commands are small and must not wait for each other
  socket.setKeepAlive(true, 1_000);
};

/**
 * Connects to a backup and authenticates.
 * @throws ConnectError, AuthError, VersionError, ProtocolError
 */
export const connectControl = async (
  address: HostPort,
  key: Uint8Array,
  options: { readonly timeoutMs?: number; readonly signal?: AbortSignal } = {},
): Promise<ControlChannel> => {
  const deadline = AbortSignal.timeout(options.timeoutMs ?? HANDSHAKE_TIMEOUT_MS);
  const signal = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal]);
  const socket = createConnection({ host: address.host, port: address.port });
  tune(socket);
  const reader = new HandshakeReader(socket);
  try {
    const clientNonce = randomBytes(NONCE_BYTES);
    sendHandshake(socket, {
      type: 'hello',
      protocol: 'holdfast',
      versions: [...CONTROL_VERSIONS],
      nonce: clientNonce.toString('hex'),
    });
    const challenge = await reader.next(signal);
    if (challenge.type === 'refused') throw refusal(challenge);
    if (challenge.type !== 'challenge') throw unexpected('challenge', challenge);
    if (!(CONTROL_VERSIONS as readonly number[]).includes(challenge.version)) {
      throw new VersionError(
        `the backup chose protocol version ${challenge.version}, which this side does not speak`,
      );
    }
    const transcript: HandshakeTranscript = {
      version: challenge.version,
      clientNonce,
      serverNonce: Buffer.from(challenge.nonce, 'hex'),
    };
    sendHandshake(socket, { type: 'auth', mac: proof(key, 'client', transcript).toString('hex') });
    const welcome = await reader.next(signal);
    if (welcome.type === 'refused') throw refusal(welcome);
    if (welcome.type !== 'welcome') throw unexpected('welcome', welcome);
    if (!sameMac(Buffer.from(welcome.mac, 'hex'), proof(key, 'server', transcript))) {
      throw new AuthError('the backup does not hold the same key', {
        cure: 'Copy the same key file to both hosts.',
      });
    }
    return new ControlChannel(socket, deriveSessionKey(key, transcript), 'client', reader);
  } catch (error) {
    reader.release();
    socket.on('error', () => {}); // it is being destroyed; what it still reports is of no interest
    socket.destroy();
    const failure = toHoldfastError(error);
    if (failure instanceof ConnectError) {
      throw new ConnectError(
        `cannot reach the backup at ${address.host}:${address.port}: ${failure.message}`,
        {
          cause: error,
          cure: 'Is `holdfast backup --listen` running there, and is the port open?',
        },
      );
    }
    throw failure;
  }
};

const refusal = (message: { readonly code: string; readonly message: string }): HoldfastError =>
  toHoldfastError(
    Object.assign(new Error(message.message), { code: message.code }),
    'the backup refused the connection',
  );

const unexpected = (wanted: string, got: HandshakeMessage): ProtocolError =>
  new ProtocolError(`control handshake: expected ${wanted}, got ${got.type}`);

interface ServerEvents {
  channel: [ControlChannel];
  /** A connection that did not get through the handshake; for the log. */
  rejected: [{ readonly remote: string; readonly error: HoldfastError }];
}

/** Listens for control connections; emits `channel` for each authenticated one. */
export class ControlServer extends EventEmitter<ServerEvents> {
  readonly #server: Server;
  readonly #key: Uint8Array;
  readonly #handshakeTimeoutMs: number;
  readonly #shaking = new Set<Socket>();

  private constructor(key: Uint8Array, handshakeTimeoutMs: number) {
    super();
    this.#key = key;
    this.#handshakeTimeoutMs = handshakeTimeoutMs;
    this.#server = createServer((socket) => void this.#accept(socket));
  }

  /** @throws ConnectError if the address can't be bound. */
  static async listen(
    address: HostPort,
    key: Uint8Array,
    options: { readonly handshakeTimeoutMs?: number } = {},
  ): Promise<ControlServer> {
    const server = new ControlServer(key, options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS);
    await new Promise<void>((resolve, reject) => {
      server.#server.once('error', (error) =>
        reject(
          new ConnectError(`listen: cannot listen on ${address.host}:${address.port}: ${error.message}`, {
            cause: error,
            cure: 'Choose an address of this host and a free port.',
          }),
        ),
      );
      server.#server.listen({ host: address.host, port: address.port }, resolve);
    });
    return server;
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  /**
   * Stops listening and ends handshakes. Channels are their owners' to close;
   * waiting for them here would wait for ever if they are closed afterwards.
   */
  async close(): Promise<void> {
    this.#server.close();
    for (const socket of this.#shaking) socket.destroy();
  }

  async #accept(socket: Socket): Promise<void> {
    const remote = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    if (this.#shaking.size >= HANDSHAKES_MAX) {
      socket.on('error', () => {});
      socket.destroy();
      return;
    }
    this.#shaking.add(socket);
    tune(socket);
    const reader = new HandshakeReader(socket, HANDSHAKE_FRAME_BYTES_MAX);
    try {
      const channel = await this.#shake(socket, reader);
      this.emit('channel', channel);
    } catch (cause) {
      const error = toHoldfastError(cause);
      reader.release();
      socket.on('error', () => {});
      if (!socket.destroyed) {
        sendHandshake(socket, { type: 'refused', code: error.code, message: error.message });
        socket.end();
        socket.resume(); // closed over unread data, the refusal could be lost
        setTimeout(() => socket.destroy(), LINGER_MS).unref();
      }
      this.emit('rejected', { remote, error });
    } finally {
      this.#shaking.delete(socket);
    }
  }

  async #shake(socket: Socket, reader: HandshakeReader): Promise<ControlChannel> {
    const signal = AbortSignal.timeout(this.#handshakeTimeoutMs);
    const hello = await reader.next(signal);
    if (hello.type !== 'hello') throw unexpected('hello', hello);
    const version = CONTROL_VERSIONS.find((candidate) => hello.versions.includes(candidate));
    if (version === undefined) {
      throw new VersionError(
        `no common protocol version: this side speaks ${CONTROL_VERSIONS.join(', ')}, the peer ${hello.versions.join(', ')}`,
        { cure: 'Install the same version of Holdfast on both hosts.' },
      );
    }
    const serverNonce = randomBytes(NONCE_BYTES);
    const transcript: HandshakeTranscript = {
      version,
      clientNonce: Buffer.from(hello.nonce, 'hex'),
      serverNonce,
    };
    sendHandshake(socket, { type: 'challenge', version, nonce: serverNonce.toString('hex') });
    const auth = await reader.next(signal);
    if (auth.type !== 'auth') throw unexpected('auth', auth);
    if (!sameMac(Buffer.from(auth.mac, 'hex'), proof(this.#key, 'client', transcript))) {
      throw new AuthError('the keys of the two sides differ', {
        cure: 'Copy the same key file to both hosts.',
      });
    }
    sendHandshake(socket, { type: 'welcome', mac: proof(this.#key, 'server', transcript).toString('hex') });
    return new ControlChannel(socket, deriveSessionKey(this.#key, transcript), 'server', reader);
  }
}
