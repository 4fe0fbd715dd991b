import type { LatencyHistogram } from '../../test/lab/latency-histogram.js';

/** What one turn of a probe found. */
export interface Sample {
  readonly roundTrips: LatencyHistogram;
  /** What was asked and never answered. */
  readonly lost: number;
  /** Undefined where the requests come at a pace of their own. */
  readonly repliesPerS?: number;
}
