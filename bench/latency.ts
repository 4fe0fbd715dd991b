/**
 * Suite `latency`: what a client of a protected VM waits, and what throughput
 * is left to it; by gate, and with epochs by the clock or by the load.
 *
 *   client ── LAN ── tap ──────────────── guest     unprotected, filter-buffer
 *   client ── LAN ── tap ── relay ─────── guest     unprotected, relay
 *
 * A 512 MB Linux guest with redis on TCG; client, guest and both roles share this
 * machine, each in a namespace of its own.
 */
import { turnPlans } from './latency/plan.js';
import { ratiosOf } from './latency/ratios.js';
import { measureTurns } from './latency/turns.js';
import type { BenchResult, RunSuite } from './report.js';

export const runLatencySuite: RunSuite = async (smoke, progress, wanted) => {
  const results: BenchResult[] = [];
  for (const plan of turnPlans(smoke, wanted)) results.push(...(await measureTurns(plan, progress)));
  return { results, ratios: ratiosOf(results) };
};
