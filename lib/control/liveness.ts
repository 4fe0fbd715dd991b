/**
 * Heartbeats, the same on both sides: sends one every interval, and reports
 * once when nothing was heard for the time-out.
 *
 * If this process itself was asleep (a late timer), what the peer sent may
 * still lie unread in the socket: then the judgement waits for one more turn,
 * so that a stalled event loop is not taken for a dead peer.
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
  #sequence = 0;
  #lastTurnMs = performance.now();

  constructor(options: LivenessOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#turn(), options.intervalMs);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #turn(): void {
    const nowMs = performance.now();
    const late = nowMs - this.#lastTurnMs > 2 * this.#options.intervalMs;
    this.#lastTurnMs = nowMs;
    this.#options.sendHeartbeat(this.#sequence++);
    const idleMs = this.#options.idleMs();
    if (late || idleMs <= this.#options.timeoutMs) return;
    this.stop();
    this.#options.onSilent(idleMs);
  }
}
