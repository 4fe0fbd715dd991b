/**
 * Heartbeats, the same on both sides: sends one every interval, and reports
 * once when nothing was heard for the time-out.
 *
 *   turn ─ idle over the time-out? ─► turn was late? ─► one more turn
 *                                          └─ no ─► after the poll phase ─► still idle? ─► onSilent
 *
 * If this process itself was asleep, what the peer sent may still lie unread in
 * the socket: so the judgement waits until the event loop has read what there
 * is, and after a late turn for one more turn, so that a stalled event loop is
 * not taken for a dead peer. Silence counts from the begin of the watch at the
 * earliest: before it the peer may have had no reason to speak.
 */

export interface LivenessOptions {
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly sendHeartbeat: (sequence: number) => void;
  /** Milliseconds since anything was heard from the peer, on any connection. */
  readonly idleMs: () => number;
  readonly onSilent: (idleMs: number) => void;
}

export class Liveness {
  readonly #options: LivenessOptions;
  readonly #timer: NodeJS.Timeout;
  readonly #startedMs = performance.now();
  #sequence = 0;
  #lastTurnMs = this.#startedMs;
  /** A late turn was excused; the next one that is late no longer is, or a busy loop would never judge. */
  #excused = false;
  #judgement: NodeJS.Immediate | undefined;

  constructor(options: LivenessOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#turn(), options.intervalMs);
  }

  stop(): void {
    clearInterval(this.#timer);
    clearImmediate(this.#judgement);
  }

  #turn(): void {
    const nowMs = performance.now();
    const late = nowMs - this.#lastTurnMs > 2 * this.#options.intervalMs;
    this.#lastTurnMs = nowMs;
    this.#options.sendHeartbeat(this.#sequence++);
    if (this.#silenceMs() <= this.#options.timeoutMs) {
      this.#excused = false;
    } else if (late && !this.#excused) {
      this.#excused = true;
    } else {
      // Timers run before the sockets are read, immediates after it.
      clearImmediate(this.#judgement);
      this.#judgement = setImmediate(() => this.#judge());
    }
  }

  #judge(): void {
    const silenceMs = this.#silenceMs();
    if (silenceMs <= this.#options.timeoutMs) return;
    this.stop();
    this.#options.onSilent(silenceMs);
  }

  #silenceMs(): number {
    return Math.min(this.#options.idleMs(), performance.now() - this.#startedMs);
  }
}
