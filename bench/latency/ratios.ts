/** The suite's figures to reach; and how they stand to the unprotected guest, and to epochs by the clock. */
import { type BenchResult, metricOf } from '../report.js';
import { INTERVALS_MS } from './set-ups.js';

export const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number => metricOf(results, name, key);
  const p50 = (name: string): number => metric(name, 'roundTripMsP50');
  const p99 = (name: string): number => metric(name, 'roundTripMsP99');
  /** The shortest delay that a fixed interval has; not a number if one of them wasn't measured. */
  const byTheClock = (probe: string): number =>
    Math.min(...INTERVALS_MS.map((intervalMs) => p50(`${probe}-relay-${intervalMs}ms`)));
  return {
    pingProtectedMsP50: p50('ping-relay-adaptive'),
    pingProtectedMsP99: p99('ping-relay-adaptive'),
    redisOneClientMsP50: p50('redis-1-relay-adaptive'),
    redisThroughputShare: metric('redis-50-relay-adaptive', 'throughputShareP50'),
    pingProtectedVsUnprotectedP50: p50('ping-relay-adaptive') / p50('ping-relay-unprotected'),
    pingProtectedVsUnprotectedP99: p99('ping-relay-adaptive') / p99('ping-relay-unprotected'),
    redisOneClientVsUnprotected: p50('redis-1-relay-adaptive') / p50('redis-1-relay-unprotected'),
    pingAdaptiveVsInterval: p50('ping-relay-adaptive') / byTheClock('ping'),
    redisOneClientAdaptiveVsInterval: p50('redis-1-relay-adaptive') / byTheClock('redis-1'),
    // Two guests, but the same client, load and run: what a user sees who knew the VM on a bare tap.
    redisThroughputVsTapUnprotected:
      metric('redis-50-relay-adaptive', 'repliesPerSP50') /
      metric('redis-50-tap-unprotected', 'repliesPerSP50'),
    pingRelayVsFilterBuffer: p50('ping-relay-25ms') / p50('ping-filter-buffer-25ms'),
    pingRelayVsTapUnprotected: p50('ping-relay-unprotected') / p50('ping-tap-unprotected'),
  };
};
