/**
 * Whether the guest is memory-intensive: whether rounds still bring the end of the migration closer. After the
 * memory-pattern policy of W. Chao (National Central University, 2018), which looks at the memory's state after
 * each round; what the state is taken from, and the thresholds, are ours.
 *
 * A round gains when it leaves clearly less dirty than it had to send. Two tests, since a guest's writing comes
 * in bursts: rounds in a row that gain nothing, and a longer stretch that gains too little altogether. Any series
 * of rounds whatever ends up intensive, or at nothing to send.
 */
import type { MigrationRound } from './policy.js';
import { pagesToSend } from './round-figures.js';

/** A round that leaves at least this share of what it had to send gains nothing. */
export const GAINLESS_SHARE = 0.8;
/** So many of them in a row: memory-intensive. One alone may be a burst. */
export const GAINLESS_ROUNDS = 2;
/** Over so many rounds the remainder must at least halve: as if each left 0.84, the same as above with noise. */
export const STRETCH_ROUNDS = 4;
export const STRETCH_SHARE = 0.5;

export interface MemoryThresholds {
  readonly gainlessShare: number;
  readonly gainlessRounds: number;
  readonly stretchRounds: number;
  readonly stretchShare: number;
}

export const memoryThresholds: MemoryThresholds = {
  gainlessShare: GAINLESS_SHARE,
  gainlessRounds: GAINLESS_ROUNDS,
  stretchRounds: STRETCH_ROUNDS,
  stretchShare: STRETCH_SHARE,
};

export interface MemoryState {
  /** Another round would cost as much as the last one, and leave as much. */
  readonly intensive: boolean;
  /** The last rounds in a row that gained nothing. */
  readonly gainlessRounds: number;
  /** What the last round left of what it had to send: below 1 it shrinks. 1 if it had nothing to send. */
  readonly leftShare: number;
}

export const memoryState = (
  rounds: readonly MigrationRound[],
  thresholds: MemoryThresholds = memoryThresholds,
): MemoryState => {
  const last = rounds.length - 1;
  const gains = (index: number): boolean =>
    rounds[index]!.dirtyPages < thresholds.gainlessShare * pagesToSend(rounds, index);
  let index = last;
  while (index >= 0 && !gains(index)) index -= 1;
  const gainlessRounds = last - index;
  const before = rounds[last - thresholds.stretchRounds];
  const stagnates =
    before !== undefined && rounds[last]!.dirtyPages > thresholds.stretchShare * before.dirtyPages;
  const toSend = pagesToSend(rounds, last);
  return {
    intensive: stagnates || gainlessRounds >= thresholds.gainlessRounds,
    gainlessRounds,
    leftShare: toSend === 0 ? 1 : rounds[last]!.dirtyPages / toSend,
  };
};
