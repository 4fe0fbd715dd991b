/**
 * The sending end of a page transfer: runs of a file-backed region go to a
 * PageReceiver, whole and verified or not at all.
 *
 *   send(runs) ─► [staged: copy aside] ─► frames, by reference ─► receiver
 *                      │ staged settles                             │ has all, digest right
 *   TransferResult ◄───┴───────────────────── acknowledgement ◄─────┘
 *
 * One transfer is under way at a time; further ones wait, in order.
 */
import {
  CancelledError,
  type HoldfastError,
  LimitError,
  toHoldfastError,
  UnsupportedHostError,
} from '../errors.js';
import { native, type SenderStrategy } from '../native.js';
import { isLocalPeer, unavailableSenders } from '../send/sender-availability.js';
import { SenderChooser, type SenderExplanation, type UnavailableSenders } from '../send/sender-choice.js';
import { binding, type TransferSender } from './binding.js';
import { type Deferred, deferred } from './deferred.js';
import { checkSenderSettings, METADATA_BYTES_MAX, type SenderSettings, TOKEN_BYTES } from './options.js';
import { type PageRuns, type RunTable, toRunTable } from './runs.js';

/** Transfers that wait for their turn, the one under way included. */
const WAITING_MAX = 64;

export interface OpenSenderOptions {
  /**
   * Address of a receiver and its `token` (32 bytes; default: all zero), or `fd`,
   * a connected stream socket (TCP or Unix). The socket becomes the sender's: it
   * is closed with it, and also if openSender rejects with anything but ConfigError.
   */
  readonly to:
    | { readonly host: string; readonly port: number; readonly token?: Uint8Array }
    | { readonly fd: number };
  /**
   * The file the region is part of: a path, or a descriptor open for reading,
   * which stays yours and may be closed once openSender has returned its promise.
   * Shared memory is a file too: /dev/shm/NAME, or a memfd's descriptor. It must
   * not shrink while the sender is open.
   */
  readonly file: string | number;
  /** Bytes; a multiple of `pageSize`, the same at the receiver. */
  readonly regionBytes: number;
  /** Where the region begins in the file, bytes; a multiple of `pageSize`. Default 0. */
  readonly fileOffset?: number;
  /** Bytes; default 4096, the same at the receiver. */
  readonly pageSize?: number;
  /**
   * How bytes get to the kernel; `auto` (default) measures and chooses for each
   * transfer. On hugetlbfs `sendfile` and `splice` are `vmsplice`: it takes no part in either.
   */
  readonly strategy?: SenderStrategy | 'auto';
  /** TCP connections that a transfer is spread over, 1 (default) to 16. */
  readonly streams?: number;
  /** Digest over every transfer, compared by the receiver. Default true; none if the receiver says false. */
  readonly verify?: boolean;
  /**
   * Copy the pages aside first: the region may change once `Transfer.staged`
   * has settled. Default false: it must not change before send() has settled.
   */
  readonly staged?: boolean;
  /** Bound of the memory for staging, bytes; default `regionBytes`. It grows to the largest transfer. */
  readonly stagingBytesMax?: number;
  /** Id of the first transfer; greater than all a receiver that is connected to again has taken. Default 1. */
  readonly firstId?: number;
  /** For connecting, milliseconds. Default 5000. */
  readonly timeoutMs?: number;
  /** Aborting cuts the connection at once: transfers under way and waiting reject with CancelledError. */
  readonly signal?: AbortSignal;
}

export interface SendPagesOptions {
  /** Travels with the pages and arrives with them; up to 1 MiB. Copied by the call. */
  readonly metadata?: Uint8Array;
}

/** What one transfer was, and what it cost. */
export interface TransferResult {
  /** Counts from `firstId`; the receiver sees the same. */
  readonly id: number;
  /** Pages whose bytes travelled. */
  readonly pages: number;
  /** Pages found to be all zero, of which only the numbers travelled. */
  readonly zeroPages: number;
  /** All bytes on the wire. */
  readonly bytes: number;
  /** For the copy to staging; 0 without. */
  readonly stageMs: number;
  /** Until the kernel had taken the last byte. */
  readonly sendMs: number;
  /** Until the receiver's acknowledgement. */
  readonly ackMs: number;
  /** CPU time of the sending threads. */
  readonly cpuMs: number;
  /** System calls that moved bytes. */
  readonly syscalls: number;
  /** Page bytes that the kernel copied, by its own account where it gives one. */
  readonly copiedBytes: number;
  /** Page bytes that it took by reference. */
  readonly referenceBytes: number;
  readonly strategy: SenderStrategy;
}

/** The promise of a transfer's result. */
export interface Transfer extends Promise<TransferResult> {
  /**
   * Settles when the region may change: with `staged`, once the pages are copied
   * aside, else together with the transfer. Rejects as the transfer does.
   */
  readonly staged: Promise<void>;
}

/** Made by openSender. */
export class PageSender implements AsyncDisposable {
  readonly #native: TransferSender;
  readonly #settings: SenderSettings;
  readonly #chooser: SenderChooser;
  readonly #where: string;
  #nextId: number;
  #waiting = 0;
  /** Settles, never rejects, when the last transfer accepted has settled. */
  #last: Promise<unknown> = Promise.resolve();
  #closed: Promise<void> | undefined;
  #failure: HoldfastError | undefined;

  private constructor(
    sender: TransferSender,
    settings: SenderSettings,
    chooser: SenderChooser,
    where: string,
  ) {
    this.#native = sender;
    this.#settings = settings;
    this.#chooser = chooser;
    this.#where = where;
    this.#nextId = settings.firstId;
  }

  /** @internal openSender is the way in. */
  static async open(options: OpenSenderOptions): Promise<PageSender> {
    const settings = checkSenderSettings(options);
    const { to, signal } = settings;
    const where = 'fd' in to ? `transfer on descriptor ${to.fd}` : `transfer to ${to.host} port ${to.port}`;
    const sender = new binding.TransferSender();
    const cut = (): void => void sender.close();
    try {
      // Taken over, or duplicated, within this call: before anything is awaited.
      const connected = sender.open(nativeOptions(settings));
      connected.catch(() => {}); // awaited further down, maybe after it has rejected
      signal?.addEventListener('abort', cut, { once: true });
      if (signal?.aborted) cut();
      const unavailable = lacking();
      if (settings.strategy !== 'auto' && unavailable.has(settings.strategy)) {
        throw new UnsupportedHostError(`${settings.strategy}: ${unavailable.get(settings.strategy)}`);
      }
      const chooser = new SenderChooser({
        sender: settings.strategy,
        unavailable,
        peerIsLocal: 'host' in to && (await isLocalPeer(to.host)),
      });
      await connected;
      const pages = new PageSender(sender, settings, chooser, where);
      signal?.removeEventListener('abort', cut);
      signal?.addEventListener('abort', pages.#abort, { once: true });
      if (signal?.aborted) pages.#abort();
      return pages;
    } catch (error) {
      signal?.removeEventListener('abort', cut);
      await sender.close();
      throw toHoldfastError(error, where);
    }
  }

  /** How the next pages will be sent, and why. */
  get strategy(): SenderExplanation {
    return this.#chooser.explain();
  }

  /**
   * Sends the pages of `runs`; settles when the receiver has all of them,
   * verified. If it rejects, the receiver has none of them, or all (when only its
   * acknowledgement was lost), and the sender is of no further use. The exceptions
   * are a ConfigError, a LimitError, and staging that found no memory: then nothing
   * was sent, and the next transfer may be.
   *
   * Without `staged` the pages are read when they leave, and again when TCP has
   * to repeat them: what changes in the region before the promise settles is a
   * torn page, or a ChecksumError.
   *
   * @param runs of whole pages, ascending and disjoint; none: only the metadata is sent
   * @throws nothing; rejects with ConfigError (runs, metadata), LimitError (64 transfers wait,
   *   more than `stagingBytesMax`, or a file that has shrunk), PeerLostError, ChecksumError,
   *   ProtocolError, NoSpaceError, CancelledError
   */
  send(runs: PageRuns, options: SendPagesOptions = {}): Transfer {
    const staged = deferred<void>();
    return Object.assign(this.#enqueue(runs, options, staged), { staged: staged.promise });
  }

  /** Waits for the transfers accepted so far, then closes the connection. Idempotent. */
  async close(): Promise<void> {
    this.#closed ??= this.#last.then(() => this.#end());
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  readonly #abort = (): void => {
    this.#failure ??= new CancelledError(`${this.#where}: aborted`);
    this.#closed = this.#end();
  };

  async #end(): Promise<void> {
    this.#settings.signal?.removeEventListener('abort', this.#abort);
    await this.#native.close();
  }

  async #enqueue(runs: PageRuns, options: SendPagesOptions, staged: Deferred<void>): Promise<TransferResult> {
    try {
      const { regionBytes, pageSize } = this.#settings;
      const table = toRunTable(runs, regionBytes / pageSize);
      const metadata = checkMetadata(options.metadata);
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#closed !== undefined) throw new CancelledError(`${this.#where}: closed`);
      if (this.#waiting === WAITING_MAX) {
        throw new LimitError(`${this.#where}: ${WAITING_MAX} transfers are waiting`);
      }
      this.#waiting += 1;
      const mine = this.#last.then(() => this.#transfer(table, metadata, staged));
      this.#last = mine.catch(() => {}).finally(() => (this.#waiting -= 1));
      const result = await mine;
      staged.resolve();
      return result;
    } catch (error) {
      staged.reject(error);
      throw error;
    }
  }

  async #transfer(table: RunTable, metadata: Uint8Array, staging: Deferred<void>): Promise<TransferResult> {
    if (this.#failure !== undefined) throw this.#failure;
    const id = this.#nextId;
    const { staged, pageSize } = this.#settings;
    let stageMs = 0;
    try {
      if (staged) {
        stageMs = await this.#native.stage({ runs: table.pairs });
        staging.resolve();
      }
    } catch (error) {
      throw toHoldfastError(error, this.#where);
    }
    const source = staged ? 'staged' : 'direct';
    const strategy = this.#chooser.next({ pages: table.pages, runs: table.runs, pageSize, source });
    try {
      const sent = await this.#native.send({
        id,
        staged,
        strategy,
        metadata,
        ...(staged ? {} : { runs: table.pairs }),
      });
      this.#nextId = id + 1; // one of which nothing was sent leaves its id to the next
      const result = { id, stageMs, strategy, ...sent };
      this.#chooser.observe(result);
      return result;
    } catch (error) {
      const failure = toHoldfastError(error, this.#where);
      if (!(failure instanceof LimitError)) this.#failure ??= failure;
      throw this.#failure ?? failure;
    }
  }
}

let lackingHere: UnavailableSenders | undefined;

/** What this kernel does not let this process use: probed once, for it opens connections. */
const lacking = (): UnavailableSenders => {
  lackingHere ??= unavailableSenders(native.probeSenders());
  return lackingHere;
};

const checkMetadata = (metadata: Uint8Array | undefined): Uint8Array => {
  if (metadata === undefined) return new Uint8Array();
  if (metadata.length <= METADATA_BYTES_MAX) return metadata.slice();
  throw new LimitError(`metadata: ${metadata.length} bytes exceed ${METADATA_BYTES_MAX}`);
};

const nativeOptions = (settings: SenderSettings): Parameters<TransferSender['open']>[0] => {
  const { to, file, fileOffset, regionBytes, pageSize, stagingBytesMax, streams, verify, timeoutMs } =
    settings;
  return {
    ...(typeof file === 'string' ? { path: file } : { fileFd: file }),
    ...('fd' in to ? { socketFd: to.fd } : { host: to.host, port: to.port }),
    token: ('token' in to ? to.token : undefined) ?? new Uint8Array(TOKEN_BYTES),
    fileOffset,
    regionBytes,
    pageSize,
    stagingBytesMax: stagingBytesMax ?? regionBytes,
    streams,
    verify,
    timeoutMs,
  };
};

/**
 * Connects to a PageReceiver (openReceiver) and maps the region.
 *
 * @throws ConfigError (an option; the message names it), ConnectError, AuthError (the token),
 *   ProtocolError (regionBytes or pageSize differ), SystemError (the file, the descriptor),
 *   LimitError (the file is shorter than the region), UnsupportedHostError (a strategy that
 *   this kernel lacks), CancelledError (aborted)
 */
export const openSender = async (options: OpenSenderOptions): Promise<PageSender> =>
  await PageSender.open(options);
