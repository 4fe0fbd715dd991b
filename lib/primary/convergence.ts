/**
 * When to stop the live rounds of the base sync and go over to epochs: a pure
 * function over the rounds so far.
 */
import type { MigrationRound } from '../migrate/policy.js';
import type { DiskPages } from './page-disks.js';

export interface RoundStats extends MigrationRound {
  readonly scanMs: number;
  readonly sendMs: number;
  /** Of a migration that skips pages on disks. */
  readonly diskPages?: DiskPages;
}

/** True: enough; what is still dirty travels in the first epoch. */
export type ConvergencePolicy = (rounds: readonly RoundStats[]) => boolean;

export interface FixedConvergence {
  /** A round this small fits into a pause. */
  readonly pagesSmall: number;
  readonly roundsMax: number;
}

/**
 * Stops when a round is small, when rounds no longer shrink (the guest writes
 * as fast as the link sends: another round would cost the same again), or at
 * the limit.
 */
export const fixedConvergence =
  (limits: FixedConvergence): ConvergencePolicy =>
  (rounds) => {
    if (rounds.length < 2) return false; // the first round is the whole of RAM
    // What was skipped was to be sent: a round that is short because of it is not small.
    const total = (round: RoundStats | undefined): number =>
      round === undefined ? 0 : round.pages + round.zeroPages + (round.skippedPages ?? 0);
    const last = total(rounds.at(-1));
    if (last <= limits.pagesSmall || rounds.length >= limits.roundsMax) return true;
    return rounds.length >= 3 && last > 0.7 * total(rounds.at(-2));
  };
