/**
 * Two senders measured in turns over the same stretch of time, so that what else
 * the machine does meanwhile weighs on both alike. Pure.
 *
 *   incumbent  ─┬─ A B  B A  B A … ─► how much dearer B was in each pair: the median
 *   challenger ─┘                   ─► who is the incumbent from here on
 *
 * Only what was measured side by side is compared. When the machine becomes busy
 * in the middle, that is one pair of five; among each side's samples by itself it
 * could be the one that decides.
 */
import type { SenderStrategy } from '../native.js';

/** What sending one megabyte (10⁶ bytes on the wire) cost. */
export interface SendCost {
  /** CPU time of the sending threads. */
  readonly cpuMsPerMB: number;
  /** From the start of the send to the acknowledgement. */
  readonly ackMsPerMB: number;
}

/** A millisecond for which output is held counts as much as one of CPU. */
export const totalOf = (cost: SendCost): number => cost.cpuMsPerMB + cost.ackMsPerMB;

/** Pairs of samples: the median of five bears two outliers. */
export const CONTEST_SAMPLES = 5;
/** The challenger must be cheaper by this share: what separates equals is noise. */
export const WIN_MARGIN = 0.1;
/** Beyond this factor two samples are enough to see that the challenger has lost. */
const HOPELESS_FACTOR = 2;
const HOPELESS_SAMPLES = 2;
/** Sends that were too small to measure, or failed, don't keep a contest open for ever. */
const TURNS_MAX = 4 * CONTEST_SAMPLES;

export type ContestVerdict = 'open' | 'incumbent' | 'challenger';

export class Contest {
  readonly incumbent: SenderStrategy;
  readonly challenger: SenderStrategy;
  readonly #incumbentCosts: SendCost[] = [];
  readonly #challengerCosts: SendCost[] = [];
  #turns = 0;

  constructor(incumbent: SenderStrategy, challenger: SenderStrategy) {
    this.incumbent = incumbent;
    this.challenger = challenger;
  }

  /** Whose turn it is. */
  next(): SenderStrategy {
    this.#turns += 1;
    const samples = this.#incumbentCosts.length + this.#challengerCosts.length;
    const isSecondOfPair = samples % 2 === 1;
    if (isSecondOfPair) {
      return this.#incumbentCosts.length > this.#challengerCosts.length ? this.challenger : this.incumbent;
    }
    return isSwappedPair(samples / 2) ? this.challenger : this.incumbent;
  }

  add(strategy: SenderStrategy, cost: SendCost): void {
    if (strategy === this.incumbent) this.#incumbentCosts.push(cost);
    else if (strategy === this.challenger) this.#challengerCosts.push(cost);
  }

  verdict(): ContestVerdict {
    const incumbents = this.#incumbentCosts.map(totalOf);
    const challengers = this.#challengerCosts.map(totalOf);
    const pairs = Math.min(incumbents.length, challengers.length);
    if (pairs >= CONTEST_SAMPLES) {
      const shares = challengers.slice(0, pairs).map((cost, pair) => cost / incumbents[pair]!);
      return lowerMedian(shares, (share) => share)! < 1 - WIN_MARGIN ? 'challenger' : 'incumbent';
    }
    const isHopeless =
      pairs >= HOPELESS_SAMPLES && Math.min(...challengers) > HOPELESS_FACTOR * Math.max(...incumbents);
    return isHopeless ? 'incumbent' : this.#exhausted();
  }

  /** Of the samples so far; undefined before each side has one. */
  medians(): { readonly incumbent: SendCost; readonly challenger: SendCost } | undefined {
    const incumbent = lowerMedian(this.#incumbentCosts, totalOf);
    const challenger = lowerMedian(this.#challengerCosts, totalOf);
    return incumbent === undefined || challenger === undefined ? undefined : { incumbent, challenger };
  }

  #exhausted(): ContestVerdict {
    return this.#turns >= TURNS_MAX ? 'incumbent' : 'open';
  }
}

/** Thue–Morse: no workload with a period of its own meets always the same side. */
const isSwappedPair = (pair: number): boolean => {
  let isSwapped = false;
  for (let rest = pair; rest > 0; rest >>= 1) isSwapped = isSwapped !== ((rest & 1) === 1);
  return isSwapped;
};

const lowerMedian = <T>(values: readonly T[], rank: (value: T) => number): T | undefined =>
  [...values].sort((a, b) => rank(a) - rank(b))[(values.length - 1) >> 1];
