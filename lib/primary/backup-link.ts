/**
 * The primary's control connection to its backup: one per session, opened with
 * the session message, watched by heartbeats from the moment the backup has
 * accepted it, closed with the session.
 */
import { type ControlChannel, connectControl, type HostPort } from '../control/channel.js';
import { Liveness } from '../control/liveness.js';
import type { ControlMessage, SessionMessage } from '../control/messages.js';
import {
  CancelledError,
  FencedError,
  type HoldfastError,
  PeerLostError,
  toHoldfastError,
} from '../errors.js';
import type { Dial } from './dial.js';

/** Reserving the replica's memory takes the backup about a second per 4 GB; then it starts QEMU. */
const SESSION_TIMEOUT_MS = 120_000;

export interface BackupLinkOptions {
  readonly address: HostPort;
  readonly key: Uint8Array;
  /** A connection that is made already, or being made; undefined, or without one: it makes its own. */
  readonly dial?: Dial | undefined;
  readonly session: SessionMessage;
  readonly connectTimeoutMs: number;
  readonly signal: AbortSignal;
  readonly onMessage: (message: ControlMessage) => void;
  /** Once, unless close() came before. */
  readonly onLost: (reason: string) => void;
}

type SessionReady = Extract<ControlMessage, { type: 'session-ready' }>;

/** The backup refuses because it is active in a newer term. */
export class SupersededError extends FencedError {
  readonly term: number;

  constructor(message: string, term: number) {
    super(message);
    this.term = term;
  }
}

export class BackupLink {
  readonly bulkPort: number;
  /** Of each disk's journal at the backup. */
  readonly journalBytes: number | undefined;
  /** Indexes of the session's page disks that it has. */
  readonly pageDisks: readonly number[];
  /** The checkpoint from which it would go on. */
  readonly fallback: SessionReady['fallback'];
  readonly #channel: ControlChannel;
  readonly #liveness: Liveness;
  #closed = false;

  private constructor(channel: ControlChannel, ready: SessionReady, options: BackupLinkOptions) {
    this.#channel = channel;
    this.bulkPort = ready.bulkPort;
    this.journalBytes = ready.journalBytes;
    this.pageDisks = ready.pageDisks ?? [];
    this.fallback = ready.fallback;
    const lost = (reason: string): void => {
      if (this.#closed) return;
      this.#closed = true;
      this.#liveness.stop();
      options.onLost(reason);
    };
    this.#liveness = new Liveness({
      intervalMs: options.session.heartbeatIntervalMs,
      timeoutMs: options.session.heartbeatTimeoutMs,
      sendHeartbeat: (sequence) => channel.send({ type: 'heartbeat', sequence }),
      idleMs: () => channel.idleMs(),
      onSilent: (idleMs) => lost(`the backup is silent since ${Math.round(idleMs)} ms`),
    });
    channel.on('closed', (error) => lost(error.message));
    channel.on('message', (message) => {
      if (!this.#closed) options.onMessage(message);
    });
  }

  /**
   * Connects, authenticates and opens the session.
   * @throws ConnectError, AuthError, VersionError, PeerLostError, CancelledError;
   *         SupersededError; or the error with which the backup refused.
   */
  static async open(options: BackupLinkOptions): Promise<BackupLink> {
    const { address, key, connectTimeoutMs: timeoutMs, signal } = options;
    const dialled = await options.dial?.take(signal);
    const link = dialled && (await BackupLink.#openOverDialled(dialled, options));
    if (link !== undefined) return link;
    const channel = await connectControl(address, key, { timeoutMs, signal });
    const end = endOf(channel);
    try {
      return await BackupLink.#openOver(channel, options);
    } catch (error) {
      throw error === end() && options.session.fallback !== undefined ? perhapsTooOld(end()!) : error;
    }
  }

  /**
   * A channel that nobody reads cannot show that its peer has gone since it was made: that is no answer of the
   * backup's, which may have been started anew.
   * @returns undefined: another is to be made
   */
  static async #openOverDialled(
    channel: ControlChannel,
    options: BackupLinkOptions,
  ): Promise<BackupLink | undefined> {
    let isHeard = false;
    channel.once('message', () => {
      isHeard = true;
    });
    const end = endOf(channel);
    try {
      return await BackupLink.#openOver(channel, options);
    } catch (error) {
      if (!isHeard && error === end()) return undefined;
      throw error;
    }
  }

  static async #openOver(channel: ControlChannel, options: BackupLinkOptions): Promise<BackupLink> {
    let link: BackupLink | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new PeerLostError(`the backup prepared no standby within ${SESSION_TIMEOUT_MS} ms`)),
          SESSION_TIMEOUT_MS,
        );
        const cancel = (): void => reject(new CancelledError('connecting to the backup was cancelled'));
        options.signal.addEventListener('abort', cancel, { once: true });
        const settle = (done: () => void): void => {
          clearTimeout(timer);
          options.signal.removeEventListener('abort', cancel);
          channel.off('message', onMessage);
          channel.off('closed', onClosed);
          done();
        };
        const onClosed = (error: Error): void => settle(() => reject(error));
        const onMessage = (message: ControlMessage): void => {
          if (message.type === 'session-ready') {
            // The link listens from this very message on: nothing that follows is missed.
            settle(() => {
              link = new BackupLink(channel, message, options);
              resolve();
            });
          } else if (message.type === 'session-refused') {
            settle(() => reject(refusal(message)));
          }
        };
        channel.on('message', onMessage);
        channel.on('closed', onClosed);
        channel.send(options.session);
        channel.start(); // and what it takes time for, while the backup is busy
      });
    } catch (error) {
      await channel.close();
      throw error;
    }
    return link!;
  }

  /** 32 bytes that the bulk connection of this session must show. */
  get bulkToken(): Uint8Array {
    return this.#channel.bulkToken;
  }

  send(message: ControlMessage): void {
    this.#channel.send(message);
  }

  /**
   * Tells the backup that its checkpoint is void, and waits for its word that
   * it dropped it: then it can't take over any more. False if no word came.
   */
  async detach(timeoutMs: number): Promise<boolean> {
    return await new Promise<boolean>((resolve) => {
      const settle = (confirmed: boolean): void => {
        clearTimeout(timer);
        this.#channel.off('message', onMessage);
        resolve(confirmed);
      };
      const timer = setTimeout(() => settle(false), timeoutMs);
      const onMessage = (message: ControlMessage): void => {
        if (message.type === 'detached') settle(true);
      };
      this.#channel.on('message', onMessage);
      if (!this.#channel.send({ type: 'detach' })) settle(false);
    });
  }

  /** Ends the session's connection; nothing is reported after this. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#liveness.stop();
    await this.#channel.close();
  }
}

/** Why the channel has ended; undefined: it has not. */
const endOf = (channel: ControlChannel): (() => HoldfastError | undefined) => {
  let end: HoldfastError | undefined;
  channel.once('closed', (error) => {
    end = error;
  });
  return () => end;
};

/** A backup that does not know `fallback` takes the session for what the protocol does not allow, and only closes. */
const perhapsTooOld = (end: HoldfastError): HoldfastError =>
  new PeerLostError(`${end.message}, without an answer to --fallback`, {
    cause: end,
    cure: 'If Holdfast there is older than --fallback: upgrade it there, or migrate without --fallback. Otherwise its log says why.',
  });

const refusal = (message: Extract<ControlMessage, { type: 'session-refused' }>): Error =>
  message.code === 'HOLDFAST_E_FENCED'
    ? new SupersededError(message.message, message.term ?? 0)
    : toHoldfastError(
        Object.assign(new Error(message.message), { code: message.code, cure: message.cure }),
        'the backup refused the session',
      );
