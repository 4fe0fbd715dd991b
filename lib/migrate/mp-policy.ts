/**
 * The memory-pattern policy (W. Chao, National Central University, 2018): a migration that cannot end by rounds
 * is ended by stop-and-copy early, paying a little more downtime, before it has eaten the link for nothing.
 * `fixed` as long as the guest is not memory-intensive (memory-state.ts).
 */
import { type MemoryThresholds, memoryState, memoryThresholds } from './memory-state.js';
import type { MigrationPolicy } from './policy.js';
import { decideWhatIsClear, describeRemainder, remainderOf } from './round-figures.js';
import { timeText } from './words.js';

/** Thresholds that differ from memory-state.ts. */
export type MpPolicyOptions = Partial<MemoryThresholds>;

export const mpPolicy = (options: MpPolicyOptions = {}): MigrationPolicy => {
  const thresholds = { ...memoryThresholds, ...options };
  return (rounds, limits) => {
    const clear = decideWhatIsClear(rounds, limits);
    if (clear !== undefined) return clear;
    const { expectedDowntimeMs } = remainderOf(rounds, limits);
    const { intensive, gainlessRounds, leftShare } = memoryState(rounds, thresholds);
    const remainder = describeRemainder(rounds, limits);
    const allowed = timeText(limits.downtimeMs);
    if (!intensive) {
      return {
        step: 'next-round',
        expectedDowntimeMs,
        reason: `${remainder}: more than the ${allowed} allowed, but the last round left only ${percentText(leftShare)} of what it had to send.`,
      };
    }
    const seen =
      gainlessRounds >= thresholds.gainlessRounds
        ? `each of the last ${gainlessRounds} rounds left ${percentText(thresholds.gainlessShare)} or more of what it had to send`
        : `the last ${thresholds.stretchRounds} rounds together left more than ${percentText(thresholds.stretchShare)}`;
    return {
      step: 'stop-and-copy',
      expectedDowntimeMs,
      reason: `${remainder}. The guest is memory-intensive (${seen}), so that further rounds would not bring it under the ${allowed} allowed.`,
    };
  };
};

const percentText = (share: number): string => `${Math.round(share * 100)} %`;
