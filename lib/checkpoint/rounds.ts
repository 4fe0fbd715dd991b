/**
 * When the VM is stopped for a checkpoint: as soon as what is left is copied within a few milliseconds, or
 * another round would not make it less. Pure.
 */

/** 20 MB are copied to staging in some 3.5 ms. */
export const PAUSE_BYTES = 20 << 20;
/** A round that leaves more than this part of what the one before it left was in vain. */
const SHRINKS_TO = 0.7;
const ROUNDS_MAX = 8;

/**
 * Whether to write one more round while the VM runs.
 *
 * @param dirtyBytes left after each round so far, the last one last; of an increment the first is what is dirty
 *   before any round
 */
export const needsAnotherRound = (dirtyBytes: readonly number[], stagingBytesMax: number): boolean => {
  const left = dirtyBytes.at(-1);
  if (left === undefined) return true;
  if (left <= PAUSE_BYTES || dirtyBytes.length > ROUNDS_MAX) return false;
  const before = dirtyBytes.at(-2);
  // What does not even fit into staging would be written while the VM stands still: that is worth more rounds.
  const isHopeless = before !== undefined && left > before * SHRINKS_TO;
  return !isHopeless || left > stagingBytesMax;
};
