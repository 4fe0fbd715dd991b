/**
 * `auto`: pre-copy, early stop-and-copy or post-copy, from the measured write rate, working set and link.
 *
 *   what remains fits ───────────────────────────────────────────► stop-and-copy
 *   rounds shrink, and a few more suffice ───────────────────────► next round
 *   they don't, and stopping now costs a little more than asked ─► stop-and-copy
 *   it costs a lot more ─┬─ the engine offers post-copy ─────────► post-copy
 *                        ├─ the remainder still comes down ──────► next round
 *                        └─ the guest is memory-intensive ───────► stop-and-copy
 *
 * The forecast: each further round leaves the share that the last one left, which is the guest's write rate
 * against the link's. It is too hopeful after a long first round, in which a small working set was written
 * many times over; the second round, as long as that set takes, shows it. So `auto` needs a round less than
 * `mp` to see a guest that writes as fast as the link, and more rounds never harm the forecast.
 */
import { type MemoryThresholds, memoryState, memoryThresholds } from './memory-state.js';
import type { MigrationDecision, MigrationLimits, MigrationPolicy, MigrationRound } from './policy.js';
import { decideWhatIsClear, describeRemainder, remainderOf, writeRate } from './round-figures.js';
import { bytesText, rateText, timeText } from './words.js';

/** Further rounds that the downtime asked for is worth. */
export const ROUNDS_AHEAD_MAX = 4;
/**
 * Early stop-and-copy is preferred up to this multiple of the downtime asked for. Beyond it post-copy is the
 * lesser evil: the guest waits for single pages, and dies with the source, until the last page is there.
 */
export const DOWNTIME_STRETCH_MAX = 3;

export interface AutoPolicyOptions extends Partial<MemoryThresholds> {
  /** The engine can resume the guest before all of its memory is there (default false). */
  readonly postCopyOffered?: boolean;
  readonly roundsAheadMax?: number;
  readonly downtimeStretchMax?: number;
}

export const autoPolicy = (options: AutoPolicyOptions = {}): MigrationPolicy => {
  const {
    postCopyOffered = false,
    roundsAheadMax = ROUNDS_AHEAD_MAX,
    downtimeStretchMax = DOWNTIME_STRETCH_MAX,
  } = options;
  const thresholds = { ...memoryThresholds, ...options };
  return (rounds, limits) => {
    const clear = decideWhatIsClear(rounds, limits);
    if (clear !== undefined) return clear;
    const { expectedDowntimeMs } = remainderOf(rounds, limits);
    const decide = (step: MigrationDecision['step'], because: string): MigrationDecision => ({
      step,
      expectedDowntimeMs,
      reason: `${describeRemainder(rounds, limits)}. ${because}`,
    });
    const { intensive } = memoryState(rounds, thresholds);
    const roundsAhead = roundsUntilItFits(rounds, limits);
    const allowed = timeText(limits.downtimeMs);
    if (!intensive && roundsAhead <= roundsAheadMax) {
      const more = roundsAhead === 1 ? 'One more round' : `About ${roundsAhead} more rounds`;
      return decide('next-round', `${more} would bring that under the ${allowed} allowed.`);
    }
    const why = describeContest(rounds, limits);
    // What the devices take of it no step spares.
    if (expectedDowntimeMs - limits.overheadMs <= downtimeStretchMax * limits.downtimeMs) {
      return decide('stop-and-copy', `${why}: stopping now costs little more than the ${allowed} allowed.`);
    }
    if (postCopyOffered) {
      return decide('post-copy', `${why}: it resumes over there first, and its memory follows.`);
    }
    return intensive
      ? decide('stop-and-copy', `${why}: further rounds would only use up the link.`)
      : decide('next-round', `${why}, but the remainder may still come down.`);
  };
};

/** Infinity: not by rounds. */
const roundsUntilItFits = (rounds: readonly MigrationRound[], limits: MigrationLimits): number => {
  const { pages, linkRate } = remainderOf(rounds, limits);
  const { leftShare } = memoryState(rounds);
  const fittingPages = ((limits.downtimeMs - limits.overheadMs) * linkRate) / limits.pageBytes;
  // Called when it does not fit, so there are pages, or the devices alone take too long.
  if (fittingPages <= 0 || leftShare >= 1) return Number.POSITIVE_INFINITY;
  return Math.max(1, Math.ceil(Math.log(fittingPages / pages) / Math.log(leftShare)));
};

const describeContest = (rounds: readonly MigrationRound[], limits: MigrationLimits): string => {
  const { linkRate } = remainderOf(rounds, limits);
  const workingSet = rounds.reduce((most, { dirtyPages }) => Math.max(most, dirtyPages), 0);
  const writes = `The guest dirtied ${rateText(writeRate(rounds, limits.pageBytes))} in the last round (at most ${bytesText(workingSet * limits.pageBytes)} a round)`;
  return linkRate === 0 ? writes : `${writes}, against a link of ${rateText(linkRate)}`;
};
