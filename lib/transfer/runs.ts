/** Run tables: which pages of the region a transfer carries. */
import { ConfigError } from '../errors.js';

/** Consecutive pages of the region. */
export interface PageRange {
  /** Number of the first page, from 0. */
  readonly firstPage: number;
  /** At least 1. */
  readonly pages: number;
}

/**
 * Ranges, or the same as pairs of first page and number of pages. Ascending and
 * disjoint; adjacent ones are joined.
 */
export type PageRuns = readonly PageRange[] | Uint32Array;

export interface RunTable {
  /** Pairs of first page and number of pages: ascending, disjoint, not adjacent. */
  readonly pairs: Uint32Array;
  readonly runs: number;
  readonly pages: number;
}

/** Checks and copies, so that the caller's array may change afterwards. Throws ConfigError. */
export const toRunTable = (runs: PageRuns, regionPages: number): RunTable => {
  const given = runs instanceof Uint32Array ? runs.slice() : pairsOf(runs);
  if (given.length % 2 !== 0) throw new ConfigError(`runs: ${given.length} words are not pairs`);
  let words = 0;
  let end = 0;
  let total = 0;
  for (let at = 0; at < given.length; at += 2) {
    const firstPage = given[at]!;
    const pages = given[at + 1]!;
    const isFirst = words === 0;
    if (pages === 0 || (!isFirst && firstPage < end) || firstPage + pages > regionPages) {
      throw new ConfigError(refusal(at / 2, firstPage, pages, end, regionPages));
    }
    // What was read is never read again: the table is compacted in place.
    if (!isFirst && firstPage === end) {
      given[words - 1]! += pages;
    } else {
      given[words++] = firstPage;
      given[words++] = pages;
    }
    end = firstPage + pages;
    total += pages;
  }
  return { pairs: given.subarray(0, words), runs: words / 2, pages: total };
};

const refusal = (
  index: number,
  firstPage: number,
  pages: number,
  end: number,
  regionPages: number,
): string => {
  const run = `runs: run ${index} (first page ${firstPage}, pages ${pages})`;
  if (pages === 0) return `${run} is empty`;
  if (firstPage < end) return `${run} begins before page ${end}, where the run before it ended`;
  return `${run} ends beyond the region of ${regionPages} pages`;
};

const pairsOf = (runs: readonly PageRange[]): Uint32Array => {
  const pairs = new Uint32Array(runs.length * 2);
  runs.forEach(({ firstPage, pages }, index) => {
    // A number that 32 bits don't hold would turn into another one.
    if (firstPage >>> 0 !== firstPage || pages >>> 0 !== pages) {
      throw new ConfigError(
        `runs: run ${index} (first page ${firstPage}, pages ${pages}) is not of whole numbers below 2^32`,
      );
    }
    pairs[2 * index] = firstPage;
    pairs[2 * index + 1] = pages;
  });
  return pairs;
};
