/**
 * The admin socket of a daemon: status, and the commands of the operator.
 *
 *   listen ─ claims <runDir>/<name>.sock: the name is taken while the daemon lives
 *   close  ─ answers what is being asked, then the socket is gone
 */
import { chmod, mkdir, rm } from 'node:fs/promises';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { isMainThread } from 'node:worker_threads';
import { ConfigError, type HoldfastError, LimitError, ProtocolError, toHoldfastError } from '../errors.js';
import { LineDecoder } from './lines.js';
import {
  type AdminAnswer,
  type AdminCommand,
  type AdminRequest,
  adminRequest,
  adminSocketPath,
  CLIENTS_MAX,
  PENDING_REQUESTS_MAX,
  REQUEST_BYTES_MAX,
} from './protocol.js';

/** Answers queued towards a client that doesn't read; beyond it the client is cut off. */
const ANSWER_QUEUE_BYTES_MAX = 4 << 20;
/** How long close() lets a client take to read its last answer. */
const FLUSH_MS = 500;

/** What a daemon does for each command; one that is absent is refused as not of its role. */
export interface AdminHandlers {
  readonly role: 'primary' | 'backup';
  readonly commands: { readonly [command in AdminCommand]?: () => unknown };
}

export interface AdminServerOptions {
  readonly runDir: string;
  readonly name: string;
  readonly handlers: AdminHandlers;
}

export class AdminServer implements AsyncDisposable {
  readonly path: string;
  readonly #name: string;
  readonly #handlers: AdminHandlers;
  readonly #server: Server;
  readonly #clients = new Set<Socket>();
  readonly #answering = new Set<Promise<void>>();

  private constructor(path: string, name: string, handlers: AdminHandlers) {
    this.path = path;
    this.#name = name;
    this.#handlers = handlers;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  /**
   * Claims the name. A socket that a killed daemon left behind is replaced.
   * @throws ConfigError if a live daemon holds the name, or the directory can't be used.
   */
  static async listen(options: AdminServerOptions): Promise<AdminServer> {
    const path = adminSocketPath(options.runDir, options.name);
    try {
      await mkdir(options.runDir, { recursive: true, mode: 0o700 });
    } catch (cause) {
      throw new ConfigError(`runDir: cannot make ${options.runDir}: ${(cause as Error).message}`, { cause });
    }
    const server = new AdminServer(path, options.name, options.handlers);
    await server.#claim();
    return server;
  }

  /** Stops listening, waits for the answers under way, cuts the clients. Idempotent. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    await Promise.all(this.#answering);
    const flush = setTimeout(() => {
      for (const socket of this.#clients) socket.destroy();
    }, FLUSH_MS);
    for (const socket of this.#clients) socket.end(() => socket.destroy());
    await closed;
    clearTimeout(flush);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #claim(): Promise<void> {
    try {
      await this.#bind();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw this.#cannotListen(error);
      if (await isAnswering(this.path)) {
        throw new ConfigError(`name: another daemon named '${this.#name}' runs already (${this.path})`, {
          cure: 'Give this one another --name, or another --run-dir.',
        });
      }
      await rm(this.path, { force: true });
      await this.#bind().catch((second: unknown) => {
        throw this.#cannotListen(second);
      });
    }
    await chmod(this.path, 0o600);
  }

  #bind(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      // The socket file is made within listen(): with this mask it is private from its first moment.
      const mask = isMainThread ? process.umask(0o177) : undefined;
      this.#server.listen(this.path, () => {
        this.#server.off('error', reject);
        resolve();
      });
      if (mask !== undefined) process.umask(mask);
    });
  }

  #cannotListen(cause: unknown): ConfigError {
    return new ConfigError(`runDir: cannot listen on ${this.path}: ${(cause as Error).message}`, {
      cause,
      cure: 'Choose a run directory this user may write to (--run-dir).',
    });
  }

  #serve(socket: Socket): void {
    socket.on('error', () => {}); // a client that is gone needs no answer
    if (this.#clients.size >= CLIENTS_MAX) {
      refuse(socket, new LimitError(`${CLIENTS_MAX} clients are connected already`));
      return;
    }
    this.#clients.add(socket);
    socket.on('close', () => this.#clients.delete(socket));
    const decoder = new LineDecoder(REQUEST_BYTES_MAX);
    let pending = 0;
    const onData = (chunk: Buffer): void => {
      try {
        for (const line of decoder.push(chunk)) {
          const request = parseRequest(line);
          if (++pending > PENDING_REQUESTS_MAX) {
            throw new LimitError(`${PENDING_REQUESTS_MAX} requests are waiting for their answers already`);
          }
          const answered = this.#answer(socket, request).finally(() => {
            pending -= 1;
            this.#answering.delete(answered);
          });
          this.#answering.add(answered);
        }
      } catch (error) {
        socket.off('data', onData);
        refuse(socket, toHoldfastError(error));
      }
    };
    socket.on('data', onData);
  }

  async #answer(socket: Socket, request: AdminRequest): Promise<void> {
    const { id, command } = request;
    let answer: AdminAnswer;
    try {
      const handler = this.#handlers.commands[command];
      if (handler === undefined) {
        throw new ConfigError(
          `${command}: '${this.#name}' is a ${this.#handlers.role}, which cannot do that`,
          {
            cure: '`holdfast status` lists the daemons of this host with their roles.',
          },
        );
      }
      answer = { id, ok: true, result: (await handler()) ?? null };
    } catch (error) {
      answer = failure(toHoldfastError(error), id);
    }
    write(socket, answer);
  }
}

/** @throws ProtocolError */
const parseRequest = (line: string): AdminRequest => {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new ProtocolError('request: not JSON');
  }
  const parsed = adminRequest.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ProtocolError(`request: ${issue?.path.map(String).join('.') || 'line'}: ${issue?.message}`);
};

const failure = (error: HoldfastError, id?: number): AdminAnswer => ({
  ...(id === undefined ? {} : { id }),
  ok: false,
  error: {
    code: error.code,
    message: error.message,
    ...(error.cure === undefined ? {} : { cure: error.cure }),
    details: { ...error.details },
    exitCode: error.exitCode,
  },
});

const write = (socket: Socket, answer: AdminAnswer): void => {
  if (socket.destroyed || socket.writableEnded) return;
  socket.write(`${JSON.stringify(answer)}\n`);
  if (socket.writableLength > ANSWER_QUEUE_BYTES_MAX) socket.destroy();
};

/** What cannot be parsed is never guessed at: one line says why, and the connection ends. */
const refuse = (socket: Socket, error: HoldfastError): void => {
  write(socket, failure(error));
  socket.end();
  setTimeout(() => socket.destroy(), FLUSH_MS).unref();
};

/** True unless the socket is a dead daemon's: only a refused connection (or no file) proves that. */
export const isAnswering = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = createConnection({ path });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      resolve(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT');
    });
  });
