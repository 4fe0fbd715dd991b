/**
 * A connection to the control socket of a disk server (docs/disk.md, "Disk server").
 *
 *   connect() ──► HELLO ◄── server        requests are answered in order
 *
 * A server has one controller: a new connection replaces the old one, which finds itself closed. A server
 * that loses its controller while it logs logs no more: nobody would ship what it logs.
 */
import { createConnection, type Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';
import {
  CancelledError,
  ConnectError,
  DiskError,
  type HoldfastError,
  isFullErrno,
  NoSpaceError,
  PeerLostError,
  ProtocolError,
  VersionError,
} from '../errors.js';
import {
  DISK_PROTOCOL_VERSION,
  type DiskMessage,
  DiskMessageDecoder,
  type DiskRequest,
  type DiskServerStats,
  encodeDiskRequest,
} from './disk-protocol.js';

/**
 * A request waits for writes that are under way (MAP_ROTATE), or for stable storage (SYNC_ID_SET): an image on
 * a slow disk takes its time. One that takes so long has stopped working.
 */
const ANSWER_TIMEOUT_MS = 30_000;
const HELLO_TIMEOUT_MS = 5_000;

const cure = 'Is the disk server (nbdkit) still running? Without it the guest waits for its disk.';

type Answer = DiskMessage & { readonly type: 'answer' };

interface Waiting {
  readonly request: DiskRequest;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: HoldfastError) => void;
  readonly timer: NodeJS.Timeout;
}

export class DiskControl implements AsyncDisposable {
  readonly path: string;
  /** Settles, never rejects, when the connection has ended, with the reason. */
  readonly closed: Promise<HoldfastError>;
  readonly #socket: Socket;
  readonly #decoder = new DiskMessageDecoder();
  readonly #waiting: Waiting[] = [];
  readonly #settleClosed: (reason: HoldfastError) => void;
  #end: HoldfastError | undefined;
  #active = false;
  #greeted: { readonly resolve: () => void; readonly reject: (error: HoldfastError) => void } | undefined;

  private constructor(path: string, socket: Socket) {
    this.path = path;
    this.#socket = socket;
    let settle: (reason: HoldfastError) => void = () => {};
    this.closed = new Promise((resolve) => {
      settle = resolve;
    });
    this.#settleClosed = settle;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#finish(this.#lost(error.message)));
    socket.on('close', () =>
      this.#finish(this.#lost('closed by the server, or replaced by another controller')),
    );
  }

  /**
   * Connects, and settles once the server has said what it is.
   * @throws ConnectError if none listens there, VersionError if it speaks another version.
   */
  static async connect(path: string): Promise<DiskControl> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', () => {
        socket.removeAllListeners('error');
        resolve();
      });
      socket.once('error', (error) =>
        reject(
          new ConnectError(`control socket of the disk server ${path}: ${error.message}`, {
            cure,
            cause: error,
          }),
        ),
      );
    });
    const control = new DiskControl(path, socket);
    const late = setTimeout(() => control.#finish(control.#lost('no greeting')), HELLO_TIMEOUT_MS);
    try {
      await new Promise<void>((resolve, reject) => {
        control.#greeted = { resolve, reject };
        if (control.#end !== undefined) reject(control.#end);
      });
    } finally {
      clearTimeout(late);
      control.#greeted = undefined;
    }
    return control;
  }

  /** As of its greeting or its answer to activate(): it takes writes. */
  get isActive(): boolean {
    return this.#active;
  }
  get isClosed(): boolean {
    return this.#end !== undefined;
  }

  /** From now on writes are logged. @returns the log's head: the LSN from which on they are */
  async startLog(): Promise<number> {
    return (await this.#ask('logStart')).value;
  }

  /** Writes are only marked in the map from now on; those that wait for room in the log go on. */
  async stopLog(): Promise<void> {
    await this.#ask('logStop');
  }

  /** The map's older window is forgotten, the newer becomes the older. @returns blocks that are marked now */
  async rotateMap(): Promise<number> {
    return (await this.#ask('mapRotate')).value;
  }

  /** On stable storage when it settles. @param syncId 32 hexadecimal digits */
  async setSyncId(syncId: string): Promise<void> {
    await this.#ask('syncIdSet', 0, syncId);
  }

  /** A standby's: it takes writes from now on, those that wait first. Idempotent. */
  async activate(): Promise<void> {
    await this.#ask('activate');
    this.#active = true;
  }

  /** The server ends, cleanly, when that process does. */
  async bind(pid: number): Promise<void> {
    await this.#ask('bind', pid);
  }

  async stats(): Promise<DiskServerStats> {
    const { stats } = await this.#ask('stats');
    if (stats === undefined)
      throw new ProtocolError(`disk server ${this.path}: a stats answer without stats`);
    return stats;
  }

  /** Lets go of the connection; the server goes on, and logs no more. Idempotent. */
  async close(): Promise<void> {
    this.#finish(new CancelledError(`control socket of the disk server ${this.path}: closed by this side`));
    if (this.#socket.closed) return;
    await new Promise<void>((resolve) => this.#socket.once('close', () => resolve()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @throws DiskError, NoSpaceError if the server could not do it, PeerLostError if it is gone */
  async #ask(request: DiskRequest, value?: number, syncId?: string): Promise<Answer> {
    if (this.#end !== undefined) throw this.#end;
    const message = encodeDiskRequest(request, value, syncId);
    const answer = await new Promise<Answer>((resolve, reject) => {
      const timer = setTimeout(
        () => this.#finish(this.#lost(`no answer to ${request} within ${ANSWER_TIMEOUT_MS} ms`)),
        ANSWER_TIMEOUT_MS,
      );
      this.#waiting.push({ request, resolve, reject, timer });
      this.#socket.write(message);
    });
    if (answer.errno !== 0) {
      const name = errnoName(answer.errno);
      const message = `the disk server ${this.path} refused ${request}: ${name}`;
      const details = { request, errno: answer.errno };
      throw isFullErrno(name)
        ? new NoSpaceError(message, { cure: 'Make room where its log, beside the socket, says.', details })
        : new DiskError(message, { cure: 'Its log, beside the socket, says more.', details });
    }
    return answer;
  }

  #receive(chunk: Buffer): void {
    if (this.#end !== undefined) return;
    try {
      for (const message of this.#decoder.push(chunk)) this.#handle(message);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#finish(error);
    }
  }

  #handle(message: DiskMessage): void {
    switch (message.type) {
      case 'hello':
        this.#hello(message);
        return;
      case 'answer': {
        const waiting = this.#waiting.shift();
        if (waiting?.request !== message.request) {
          if (waiting !== undefined) this.#waiting.unshift(waiting);
          throw new ProtocolError(
            `disk server ${this.path}: answered ${message.request}, which was not asked`,
          );
        }
        clearTimeout(waiting.timer);
        waiting.resolve(message);
      }
    }
  }

  #hello({ active, version }: DiskMessage & { readonly type: 'hello' }): void {
    if (version !== DISK_PROTOCOL_VERSION) {
      this.#finish(
        new VersionError(
          `disk server ${this.path}: speaks version ${version} of the control protocol, not ${DISK_PROTOCOL_VERSION}`,
          {
            cure: 'The server was started by another version of Holdfast: use that one, or restart the VM.',
          },
        ),
      );
      return;
    }
    this.#active = active;
    this.#greeted?.resolve();
  }

  #lost(why: string): PeerLostError {
    return new PeerLostError(`control socket of the disk server ${this.path}: ${why}`, { cure });
  }

  #finish(reason: HoldfastError): void {
    if (this.#end !== undefined) return;
    this.#end = reason;
    this.#socket.destroy();
    this.#greeted?.reject(reason);
    for (const { reject, timer } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      reject(reason);
    }
    this.#settleClosed(reason);
  }
}

const errnoName = (errno: number): string => {
  try {
    return getSystemErrorName(-errno);
  } catch {
    return `errno ${errno}`;
  }
};
