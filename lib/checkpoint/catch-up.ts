/**
 * What the guest wrote, taken out of what the pause would wait for: its memory in rounds, its images by a flush.
 *
 *   rounds ─► flush ─ short ─► the pause
 *     ▲         └─ long: memory was written meanwhile ─┐
 *     └────────────────────────────────────────────────┘  the last time without a flush behind it
 */
import { tookLong } from '../vm/flush-ahead.js';
import { needsAnotherRound } from './rounds.js';

const FLUSHES_MAX = 2;

export interface CatchUpSteps {
  /** @param number of the round, from 1. @returns bytes that are dirty behind it */
  readonly round: (number: number) => Promise<number>;
  /** @returns how long it took, in milliseconds */
  readonly flush: () => Promise<number>;
  readonly stagingBytesMax: number;
}

/** @returns how many rounds there were */
export const catchUp = async ({ round, flush, stagingBytesMax }: CatchUpSteps): Promise<number> => {
  let rounds = 0;
  for (let flushes = 0; ; flushes += 1) {
    const dirtyBytes: number[] = [];
    while (needsAnotherRound(dirtyBytes, stagingBytesMax)) {
      rounds += 1;
      dirtyBytes.push(await round(rounds));
    }
    if (flushes === FLUSHES_MAX || !tookLong(await flush())) return rounds;
  }
};
