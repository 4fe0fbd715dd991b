/**
 * A plain TCP connection that belongs to a control session: whoever makes it shows the session's bulk token first
 * (auth.ts), and what follows is not framed by us: the bytes of a probe, or QEMU's own migration stream.
 *
 *   listenForToken ─► port, told over the control channel
 *   connectWithToken ── token ──► the first connection that shows it; all others are closed, and the port with them
 *
 * Whoever hands the descriptor to another process waits, on the connecting side, for the other side's word before
 * it sends anything: Node may already have read what lies behind the token.
 */
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { ConnectError, PeerLostError, ProtocolError } from '../errors.js';
import { sameMac } from './auth.js';
import type { HostPort } from './channel.js';

/** A connection that has not shown its token by then is closed. */
const TOKEN_TIMEOUT_MS = 5_000;
/** Connections that have not shown it yet; more are closed at once. */
const STRANGERS_MAX = 8;

export interface TokenListener {
  readonly port: number;
  /** The connection that showed the token, paused; what came behind the token is put back. Rejects on close(). */
  readonly accepted: Promise<Socket>;
  /** Idempotent. A connection that was accepted stays its owner's. */
  close(): void;
}

/** @throws ConnectError if the port can't be had. */
export const listenForToken = async (address: HostPort, token: Uint8Array): Promise<TokenListener> => {
  const server = createServer({ noDelay: true, keepAlive: true });
  const strangers = new Set<Socket>();
  let settle: { accept: (socket: Socket) => void; refuse: (error: Error) => void } | undefined;
  const accepted = new Promise<Socket>((accept, refuse) => {
    settle = { accept, refuse };
  });
  accepted.catch(() => {}); // nobody may be waiting yet when it is closed
  const close = (): void => {
    server.close();
    for (const stranger of strangers) stranger.destroy();
    settle?.refuse(new PeerLostError('the bulk port was closed'));
  };
  server.on('connection', (socket) => {
    if (strangers.size >= STRANGERS_MAX) {
      socket.destroy();
      return;
    }
    strangers.add(socket);
    readToken(socket, token.length, (shown, rest) => {
      strangers.delete(socket);
      if (shown === undefined || !sameMac(shown, token)) {
        socket.destroy();
        return;
      }
      if (rest.length > 0) socket.unshift(rest);
      settle?.accept(socket);
      close();
    });
  });
  await listening(server, address);
  const bound = server.address();
  return { port: typeof bound === 'object' && bound !== null ? bound.port : 0, accepted, close };
};

const listening = (server: Server, { host, port }: HostPort): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new ConnectError(`bulk port: cannot listen on ${host}:${port}: ${cause.message}`, {
          cause,
          cure: 'Choose free ports with --bulk-port, or none: then any is taken.',
        }),
      ),
    );
    server.listen({ host, port }, resolve);
  });

/** Undefined: closed, or too slow. Leaves the socket paused and without listeners but one for errors. */
const readToken = (
  socket: Socket,
  bytes: number,
  done: (token: Buffer | undefined, rest: Buffer) => void,
): void => {
  let got: Buffer = Buffer.alloc(0);
  const finish = (isWhole: boolean): void => {
    clearTimeout(timer);
    socket.off('data', onData);
    socket.off('close', onClose);
    socket.pause();
    done(isWhole ? got.subarray(0, bytes) : undefined, got.subarray(bytes));
  };
  const onData = (chunk: Buffer): void => {
    got = Buffer.concat([got, chunk]);
    if (got.length >= bytes) finish(true);
  };
  const onClose = (): void => finish(false);
  const timer = setTimeout(() => finish(false), TOKEN_TIMEOUT_MS);
  socket.on('error', () => {}); // `close` follows
  socket.on('data', onData);
  socket.on('close', onClose);
};

/**
 * Connects and shows the token. Settles when the kernel has it.
 * @throws ConnectError
 */
export const connectWithToken = async (
  { host, port }: HostPort,
  token: Uint8Array,
  options: { readonly timeoutMs: number },
): Promise<Socket> => {
  const socket = createConnection({ host, port, noDelay: true, keepAlive: true });
  try {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no connection within ${options.timeoutMs} ms`)),
        options.timeoutMs,
      );
      const settle = (error?: Error | null): void => {
        clearTimeout(timer);
        socket.off('error', settle);
        if (error) reject(error);
        else resolve();
      };
      socket.on('error', settle);
      socket.write(token, settle);
    });
  } catch (cause) {
    socket.on('error', () => {});
    socket.destroy();
    throw new ConnectError(`bulk connection to ${host}:${port}: ${(cause as Error).message}`, {
      cause,
      cure: 'Are the ports for page data open there (--bulk-port of `holdfast backup`)?',
    });
  }
  socket.on('error', () => {}); // `close` follows, where anybody cares
  return socket;
};

/** Of an open socket, for handing it to another process. It stays the socket's. @throws ProtocolError if it closed */
export const descriptorOf = (socket: Socket): number => {
  // net.Socket has no public accessor; _handle.fd has been there since Node 0.10.
  const fd = (socket as unknown as { _handle?: { fd?: number } | null })._handle?.fd;
  if (fd === undefined || fd < 0) throw new ProtocolError('the bulk connection closed before it was used');
  return fd;
};
