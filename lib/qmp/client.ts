/**
 * A QMP client for one monitor on a Unix socket.
 *
 *   connect ──► greeting ──► qmp_capabilities ──► ready
 *   ready: commands are written at once and answered in order of arrival at
 *          QEMU; each carries an id, so an answer that comes after its
 *          command's time-out is dropped and desynchronises nothing
 *   lost:  QEMU ended, or sent what is not QMP: every pending call rejects
 *          with QmpConnectionError, and `closed` says why
 *
 * Protocol: docs/interop/qmp-spec in QEMU's source.
 */

import { createConnection, type Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { CancelledError, LimitError, QmpConnectionError, QmpError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import {
  type CommandAnswer,
  type CommandArguments,
  type CommandName,
  commandAnswers,
  errorSchema,
  eventSchema,
  greetingSchema,
  type QmpEvent,
  type QmpGreeting,
  type QmpRequest,
} from './commands.js';

/** One line of QEMU's answers. query-named-block-nodes of a large VM is the longest: some 100 KiB. */
const LINE_BYTES_MAX = 16 * 1024 * 1024;
/** Commands waiting for their answers. The epoch loop has at most a dozen. */
const PENDING_COMMANDS_MAX = 256;
/** Events an `events()` iterator may fall behind. */
const ITERATOR_EVENTS_MAX = 1024;
const CONNECT_RETRY_MS = 10;
const CONNECT_TIMEOUT_MS = 10_000;
const COMMAND_TIMEOUT_MS = 30_000;

export interface QmpConnectOptions {
  /** Deadline for the socket to exist, the connection, the greeting and the negotiation (default 10 s). */
  readonly timeoutMs?: number;
  /** Deadline of a command that names none (default 30 s). */
  readonly commandTimeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
  /** The addon's sendWithFd; passDescriptor() needs it, nothing else does. */
  readonly sendWithFd?: NativeBinding['sendWithFd'] | undefined;
}

export interface QmpCommandOptions {
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

export interface QmpWaitOptions {
  /** Default: no deadline. */
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Events for which this is false are passed over. */
  readonly where?: (event: QmpEvent) => boolean;
}

export type QmpCloseReason =
  | { readonly kind: 'closed' }
  | { readonly kind: 'lost'; readonly error: QmpConnectionError };

export type QmpEventListener = (event: QmpEvent) => void;

type PipelineAnswers<T extends readonly QmpRequest[]> = {
  -readonly [K in keyof T]: Promise<CommandAnswer<T[K]['execute']>>;
};

interface PendingCommand {
  readonly command: string;
  readonly answer: z.ZodType;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

interface ReadySettlers {
  readonly resolve: (greeting: QmpGreeting) => void;
  readonly reject: (error: Error) => void;
}

interface Prepared {
  readonly id: number;
  readonly line: string;
  readonly promise: Promise<unknown>;
}

export class QmpClient implements AsyncDisposable {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #commandTimeoutMs: number;
  readonly #sendWithFd: NativeBinding['sendWithFd'] | undefined;
  readonly #pending = new Map<number, PendingCommand>();
  readonly #listeners = new Map<string, Set<QmpEventListener>>();
  readonly #onLost = new Set<(error: QmpConnectionError) => void>();
  readonly #decoder = new StringDecoder('utf8');
  readonly #ready: ReadySettlers;
  readonly #greeted: Promise<QmpGreeting>;
  #greeting: QmpGreeting | undefined;
  #partial = '';
  #nextId = 1;
  /** Set once: by close(), or by the first thing that went wrong. */
  #reason: QmpCloseReason | undefined;

  /** Settles when the connection has ended; never rejects. */
  readonly closed: Promise<QmpCloseReason>;

  private constructor(socket: Socket, path: string, options: QmpConnectOptions) {
    this.#socket = socket;
    this.#path = path;
    this.#commandTimeoutMs = options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS;
    this.#sendWithFd = options.sendWithFd;
    let ready: ReadySettlers | undefined;
    this.#greeted = new Promise((resolve, reject) => {
      ready = { resolve, reject };
    });
    this.#greeted.catch(() => {});
    this.#ready = ready!;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#lose(`the connection failed: ${error.message}`, error));
    socket.on('end', () => this.#lose('QEMU closed the connection'));
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#lose('the connection closed');
        resolve(this.#reason!);
      });
    });
  }

  /**
   * Connects to a monitor started with `-qmp unix:PATH,server=on` and
   * negotiates. Retries while the socket does not exist or refuses, so it can
   * be called right after QEMU was spawned.
   *
   * @throws QmpConnectionError when the deadline passes or the peer is not QMP;
   *         CancelledError when the signal aborts.
   */
  static async connect(path: string, options: QmpConnectOptions = {}): Promise<QmpClient> {
    const timeoutMs = options.timeoutMs ?? CONNECT_TIMEOUT_MS;
    const deadline = performance.now() + timeoutMs;
    const socket = await openSocket(path, deadline, timeoutMs, options.signal);
    const client = new QmpClient(socket, path, options);
    try {
      await client.#bounded(
        client.#greeted,
        Math.max(1, deadline - performance.now()),
        () =>
          new QmpConnectionError(`no QMP greeting from ${path} within ${timeoutMs} ms`, {
            cure: 'A monitor serves one client at a time: end the other one, or give QEMU another -qmp. One made by -monitor does not speak QMP.',
            details: { path },
          }),
        options.signal,
      );
      await client.execute('qmp_capabilities', outOfBand(client.greeting), {
        timeoutMs: Math.max(1, deadline - performance.now()),
        signal: options.signal,
      });
      return client;
    } catch (error) {
      await client.close();
      throw error;
    }
  }

  get path(): string {
    return this.#path;
  }

  /** QEMU's greeting: its version. */
  get greeting(): QmpGreeting {
    return this.#greeting!;
  }

  /** The connection is up as far as this side knows. */
  get open(): boolean {
    return this.#reason === undefined;
  }

  /** The socket's descriptor, for peerPid(). It belongs to this client: never close it. */
  get socketFd(): number {
    // net.Socket has no public accessor; _handle.fd has been there since Node 0.10.
    const fd = (this.#socket as unknown as { _handle?: { fd?: number } })._handle?.fd;
    if (fd === undefined || fd < 0) throw this.#lostError();
    return fd;
  }

  /**
   * Runs one command.
   *
   * @throws QmpError QEMU refused; QmpConnectionError connection lost, no
   *         answer in time, or an answer of another shape; CancelledError.
   */
  execute<C extends CommandName>(
    command: C,
    args?: CommandArguments[C],
    options: QmpCommandOptions = {},
  ): Promise<CommandAnswer<C>> {
    return this.#send(command, args, commandAnswers[command], options) as Promise<CommandAnswer<C>>;
  }

  /** Runs a command that is not in the command map; the answer is not validated. */
  executeAny(
    command: string,
    args?: Readonly<Record<string, unknown>>,
    options: QmpCommandOptions = {},
  ): Promise<unknown> {
    return this.#send(command, args, z.unknown(), options);
  }

  /**
   * Writes several commands in one system call; QEMU's monitor runs them in
   * order with no round trip in between. A command that fails does not keep
   * the later ones from running. Each has its own promise; one that is never
   * awaited does not raise an unhandled rejection.
   */
  pipeline<const T extends readonly QmpRequest[]>(
    requests: T,
    options: QmpCommandOptions = {},
  ): PipelineAnswers<T> {
    const prepared = requests.map((request) =>
      this.#prepare(request.execute, request.arguments, commandAnswers[request.execute], options),
    );
    if (this.open) this.#socket.write(prepared.map(({ line }) => line).join(''));
    return prepared.map(({ promise }) => promise) as unknown as PipelineAnswers<T>;
  }

  /**
   * Gives QEMU a descriptor under a name (`getfd` with SCM_RIGHTS), for use in
   * `fd:NAME`. QEMU owns a duplicate; the caller still closes its own.
   */
  async passDescriptor(name: string, fd: number, options: QmpCommandOptions = {}): Promise<void> {
    const sendWithFd = this.#sendWithFd;
    if (sendWithFd === undefined) throw new TypeError('connect() was given no sendWithFd');
    // The addon writes beside Node's queue: let it empty first, or the order would break.
    while (this.open && this.#socket.writableLength > 0) {
      await new Promise<void>((resolve) => {
        this.#socket.once('drain', resolve);
        this.#socket.once('close', () => resolve());
      });
    }
    const { id, line, promise } = this.#prepare('getfd', { fdname: name }, commandAnswers.getfd, options);
    if (this.open) {
      try {
        sendWithFd(this.socketFd, Buffer.from(line), fd);
      } catch (error) {
        this.#pending.get(id)?.reject(
          new QmpConnectionError(`passing a descriptor to QEMU failed: ${messageOf(error)}`, {
            cause: error,
          }),
        );
      }
    }
    await promise;
  }

  /** Calls `listener` for each such event ('*': all), synchronously. Returns what removes it. */
  on(event: string, listener: QmpEventListener): () => void {
    const set = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, set);
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  /** The next such event. Rejects as execute() does. */
  once(event: string, options: QmpWaitOptions = {}): Promise<QmpEvent> {
    let remove = (): void => {};
    const seen = new Promise<QmpEvent>((resolve) => {
      remove = this.on(event, (received) => {
        if (options.where === undefined || options.where(received)) resolve(received);
      });
    });
    const late = () => new QmpConnectionError(`QEMU sent no ${event} within ${options.timeoutMs} ms`);
    return this.#bounded(seen, options.timeoutMs, late, options.signal).finally(remove);
  }

  /**
   * Events as they come ('*': all), from the call on. Ends when the connection
   * is closed by close(); throws when it is lost, or when the consumer falls
   * too far behind (LimitError).
   */
  events(event: string, options: { readonly signal?: AbortSignal } = {}): AsyncIterableIterator<QmpEvent> {
    const queue: QmpEvent[] = [];
    let failure: Error | undefined;
    let ended = false;
    let wake = (): void => {};
    const remove = this.on(event, (received) => {
      if (queue.length >= ITERATOR_EVENTS_MAX) {
        failure ??= new LimitError(`more than ${ITERATOR_EVENTS_MAX} QMP events are waiting to be consumed`);
      } else {
        queue.push(received);
      }
      wake();
    });
    const stop = (): void => {
      ended = true;
      remove();
      wake();
    };
    const abort = (): void => {
      failure ??= new CancelledError('waiting for QMP events was cancelled');
      wake();
    };
    options.signal?.addEventListener('abort', abort, { once: true });
    if (options.signal?.aborted) abort();
    void this.closed.then((reason) => {
      if (reason.kind === 'lost') failure ??= reason.error;
      stop();
    });
    const iterator: AsyncIterableIterator<QmpEvent> = {
      [Symbol.asyncIterator]: () => iterator,
      next: async () => {
        for (;;) {
          const value = queue.shift();
          if (value !== undefined) return { done: false, value };
          if (failure !== undefined || ended) {
            stop();
            options.signal?.removeEventListener('abort', abort);
            if (failure !== undefined) throw failure;
            return { done: true, value: undefined };
          }
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      },
      return: async () => {
        stop();
        options.signal?.removeEventListener('abort', abort);
        return { done: true, value: undefined };
      },
    };
    return iterator;
  }

  /** Ends the connection; pending calls reject. QEMU and the VM are not touched. Idempotent. */
  async close(): Promise<void> {
    if (this.open) {
      this.#reason = { kind: 'closed' };
      this.#rejectAll(new QmpConnectionError('the QMP connection was closed'));
      this.#socket.destroy();
    }
    await this.closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #send(command: string, args: object | undefined, answer: z.ZodType, options: QmpCommandOptions) {
    const { line, promise } = this.#prepare(command, args, answer, options);
    if (this.open) this.#socket.write(line);
    return promise;
  }

  /** Registers a command and serialises it. On a dead connection its promise rejects at once. */
  #prepare(
    command: string,
    args: object | undefined,
    answer: z.ZodType,
    options: QmpCommandOptions,
  ): Prepared {
    const id = this.#nextId++;
    const line = `${JSON.stringify(args === undefined ? { execute: command, id } : { execute: command, arguments: args, id })}\n`;
    const promise = new Promise<unknown>((resolve, reject) => {
      if (!this.open) {
        reject(this.#lostError());
        return;
      }
      if (this.#pending.size >= PENDING_COMMANDS_MAX) {
        reject(new LimitError(`${PENDING_COMMANDS_MAX} QMP commands are waiting for their answers already`));
        return;
      }
      if (options.signal?.aborted) {
        reject(new CancelledError(`QMP ${command} was cancelled`));
        return;
      }
      const timeoutMs = options.timeoutMs ?? this.#commandTimeoutMs;
      const abort = (): void => {
        this.#pending.get(id)?.reject(new CancelledError(`QMP ${command} was cancelled`));
      };
      const timer = setTimeout(() => {
        this.#pending.get(id)?.reject(
          new QmpConnectionError(`QEMU did not answer ${command} within ${timeoutMs} ms`, {
            details: { command, timeoutMs },
          }),
        );
      }, timeoutMs);
      const settle = (): void => {
        clearTimeout(timer);
        options.signal?.removeEventListener('abort', abort);
        this.#pending.delete(id);
      };
      options.signal?.addEventListener('abort', abort, { once: true });
      this.#pending.set(id, {
        command,
        answer,
        resolve: (value) => {
          settle();
          resolve(value);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      });
    });
    // Whoever awaits it still sees the rejection; a pipeline's later promises may never be awaited.
    promise.catch(() => {});
    return { id, line, promise };
  }

  #receive(chunk: Buffer): void {
    let text = this.#decoder.write(chunk);
    let newline = text.indexOf('\n');
    while (newline !== -1 && this.open) {
      const line = this.#partial + text.slice(0, newline);
      this.#partial = '';
      text = text.slice(newline + 1);
      if (line.trim() !== '') this.#receiveLine(line);
      newline = text.indexOf('\n');
    }
    if (!this.open) return;
    this.#partial += text;
    if (this.#partial.length > LINE_BYTES_MAX) {
      this.#lose(`a line is longer than ${LINE_BYTES_MAX} bytes; this is not QMP`);
    }
  }

  #receiveLine(line: string): void {
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch (error) {
      this.#lose(`not JSON: ${JSON.stringify(line.slice(0, 80))}`, error);
      return;
    }
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      this.#lose(`not a QMP message: ${line.slice(0, 80)}`);
    } else if (this.#greeting === undefined) {
      this.#receiveGreeting(message, line);
    } else if ('event' in message) {
      this.#receiveEvent(message, line);
    } else if ('return' in message) {
      this.#receiveAnswer(message as { id?: unknown; return: unknown });
    } else if ('error' in message) {
      this.#receiveError(message as { id?: unknown; error: unknown });
    } else {
      this.#lose(`not a QMP message: ${line.slice(0, 80)}`);
    }
  }

  #receiveGreeting(message: object, line: string): void {
    const greeting = greetingSchema.safeParse(message);
    if (!greeting.success) {
      this.#lose(`no QMP greeting but ${line.slice(0, 80)}`);
      return;
    }
    this.#greeting = greeting.data.QMP;
    this.#ready.resolve(this.#greeting);
  }

  #receiveEvent(message: object, line: string): void {
    const parsed = eventSchema.safeParse(message);
    if (!parsed.success) {
      this.#lose(`a malformed event: ${line.slice(0, 80)}`);
      return;
    }
    const event = parsed.data;
    for (const name of [event.event, '*']) {
      for (const listener of [...(this.#listeners.get(name) ?? [])]) {
        try {
          listener(event);
        } catch (error) {
          // A listener's bug is its owner's; the messages behind this one must still be read.
          queueMicrotask(() => {
            throw error;
          });
        }
      }
    }
  }

  #receiveAnswer(message: { id?: unknown; return: unknown }): void {
    const pending = this.#pending.get(message.id as number);
    // An unknown id is the late answer of a command that timed out or was cancelled.
    if (pending === undefined) return;
    const answer = pending.answer.safeParse(message.return);
    if (answer.success) {
      pending.resolve(answer.data);
    } else {
      pending.reject(
        new QmpConnectionError(`QEMU answered ${pending.command} in an unexpected shape`, {
          cause: answer.error,
          details: { command: pending.command },
        }),
      );
    }
  }

  #receiveError(message: { id?: unknown; error: unknown }): void {
    const parsed = errorSchema.safeParse(message.error);
    if (!parsed.success) {
      this.#lose('a malformed error');
      return;
    }
    const { class: errorClass, desc } = parsed.data;
    if (message.id === undefined) {
      // QEMU could not parse what it read: whose command it was is unknown.
      this.#lose(`QEMU could not parse a command: ${desc}`);
      return;
    }
    const pending = this.#pending.get(message.id as number);
    if (pending === undefined) return;
    pending.reject(
      new QmpError(`QEMU refused ${pending.command}: ${desc}`, {
        details: { command: pending.command, class: errorClass, desc },
      }),
    );
  }

  /** First call wins. Rejects everything that waits and ends the connection. */
  #lose(why: string, cause?: unknown): void {
    if (!this.open) return;
    const error = new QmpConnectionError(`QMP ${this.#path}: ${why}`, cause === undefined ? {} : { cause });
    this.#reason = { kind: 'lost', error };
    this.#rejectAll(error);
    this.#socket.destroy();
  }

  #rejectAll(error: QmpConnectionError): void {
    this.#ready.reject(error);
    for (const pending of [...this.#pending.values()]) pending.reject(error);
    for (const reject of [...this.#onLost]) reject(error);
  }

  #lostError(): QmpConnectionError {
    return this.#reason?.kind === 'lost'
      ? this.#reason.error
      : new QmpConnectionError('the QMP connection was closed');
  }

  /** `promise`, or the loss of the connection, the deadline or the signal: whichever is first. */
  #bounded<T>(
    promise: Promise<T>,
    timeoutMs: number | undefined,
    late: () => QmpConnectionError,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (!this.open) {
        reject(this.#lostError());
        return;
      }
      const settle = (): void => {
        clearTimeout(timer);
        this.#onLost.delete(fail);
        signal?.removeEventListener('abort', abort);
      };
      const fail = (error: Error): void => {
        settle();
        reject(error);
      };
      const abort = (): void => fail(new CancelledError('waiting for QEMU was cancelled'));
      const timer = timeoutMs === undefined ? undefined : setTimeout(() => fail(late()), timeoutMs);
      this.#onLost.add(fail);
      signal?.addEventListener('abort', abort, { once: true });
      if (signal?.aborted) abort();
      promise.then((value) => {
        settle();
        resolve(value);
      }, fail);
    });
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/**
 * Without the capability `oob` QEMU stops reading its monitor after each command
 * and wakes another thread to go on (monitor/qmp.c, handle_qmp_command): a
 * pipeline of commands would wait for it each time. With it, eight are read
 * ahead and run one after the other, in order as before.
 */
const outOfBand = (greeting: QmpGreeting): { readonly enable: readonly string[] } => ({
  enable: greeting.capabilities.includes('oob') ? ['oob'] : [],
});

/** Connects, retrying while nobody listens yet. */
const openSocket = async (
  path: string,
  deadline: number,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<Socket> => {
  for (;;) {
    if (signal?.aborted) throw new CancelledError(`connecting to ${path} was cancelled`);
    try {
      return await openSocketOnce(path);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? '';
      const mayCome = code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'EAGAIN';
      if (!mayCome || performance.now() + CONNECT_RETRY_MS > deadline) {
        throw new QmpConnectionError(
          mayCome
            ? `no QMP monitor listens on ${path} (waited ${timeoutMs} ms)`
            : `cannot connect to ${path}: ${messageOf(error)}`,
          {
            cause: error,
            cure: mayCome
              ? `Give the path of a running QEMU's monitor; one started with -qmp unix:${path},server=on,wait=off would listen there.`
              : 'Run as a user who may open this socket: root, or the one that QEMU runs as.',
            details: { path },
          },
        );
      }
    }
    await delay(CONNECT_RETRY_MS, undefined, signal === undefined ? {} : { signal }).catch(() => {});
  }
};

const openSocketOnce = (path: string): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = createConnection({ path });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.removeListener('error', reject);
      resolve(socket);
    });
  });
