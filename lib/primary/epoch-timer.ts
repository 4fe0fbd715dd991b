/** Makes ticks of what pace.ts says: one timer, set anew whenever the deadline may have moved. */
import type { Deadline, Pace, PaceTrigger } from './pace.js';

/** Less than this is no time for a timer: the next turn of the event loop does. */
const AT_ONCE_MS = 0.5;

export class EpochTimer {
  readonly #pace: Pick<Pace, 'began' | 'deadline'>;
  readonly #onTick: (trigger: PaceTrigger) => void;
  #timer: NodeJS.Timeout | undefined;
  #immediate: NodeJS.Immediate | undefined;
  #armed = false;

  constructor(pace: Pick<Pace, 'began' | 'deadline'>, onTick: (trigger: PaceTrigger) => void) {
    this.#pace = pace;
    this.#onTick = onTick;
  }

  /** An epoch begins; one tick will tell that the next one is due. */
  arm(): void {
    this.#pace.began(performance.now());
    this.#armed = true;
    this.replan();
  }

  disarm(): void {
    this.#armed = false;
    this.#clear();
  }

  /** The deadline may have moved. */
  replan(): void {
    this.#clear();
    if (!this.#armed) return;
    const deadline = this.#pace.deadline();
    const waitMs = deadline.atMs - performance.now();
    // Never from within the caller: it may be about to carry out the begin of this very epoch.
    if (waitMs < AT_ONCE_MS) this.#immediate = setImmediate(() => this.#tick(deadline));
    else this.#timer = setTimeout(() => this.#tick(deadline), Math.round(waitMs));
  }

  #tick({ trigger }: Deadline): void {
    this.disarm();
    this.#onTick(trigger);
  }

  #clear(): void {
    clearTimeout(this.#timer);
    clearImmediate(this.#immediate);
  }
}
