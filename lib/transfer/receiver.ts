/**
 * The receiving end of a page transfer: a file that shows one whole transfer
 * after the other, and an iterator over them.
 *
 *   wire ─► staging ─► complete, digest right ─► acknowledgement ─► iterator
 *                                                                     │ taken
 *                                          file ◄── applied ◄─────────┘
 *
 * A transfer is written to the file only when the iterator has handed it out:
 * until the consumer asks for the next one, the file stays as it is. Two may
 * wait in memory meanwhile; then the sender waits.
 */
import { randomBytes } from 'node:crypto';
import { CancelledError, type HoldfastError, toHoldfastError } from '../errors.js';
import {
  binding,
  type CommittedTransfer,
  type TransferReceiver,
  type TransferReceiverEvent,
} from './binding.js';
import { type Deferred, deferred } from './deferred.js';
import { checkReceiverSettings, METADATA_BYTES_MAX, type ReceiverSettings, TOKEN_BYTES } from './options.js';

export interface OpenReceiverOptions {
  /**
   * Address to listen on (`port` 0 or none: any free one), or `fd`, a connected
   * stream socket. The socket becomes the receiver's: it is closed with it, and
   * also if openReceiver rejects with anything but ConfigError.
   */
  readonly listen: { readonly host: string; readonly port?: number } | { readonly fd: number };
  /**
   * Path of the file to create, usually on a tmpfs; a regular file of that name
   * is replaced. All of its memory is reserved at once. It stays when the receiver closes.
   */
  readonly file: string;
  /** Bytes; a multiple of `pageSize`, the same at the sender. */
  readonly regionBytes: number;
  /** Bytes; default 4096, the same at the sender. */
  readonly pageSize?: number;
  /** 32 bytes that a sender has to show. Default: random when listening, all zero on a descriptor. */
  readonly token?: Uint8Array;
  /** Digest over every transfer, compared before it is acknowledged. Default true; none if the sender says false. */
  readonly verify?: boolean;
  /**
   * So many transfers may be written to the file before the iterator has handed
   * them out; default 0. More keeps a slow consumer from slowing the sender, at
   * the price that the file runs ahead of what the consumer has seen.
   */
  readonly aheadMax?: number;
  /** The iterator ends with the first connection. Default false; always so on a descriptor. */
  readonly once?: boolean;
  /** Aborting closes the receiver; the iterator rejects with CancelledError. */
  readonly signal?: AbortSignal;
}

/** A transfer that has arrived: whole, verified, acknowledged. */
export interface Received {
  readonly id: number;
  /** Pages whose bytes travelled. */
  readonly pages: number;
  /** Pages that became all zero. */
  readonly zeroPages: number;
  /** All bytes on the wire. */
  readonly bytes: number;
  readonly metadata: Uint8Array;
  /** From its first byte to the acknowledgement. */
  readonly receiveMs: number;
  /** CPU time of the receiving threads. */
  readonly receiveCpuMs: number;
  /** System calls that received bytes. */
  readonly receiveSyscalls: number;
  /** Of the receiving time, what the digest took; 0 without. */
  readonly digestMs: number;
  /** Settles when the pages are in the file; rejects with CancelledError if the receiver closes first. */
  readonly applied: Promise<void>;
}

type Ending = { readonly kind: 'done' } | { readonly kind: 'failed'; readonly error: HoldfastError };

/** Made by openReceiver. */
export class PageReceiver implements AsyncDisposable {
  readonly token: Uint8Array;
  readonly #native: TransferReceiver;
  readonly #settings: ReceiverSettings;
  readonly #once: boolean;
  readonly #ready: Received[] = [];
  readonly #takers: Deferred<Received | undefined>[] = [];
  readonly #unapplied = new Map<number, Deferred<void>>();
  #port = 0;
  #ending: Ending | undefined;
  #interruption: HoldfastError | undefined;
  #closed: Promise<void> | undefined;

  private constructor(settings: ReceiverSettings) {
    const onDescriptor = 'fd' in settings.listen;
    this.#settings = settings;
    this.#once = onDescriptor || (settings.once ?? false);
    this.token = settings.token ?? (onDescriptor ? new Uint8Array(TOKEN_BYTES) : randomBytes(TOKEN_BYTES));
    this.#native = new binding.TransferReceiver({ onEvent: (event) => this.#onEvent(event) });
  }

  /** @internal openReceiver is the way in. */
  static async open(options: OpenReceiverOptions): Promise<PageReceiver> {
    const settings = checkReceiverSettings(options);
    const { listen, file, signal } = settings;
    const where = 'fd' in listen ? `receiver on descriptor ${listen.fd}` : `receiver on ${listen.host}`;
    const receiver = new PageReceiver(settings);
    try {
      // The descriptor is taken over within this call: before anything is awaited.
      const opened = receiver.#native.open({
        ...('fd' in listen ? { socketFd: listen.fd } : listen),
        token: receiver.token,
        path: file,
        regionBytes: settings.regionBytes,
        pageSize: settings.pageSize,
        verify: settings.verify,
        metadataBytesMax: METADATA_BYTES_MAX,
        aheadMax: settings.aheadMax,
      });
      receiver.#port = await opened;
      if (signal?.aborted) throw new CancelledError('aborted');
      signal?.addEventListener('abort', receiver.#abort, { once: true });
      return receiver;
    } catch (error) {
      await receiver.close();
      throw toHoldfastError(error, where);
    }
  }

  /** Port it listens on; 0 on a descriptor. */
  get port(): number {
    return this.#port;
  }

  /**
   * Why the last connection ended that was cut off within a transfer (which was
   * dropped), or broke the protocol; undefined if none did.
   */
  get lastInterruption(): HoldfastError | undefined {
    return this.#interruption;
  }

  /**
   * The transfers, in order, each once; several iterators share them. Ends when
   * the receiver is closed or, with `once`, when the connection has ended between
   * two transfers. Rejects with the reason if it has ended within one (which is
   * dropped), or with CancelledError if the signal is aborted. Leaving a loop
   * early loses nothing: a later one goes on.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Received, void, undefined> {
    for (;;) {
      const received = await this.#take();
      if (received === undefined) return;
      yield received;
    }
  }

  /** Cuts the connection and ends the iterator; the file stays. Idempotent. */
  async close(): Promise<void> {
    this.#closed ??= this.#end({ kind: 'done' });
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  readonly #abort = (): void => {
    const error = new CancelledError('receiver: aborted');
    this.#closed ??= this.#end({ kind: 'failed', error });
  };

  async #end(ending: Ending): Promise<void> {
    this.#settings.signal?.removeEventListener('abort', this.#abort);
    this.#ready.length = 0;
    this.#finish(ending);
    await this.#native.close();
    const error = new CancelledError('receiver: closed before the transfer was applied');
    for (const { reject } of this.#unapplied.values()) reject(error);
    this.#unapplied.clear();
  }

  /** What is ready is still handed out. The first ending stays. */
  #finish(ending: Ending): void {
    this.#ending ??= ending;
    for (const taker of this.#takers.splice(0)) {
      if (this.#ending.kind === 'done') taker.resolve(undefined);
      else taker.reject(this.#ending.error);
    }
  }

  async #take(): Promise<Received | undefined> {
    const received = this.#ready.shift();
    if (received !== undefined) {
      this.#native.allow();
      return received;
    }
    if (this.#ending?.kind === 'failed') throw this.#ending.error;
    if (this.#ending?.kind === 'done') return undefined;
    const taker = deferred<Received | undefined>();
    this.#takers.push(taker);
    return await taker.promise;
  }

  #onEvent(event: TransferReceiverEvent): void {
    switch (event.type) {
      case 'connected':
      case 'round':
        return;
      case 'committed':
        this.#onCommitted(event);
        return;
      case 'applied':
        this.#unapplied.get(event.epoch)?.resolve();
        this.#unapplied.delete(event.epoch);
        return;
      case 'disconnected':
        this.#onDisconnected(event);
        return;
    }
  }

  #onCommitted(event: CommittedTransfer): void {
    const applied = deferred<void>();
    this.#unapplied.set(event.epoch, applied);
    const received: Received = {
      id: event.epoch,
      pages: event.pages,
      zeroPages: event.zeroPages,
      bytes: event.bytes,
      metadata: event.state,
      receiveMs: event.receiveMs,
      receiveCpuMs: event.receiveCpuMs,
      receiveSyscalls: event.receiveSyscalls,
      digestMs: event.digestMs,
      applied: applied.promise,
    };
    const taker = this.#takers.shift();
    if (taker === undefined) {
      this.#ready.push(received);
      return;
    }
    this.#native.allow();
    taker.resolve(received);
  }

  #onDisconnected(event: Extract<TransferReceiverEvent, { type: 'disconnected' }>): void {
    // A sender that closes and one that dies look alike between transfers.
    const isOrderly = event.droppedEpoch === 0 && event.code === 'HOLDFAST_E_PEER_LOST';
    if (!isOrderly) {
      const dropped =
        event.droppedEpoch === 0 ? 'receiver' : `receiver: transfer ${event.droppedEpoch} was dropped`;
      this.#interruption = toHoldfastError(event, dropped);
    }
    if (!this.#once) return;
    this.#finish(
      isOrderly || this.#interruption === undefined
        ? { kind: 'done' }
        : { kind: 'failed', error: this.#interruption },
    );
  }
}

/**
 * Creates the file and waits for a sender (openSender) in the background.
 *
 * @throws ConfigError (an option; the message names it), NoSpaceError (the file), LimitError
 *   (regionBytes and the file system's page size), SystemError (the address, the file),
 *   CancelledError (aborted)
 */
export const openReceiver = async (options: OpenReceiverOptions): Promise<PageReceiver> =>
  await PageReceiver.open(options);
