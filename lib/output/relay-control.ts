/**
 * A connection to the control socket of a VM's relay (docs/relay.md).
 *
 *   connect() ──► HELLO ◄── relay         hold, prepare, boundary, release, open, pause, switch, stats: answered in order
 *                 OUTPUT ◄── relay        once per epoch, when its first frame is held
 *
 * The relay has one controller: a new connection replaces the old one, which finds itself closed. Losing
 * the connection changes nothing at the relay: what it holds stays held.
 */
import { createConnection, type Socket } from 'node:net';
import {
  CancelledError,
  ConnectError,
  type HoldfastError,
  PeerLostError,
  ProtocolError,
  VersionError,
} from '../errors.js';
import {
  encodeRelayRequest,
  RELAY_PROTOCOL_VERSION,
  type RelayMessage,
  RelayMessageDecoder,
  type RelayRequest,
  type RelayStats,
} from './relay-protocol.js';

export type { RelayStats } from './relay-protocol.js';

/** The relay answers within microseconds; one that takes so long has stopped working. */
const ANSWER_TIMEOUT_MS = 5_000;
const HELLO_TIMEOUT_MS = 5_000;

const cure =
  'Is the VM’s `holdfast relay` process still running? Without it the VM has no network. A relay that is ' +
  'started again with the same arguments connects to QEMU by itself.';

type Answer = RelayMessage & { readonly type: 'answer' };

const noListener = (): void => {};

interface Waiting {
  readonly request: RelayRequest;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: HoldfastError) => void;
  readonly timer: NodeJS.Timeout;
}

export class RelayControl implements AsyncDisposable {
  readonly path: string;
  /** Settles, never rejects, when the connection has ended, with the reason. */
  readonly closed: Promise<HoldfastError>;
  readonly #socket: Socket;
  readonly #decoder = new RelayMessageDecoder();
  readonly #waiting: Waiting[] = [];
  readonly #settleClosed: (reason: HoldfastError) => void;
  #end: HoldfastError | undefined;
  #holding = false;
  #greeted: { readonly resolve: () => void; readonly reject: (error: HoldfastError) => void } | undefined;
  #outputListener = noListener;
  /** An OUTPUT that came before anybody listened. */
  #outputUnheard = false;

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
      this.#finish(this.#lost('closed by the relay, or replaced by another controller')),
    );
  }

  /**
   * Connects, and settles once the relay has said what it is.
   * @throws ConnectError if no relay listens there, VersionError if it speaks another version.
   */
  static async connect(path: string): Promise<RelayControl> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', () => {
        socket.removeAllListeners('error');
        resolve();
      });
      socket.once('error', (error) =>
        reject(
          new ConnectError(`control socket of the relay ${path}: ${error.message}`, { cure, cause: error }),
        ),
      );
    });
    const control = new RelayControl(path, socket);
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

  /** As of the relay's last word: its greeting, or its answer to hold() or open(). */
  get holding(): boolean {
    return this.#holding;
  }
  get isClosed(): boolean {
    return this.#end !== undefined;
  }

  /** From now on what the guest sends is held. @returns frames that are held already. */
  async hold(): Promise<number> {
    const { frames } = await this.#ask('hold');
    this.#holding = true;
    return frames;
  }

  /**
   * VM about to be stopped: reads what QEMU has, past the bound, until the next boundary. To be awaited
   * before `stop` is sent, for a QEMU that waits for room in the socket drops that frame when it stops.
   * @returns frames that are held.
   */
  async prepare(): Promise<number> {
    return (await this.#ask('prepare')).frames;
  }

  /**
   * VM stopped, `stop` answered: all that the guest has sent is read and marked. The VM may run once this
   * has settled. @returns frames that are new before the mark.
   */
  async boundary(): Promise<number> {
    return (await this.#ask('boundary')).frames;
  }

  /** Lets everything before the last boundary go. @returns how many frames that was. */
  async release(): Promise<number> {
    return (await this.#ask('release')).frames;
  }

  /** Lets everything go, in order, and holds nothing from now on. @returns how many frames were held. */
  async open(): Promise<number> {
    const { frames } = await this.#ask('open');
    this.#holding = false;
    return frames;
  }

  /**
   * From now on nothing goes to the guest: it waits at the target, until the relay is connected to a QEMU
   * anew, and no longer than 2 s.
   */
  async pause(): Promise<void> {
    await this.#ask('pause');
  }

  /**
   * VM stopped: all that the guest has sent is read, and the relay connects to whoever listens on QEMU's
   * socket now. @returns whether somebody does
   */
  async switchQemu(): Promise<boolean> {
    return (await this.#ask('switch')).frames === 1;
  }

  async stats(): Promise<RelayStats> {
    const { stats } = await this.#ask('stats');
    if (stats === undefined) throw new ProtocolError(`relay ${this.path}: a stats answer without stats`);
    return stats;
  }

  /**
   * One listener: the first frame of the running epoch is held. At most once between two boundaries, and
   * for an epoch that has begun with a boundary only after what awaits that boundary() has run.
   */
  onOutput(listener: () => void): void {
    this.#outputListener = listener;
    if (!this.#outputUnheard) return;
    this.#outputUnheard = false;
    listener();
  }

  /** Lets go of the connection; the relay goes on as it is. Idempotent. */
  async close(): Promise<void> {
    this.#finish(new CancelledError(`control socket of the relay ${this.path}: closed by this side`));
    if (this.#socket.closed) return;
    await new Promise<void>((resolve) => this.#socket.once('close', () => resolve()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #ask(request: RelayRequest): Promise<Answer> {
    if (this.#end !== undefined) throw this.#end;
    return await new Promise<Answer>((resolve, reject) => {
      const timer = setTimeout(
        () => this.#finish(this.#lost(`no answer to ${request} within ${ANSWER_TIMEOUT_MS} ms`)),
        ANSWER_TIMEOUT_MS,
      );
      this.#waiting.push({ request, resolve, reject, timer });
      this.#socket.write(encodeRelayRequest(request));
    });
  }

  #receive(chunk: Buffer): void {
    if (this.#end !== undefined) return;
    try {
      let behindBoundary = false;
      for (const message of this.#decoder.push(chunk)) {
        if (message.type === 'answer' && message.request === 'boundary') behindBoundary = true;
        if (message.type !== 'output') this.#handle(message);
        // Of the next epoch: whoever awaits the boundary is to know of that first.
        else if (behindBoundary) setImmediate(() => this.#output());
        else this.#output();
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#finish(error);
    }
  }

  #output(): void {
    if (this.#end !== undefined) return;
    if (this.#outputListener === noListener) this.#outputUnheard = true;
    this.#outputListener();
  }

  #handle(message: Exclude<RelayMessage, { readonly type: 'output' }>): void {
    switch (message.type) {
      case 'hello':
        this.#hello(message);
        return;
      case 'answer': {
        const waiting = this.#waiting.shift();
        if (waiting?.request !== message.request) {
          if (waiting !== undefined) this.#waiting.unshift(waiting);
          throw new ProtocolError(`relay ${this.path}: answered ${message.request}, which was not asked`);
        }
        clearTimeout(waiting.timer);
        waiting.resolve(message);
      }
    }
  }

  #hello({ holding, version }: RelayMessage & { readonly type: 'hello' }): void {
    if (version !== RELAY_PROTOCOL_VERSION) {
      this.#finish(
        new VersionError(
          `relay ${this.path}: speaks version ${version} of the control protocol, not ${RELAY_PROTOCOL_VERSION}`,
          { cure: 'The relay was started by another version of Holdfast: use that one, or restart the VM.' },
        ),
      );
      return;
    }
    this.#holding = holding;
    this.#greeted?.resolve();
  }

  #lost(why: string): PeerLostError {
    return new PeerLostError(`control socket of the relay ${this.path}: ${why}`, { cure });
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
