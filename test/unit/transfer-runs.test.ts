/** Run tables: every table that is accepted says exactly what was asked for. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { toRunTable } from '../../lib/transfer/runs.js';

const pagesOf = (pairs: Uint32Array): number[] => {
  const pages: number[] = [];
  for (let at = 0; at < pairs.length; at += 2) {
    for (let page = pairs[at]!; page < pairs[at]! + pairs[at + 1]!; page++) pages.push(page);
  }
  return pages;
};

describe('toRunTable', () => {
  it('keeps the pages, joins neighbours and leaves the argument alone', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(3), fc.integer({ min: 1, max: 5 }))), (lengths) => {
        let end = 0;
        const ranges = lengths.map(([gap, pages]) => {
          const firstPage = end + gap;
          end = firstPage + pages;
          return { firstPage, pages };
        });
        const pairs = Uint32Array.from(ranges.flatMap(({ firstPage, pages }) => [firstPage, pages]));
        const given = pairs.slice();
        const table = toRunTable(pairs, end);
        expect(pairs).toEqual(given);
        expect(table).toEqual(toRunTable(ranges, end));
        expect(pagesOf(table.pairs)).toEqual(pagesOf(given));
        expect(table.pages).toBe(pagesOf(given).length);
        expect(table.runs).toBe(
          new Set(pagesOf(given).filter((page, index, all) => all[index - 1] !== page - 1)).size,
        );
      }),
    );
  });

  it('accepts any words only if they are ascending, disjoint and inside', () => {
    fc.assert(
      fc.property(fc.uint32Array({ max: 12, maxLength: 6 }), fc.nat(12), (words, regionPages) => {
        const pages = pagesOf(words);
        const isRight =
          words.length % 2 === 0 &&
          words.every((word, index) => index % 2 === 0 || word > 0) &&
          pages.every((page, index) => index === 0 || page > pages[index - 1]!) &&
          pages.every((page) => page < regionPages);
        if (isRight) expect(pagesOf(toRunTable(words, regionPages).pairs)).toEqual(pages);
        else expect(() => toRunTable(words, regionPages)).toThrow(/^runs: /);
      }),
      { numRuns: 2_000 },
    );
  });

  it.each([
    [-1, 1],
    [0, 0],
    [0.5, 1],
    [0, 2 ** 32],
    [2 ** 32, 1],
    [Number.NaN, 1],
    [2 ** 32 - 1, 2],
  ])('refuses first page %d, pages %d', (firstPage, pages) => {
    expect(() => toRunTable([{ firstPage, pages }], 2 ** 32)).toThrow(/^runs: run 0/);
  });

  it('reaches the last page of the largest region, in one run', () => {
    const { pairs } = toRunTable(Uint32Array.of(0, 2 ** 31, 2 ** 31, 2 ** 31 - 1), 2 ** 32 - 1);
    expect(pairs).toEqual(Uint32Array.of(0, 2 ** 32 - 1));
  });
});
