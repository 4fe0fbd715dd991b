/**
 * The destination of a migration by QEMU's engine that a `holdfast backup` opens: its session, and the connection
 * that both QEMUs are given.
 *
 *   session        ──►  QEMU launched, -incoming defer, to stay paused
 *                  ◄──  session-ready { bulkPort }
 *   token (bulk)   ══►  the connection is given to the QEMU there
 *                  ◄──  stream-taken
 *   the connection is given to the QEMU here; `uri` names it
 *   switchover     ──►  cont                                           resume()
 *                  ◄──  took-over | takeover-failed
 */

import type { ControlMessage } from '../control/messages.js';
import { connectWithToken, descriptorOf } from '../control/token-stream.js';
import { PeerLostError, QmpError } from '../errors.js';
import { BackupLink, type BackupLinkOptions, SupersededError } from '../primary/backup-link.js';
import type { Failure } from '../primary/machine.js';
import type { QmpClient } from '../qmp/client.js';
import type { MigrationTarget } from './target.js';

const DESCRIPTOR = 'holdfast-outgoing';
/** The whole of it is the only checkpoint there is. */
const EPOCH = 1;

export type TookOver = Extract<ControlMessage, { type: 'took-over' }>;

export type RemoteTargetOptions = Omit<BackupLinkOptions, 'onMessage' | 'onLost'>;

export class RemoteTarget implements MigrationTarget {
  readonly uri = `fd:${DESCRIPTOR}`;
  readonly #options: RemoteTargetOptions;
  readonly #lost = new AbortController();
  #link: BackupLink | undefined;
  #failure: Failure | undefined;
  #refusal: Failure | undefined;
  #tookOver: TookOver | undefined;
  #handedOver = false;
  #fenced: SupersededError | undefined;

  private constructor(options: RemoteTargetOptions) {
    this.#options = options;
  }

  /** Opens the session. @throws as BackupLink.open(): SupersededError if the VM runs over there */
  static async open(options: RemoteTargetOptions): Promise<RemoteTarget> {
    const target = new RemoteTarget(options);
    target.#link = await BackupLink.open({
      ...options,
      onMessage: (message) => target.#hear(message),
      onLost: (reason) => target.#lose({ code: 'HOLDFAST_E_PEER_LOST', message: reason }),
    });
    return target;
  }

  /** Gives both QEMUs the two ends of one connection. @throws ConnectError, PeerLostError, QmpError */
  async connect(qmp: QmpClient): Promise<void> {
    const { address, connectTimeoutMs } = this.#options;
    const link = this.#link!;
    const taken = this.#until((message) => message.type === 'stream-taken');
    const socket = await connectWithToken({ host: address.host, port: link.bulkPort }, link.bulkToken, {
      timeoutMs: connectTimeoutMs,
    });
    try {
      await taken;
      await qmp.passDescriptor(DESCRIPTOR, descriptorOf(socket));
    } finally {
      socket.destroy(); // QEMU has a duplicate
    }
  }

  /** Aborts when the destination is lost, or of no further use. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Why it is. */
  get failure(): Failure | undefined {
    return this.#failure;
  }

  /** Why it did not run the VM, though it had all of it. */
  get refusal(): Failure | undefined {
    return this.#refusal;
  }

  get tookOver(): TookOver | undefined {
    return this.#tookOver;
  }

  /** It runs the VM already, on somebody else's word. */
  get fenced(): SupersededError | undefined {
    return this.#fenced;
  }

  /** It was told to run the VM, and has not said that it doesn't. */
  get mayRun(): boolean {
    return this.#handedOver && this.#refusal === undefined;
  }

  async resume(): Promise<void> {
    if (this.#fenced !== undefined) throw this.#fenced;
    // Not told: it certainly does not run it.
    if (this.#failure !== undefined) throw new QmpError(this.#failure.message);
    this.#handedOver = true;
    const answered = this.#until(({ type }) => type === 'took-over' || type === 'takeover-failed');
    this.#link?.send({ type: 'switchover', epoch: EPOCH });
    const message = await answered;
    if (message.type === 'took-over') this.#tookOver = message;
    if (message.type !== 'takeover-failed') return;
    this.#refusal = { code: message.code, message: message.message };
    throw new QmpError(message.message);
  }

  /** What it has of the VM is dropped. */
  async abandon(): Promise<void> {
    const link = this.#link;
    if (link === undefined) return;
    if (this.#failure === undefined) await link.detach(this.#options.session.heartbeatTimeoutMs);
    await this.close();
  }

  async close(): Promise<void> {
    const link = this.#link;
    this.#link = undefined;
    await link?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #hear(message: ControlMessage): void {
    this.#onMessage(message);
    if (message.type === 'failure') this.#lose(message);
    if (message.type === 'session-refused') {
      this.#fenced = new SupersededError(message.message, message.term ?? 0);
      this.#lose(message);
    }
  }

  #onMessage: (message: ControlMessage) => void = () => {};

  /** The next message that will do. @throws PeerLostError the destination was lost first */
  #until(fits: (message: ControlMessage) => boolean): Promise<ControlMessage> {
    const answered = new Promise<ControlMessage>((resolve, reject) => {
      const fail = (): void =>
        reject(new PeerLostError(this.#failure?.message ?? 'the destination was lost'));
      if (this.#failure !== undefined) fail();
      this.#lost.signal.addEventListener('abort', fail, { once: true });
      this.#onMessage = (message) => {
        if (!fits(message)) return;
        this.#lost.signal.removeEventListener('abort', fail);
        resolve(message);
      };
    });
    answered.catch(() => {}); // awaited later
    return answered;
  }

  #lose({ code, message }: Failure): void {
    this.#failure ??= { code, message };
    this.#lost.abort();
  }
}
