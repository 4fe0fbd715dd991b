import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { percentile, SampleWindow } from '../../lib/stats.js';

describe('percentile', () => {
  it('is the nearest rank', () => {
    const samples = [5, 1, 4, 2, 3];
    expect([0, 1, 20, 21, 50, 99, 100].map((p) => percentile(samples, p))).toEqual([1, 1, 1, 2, 3, 5, 5]);
    expect(samples).toEqual([5, 1, 4, 2, 3]);
  });

  it('of nothing is not a number, of one sample that sample', () => {
    expect(percentile([], 50)).toBeNaN();
    expect(percentile([7], 99)).toBe(7);
  });

  it('is always a sample, grows with p, and sorts numbers as numbers', () => {
    expect(percentile([10, 9, 100], 50)).toBe(10);
    fc.assert(
      fc.property(
        fc.array(fc.double({ noNaN: true }), { minLength: 1, maxLength: 200 }),
        fc.double({ min: 0, max: 100, noNaN: true }),
        fc.double({ min: 0, max: 100, noNaN: true }),
        (samples, a, b) => {
          const [low, high] = [Math.min(a, b), Math.max(a, b)];
          expect(samples).toContain(percentile(samples, low));
          expect(percentile(samples, low)).toBeLessThanOrEqual(percentile(samples, high));
        },
      ),
    );
  });
});

describe('SampleWindow', () => {
  it('keeps the latest samples, whatever came before', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 20 }),
        fc.array(fc.integer(), { maxLength: 100 }),
        (capacity, all) => {
          const window = new SampleWindow(capacity);
          for (const sample of all) window.add(sample);
          const latest = all.slice(-capacity);
          expect([...window.values].sort((a, b) => a - b)).toEqual([...latest].sort((a, b) => a - b));
        },
      ),
    );
  });

  it('sums up', () => {
    const window = new SampleWindow(100);
    expect(window.summary()).toBeUndefined();
    for (let sample = 1; sample <= 150; sample += 1) window.add(sample);
    expect(window.summary()).toEqual({ p50: 100, p99: 149, max: 150 });
  });
});
