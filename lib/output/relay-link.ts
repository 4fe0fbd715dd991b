/**
 * The primary's hold on one relay, through the relay's death.
 *
 *   connected ──relay ends──► recovering: find it or start another, connect, hold again ──► connected
 *                                   └─ in vain ──► the next who needs it tries anew, and fails if it must
 *
 * What a relay held dies with it: packet loss, which is no breach of output commit. What comes after it is
 * held again from the first frame, for the new relay reads from its `….held` file that it must.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type HoldfastError, RelayError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { isAlive } from '../vm/process.js';
import type { RelayControl, RelayStats } from './relay-control.js';
import { relayFiles, targetText, type VmRelay } from './relay-files.js';
import { reachRelay, type StartRelayOptions, wantHeld } from './relay-process.js';

export type ReachRelay = (relay: VmRelay, options: StartRelayOptions) => Promise<RelayControl>;

export interface RelayLinkOptions {
  readonly relay: VmRelay;
  readonly log: Logger;
  readonly onOutput: () => void;
  readonly reach?: ReachRelay | undefined;
  readonly want?: typeof wantHeld | undefined;
}

const RECOVERY_ATTEMPTS_MAX = 3;
const RECOVERY_PAUSE_MS = 100;

export class RelayLink {
  readonly #relay: VmRelay;
  readonly #log: Logger;
  readonly #onOutput: () => void;
  readonly #reach: ReachRelay;
  readonly #want: typeof wantHeld;
  readonly #abort = new AbortController();
  #control: RelayControl | undefined;
  #recovering: Promise<RelayControl> | undefined;
  #hold = false;

  constructor(options: RelayLinkOptions) {
    this.#relay = options.relay;
    this.#log = options.log;
    this.#onOutput = options.onOutput;
    this.#reach = options.reach ?? reachRelay;
    this.#want = options.want ?? wantHeld;
  }

  /** Connects, to a relay that is started if none runs. @returns whether it holds */
  async connect(): Promise<boolean> {
    const control = await this.#connect();
    this.#hold = control.holding;
    return this.#hold;
  }

  async hold(): Promise<void> {
    this.#hold = true;
    await this.#want(this.#relay.socket, true);
    await this.#insist((control) => control.hold());
  }

  /**
   * @returns frames behind the boundary
   * @throws HoldfastError if the relay is gone and cannot be replaced.
   */
  async boundary(): Promise<number> {
    return await this.#insist((control) => control.boundary());
  }

  /** A relay that is lost is the boundary's to report. */
  async prepare(): Promise<void> {
    await this.#control?.prepare().catch(() => {});
  }

  /** What died with a relay needs no release; what a new one holds was not before the last boundary. */
  async release(): Promise<void> {
    const control = this.#control;
    if (control === undefined) return;
    await control.release().catch((error: unknown) => {
      if (!control.isClosed) throw error;
    });
  }

  async open(): Promise<void> {
    this.#hold = false;
    await this.#want(this.#relay.socket, false); // first: a relay that is started from now on passes
    await this.#insist((control) => control.open());
  }

  async stats(): Promise<RelayStats | undefined> {
    return await this.#control?.stats().catch(() => undefined);
  }

  /** Lets go; the relay goes on as it is. */
  async close(): Promise<void> {
    this.#abort.abort();
    const control = this.#control;
    this.#control = undefined;
    await control?.close();
    await this.#recovering?.then(
      (late) => late.close(),
      () => {},
    );
  }

  /** Asks the relay, and once more the one that comes after it, if it is lost meanwhile. */
  async #insist<Answer>(ask: (control: RelayControl) => Promise<Answer>): Promise<Answer> {
    const control = this.#control ?? (await this.#recover());
    try {
      return await ask(control);
    } catch (error) {
      if (!control.isClosed || this.#abort.signal.aborted) throw error;
      return await ask(await this.#recover());
    }
  }

  async #connect(): Promise<RelayControl> {
    const control = await this.#reach(this.#relay, { hold: this.#hold, signal: this.#abort.signal });
    control.onOutput(this.#onOutput);
    this.#control = control;
    void control.closed.then((reason) => {
      if (this.#control !== control) return;
      this.#control = undefined;
      void this.#lost(reason);
    });
    return control;
  }

  async #lost(reason: HoldfastError): Promise<void> {
    const { vm } = this.#relay;
    if (this.#abort.signal.aborted || (vm !== null && !(await isAlive(vm)))) return; // it ends with its VM
    this.#log.error({ ...this.#names(), err: reason.message }, 'the relay is lost; looking for it');
    this.#recover().catch(() => {}); // whoever needs it next tries anew
  }

  #recover(): Promise<RelayControl> {
    if (this.#control !== undefined && !this.#control.isClosed) return Promise.resolve(this.#control);
    this.#control = undefined;
    this.#recovering ??= this.#tryToRecover().finally(() => {
      this.#recovering = undefined;
    });
    return this.#recovering;
  }

  async #tryToRecover(): Promise<RelayControl> {
    const beganMs = performance.now();
    let failure: HoldfastError | undefined;
    for (let attempt = 0; attempt < RECOVERY_ATTEMPTS_MAX && !this.#abort.signal.aborted; attempt += 1) {
      try {
        if (attempt > 0) await delay(RECOVERY_PAUSE_MS, undefined, { signal: this.#abort.signal });
        const control = await this.#connect();
        if (this.#hold) await control.hold(); // also if somebody else has started it
        this.#log.warn(
          { ...this.#names(), afterMs: performance.now() - beganMs },
          'a relay is in place again; frames that the old one held are lost',
        );
        return control;
      } catch (error) {
        failure = toHoldfastError(error);
        this.#log.error({ ...this.#names(), attempt, err: failure.message }, 'no relay');
      }
    }
    const { netdev, target, socket } = this.#relay;
    throw new RelayError(
      `the relay between netdev ${netdev} and the ${targetText(target)} is lost and could not be replaced: ${failure?.message ?? 'closed'}`,
      { cause: failure, cure: `Its log is ${relayFiles(socket).log}.` },
    );
  }

  #names(): { netdev: string; target: string } {
    return { netdev: this.#relay.netdev, target: targetText(this.#relay.target) };
  }
}
