/** A policy and the limits, as the primary's machine asks them after each round. Pure. */
import type { AfterRound } from '../primary/machine.js';
import { limitReached, type MigrationLimit } from './migration-limit.js';
import type { MigrationLimits, MigrationPolicy } from './policy.js';

export interface AfterRoundOptions {
  readonly policy: MigrationPolicy;
  readonly limits: MigrationLimits;
  readonly limit: MigrationLimit;
  /** The VM may run over there before its memory does. */
  readonly postCopy?: boolean;
}

export const afterRound =
  ({ policy, limits, limit, postCopy = false }: AfterRoundOptions): AfterRound =>
  (rounds) => {
    const { step, reason } = policy(rounds, limits);
    if (step === 'post-copy' && postCopy) return 'post-copy';
    // A policy that asks for what it was not offered wants no further round.
    if (step !== 'next-round') return 'stop-and-copy';
    const elapsedMs = rounds.reduce((sum, { roundMs }) => sum + roundMs, 0);
    const why = limitReached({ rounds: rounds.length, elapsedMs }, limit);
    return why === undefined ? 'next-round' : notConverged(why, reason);
  };

export const notConverged = (why: string, reason = '') => ({
  code: 'HOLDFAST_E_LIMIT',
  message: `the migration is given up: ${why}${reason === '' ? '' : `; ${reason}`}`,
  cure: 'Allow a longer --downtime, or use --policy mp or auto, which stop a guest that writes faster than the link carries.',
});
