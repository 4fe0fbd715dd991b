/** Where the pages of a transfer lie. */
import type { Scattered, TransferShape } from './protocol.js';

/** A small seeded generator (mulberry32): both a run and its repetition pick the same pages. */
const generator = (seed: number): (() => number) => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
};

/**
 * Runs over the whole region, ascending, as pairs of first page and number of
 * pages. Each lies somewhere in its own slot and leaves at least one page of
 * it free, so that no two runs become one.
 */
export const scatter = (
  regionPages: number,
  { runPages, pages, seed }: Scattered,
): Uint32Array<ArrayBuffer> => {
  const count = pages / runPages;
  const slotPages = regionPages / count;
  if (!Number.isInteger(count) || slotPages < runPages + 1) {
    throw new RangeError(`${pages} pages in runs of ${runPages} do not scatter over ${regionPages}`);
  }
  const random = generator(seed);
  const runs = new Uint32Array(2 * count);
  for (let index = 0; index < count; index += 1) {
    const first = Math.floor(index * slotPages);
    const room = Math.floor((index + 1) * slotPages) - first - runPages;
    runs[2 * index] = first + Math.floor(random() * room);
    runs[2 * index + 1] = runPages;
  }
  return runs;
};

export const runsOf = (regionPages: number, shape: TransferShape): Uint32Array =>
  'firstPage' in shape ? Uint32Array.of(shape.firstPage, shape.pages) : scatter(regionPages, shape);
