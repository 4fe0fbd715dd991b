/** When to give a migration up. A policy does not say it: `fixed` would go on for ever by its own rule. */
import { timeText } from './words.js';

export interface MigrationLimit {
  readonly roundsMax: number;
  /** From the begin of the first round. */
  readonly totalMsMax: number;
}

/** What a migration is allowed that nobody limits: it ends, and 64 GiB pass a 1 Gbit/s link within it, twice. */
export const migrationLimit: MigrationLimit = { roundsMax: 100, totalMsMax: 30 * 60_000 };

/** Why to give it up; undefined: go on. */
export const limitReached = (
  so: { readonly rounds: number; readonly elapsedMs: number },
  limit: MigrationLimit,
): string | undefined => {
  if (so.rounds >= limit.roundsMax) return `it has not converged within ${limit.roundsMax} rounds`;
  if (so.elapsedMs >= limit.totalMsMax) return `it has not converged within ${timeText(limit.totalMsMax)}`;
  return undefined;
};
