/** Where a trace's guest processes come from: the run queues in its RAM, or its agent. */
import type { GuestRecord } from './document.js';

export interface GuestSource {
  /** Begins to look; settles when it has seen the guest. */
  start(): Promise<void>;
  /** Idempotent. */
  stop(): Promise<void>;
  /** What was seen, after stop(). @param originNs the trace's begin on CLOCK_MONOTONIC */
  record(originNs: number, durationUs: number): GuestRecord;
}
