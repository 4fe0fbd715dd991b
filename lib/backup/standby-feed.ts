/**
 * What a standby is given before it is needed: the prefix of the checkpoint's stream, which takes QEMU longer
 * to load than the devices, and stays the same over most epochs.
 *
 *   launched ─► a prefix is known: feed ─► waits for the devices' state
 *                                            └─ the checkpoint has another prefix: replace
 *
 * A QEMU loads once: one that has another prefix than the checkpoint's cannot run it.
 */

/** What a standby was given; a number: that prefix, as the receiver counts them. */
export type Fed =
  /** Nothing: it does not listen yet. */
  | 'starting'
  | 'nothing'
  | 'under-way'
  /** Part of a prefix, or of a takeover's state: it has not run, and never will. */
  | 'spoiled'
  | number;

/** Standbys that ended after they were given a prefix, or did not take it, before it is kept from the next. */
const FED_LOSSES_MAX = 3;

export type FeedStep = 'none' | 'feed' | 'replace';

export interface FeedSituation {
  /** The checkpoint's, or what has come ahead of the first; 0: there is none yet. */
  readonly prefix: number;
  readonly fed: Fed;
  /** Standbys that ended with this prefix, or did not take it. */
  readonly losses: number;
}

export const feedStep = ({ prefix, fed, losses }: FeedSituation): FeedStep => {
  if (isUseless(fed, prefix)) return 'replace';
  return fed === 'nothing' && prefix > 0 && losses < FED_LOSSES_MAX ? 'feed' : 'none';
};

/** It cannot run the checkpoint that has this prefix. */
export const isUseless = (fed: Fed, prefix: number): boolean =>
  fed === 'spoiled' || (typeof fed === 'number' && fed !== prefix);
