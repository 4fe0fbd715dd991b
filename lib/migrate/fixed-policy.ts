/**
 * KVM's rule, as in QEMU's migration_iteration_run(): stop-and-copy only when what remains fits the downtime
 * that was asked for, at the rate that was measured. A guest that writes as fast as the link carries never
 * gets there: when to give up is the caller's to say (migration-limit.ts).
 */
import type { MigrationPolicy } from './policy.js';
import { decideWhatIsClear, describeRemainder, remainderOf } from './round-figures.js';
import { timeText } from './words.js';

export const fixedPolicy = (): MigrationPolicy => (rounds, limits) =>
  decideWhatIsClear(rounds, limits) ?? {
    step: 'next-round',
    expectedDowntimeMs: remainderOf(rounds, limits).expectedDowntimeMs,
    reason: `${describeRemainder(rounds, limits)}: more than the ${timeText(limits.downtimeMs)} allowed.`,
  };
