/**
 * Suite `migrate`: a running VM moved to another host, by Holdfast's engine and by QEMU's own, which the same
 * policies steer.
 *
 *   guest on host a ◄── to and fro, over the replication link ──► host b
 *        ▲ a client in a third namespace asks it something every few milliseconds
 *
 * Linux guests on TCG; both hosts and the client share this machine.
 */
import { migratePlan } from './migrate/plan.js';
import { ratiosOf } from './migrate/ratios.js';
import { measureWorkload } from './migrate/turns.js';
import type { BenchResult, RunSuite } from './report.js';

export const runMigrateSuite: RunSuite = async (smoke, progress, wanted) => {
  const results: BenchResult[] = [];
  for (const plan of migratePlan(smoke, wanted)) results.push(...(await measureWorkload(plan, progress)));
  return { results, ratios: ratiosOf(results) };
};
