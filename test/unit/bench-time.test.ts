/** The guest's clock against the host's: what the suite `time` makes of its samples. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { renderHtml } from '../../bench/html/page.js';
import { renderMarkdown } from '../../bench/markdown.js';
import { makeReport } from '../../bench/report.js';
import { bestOfWindows, type ClockSample, driftPpm, stepMs } from '../../bench/time/drift.js';

/** A guest whose clock goes at `rate`, asked every `everyMs` over a way that takes what `delayMs` says. */
const ask = (options: {
  readonly rate: number;
  readonly count: number;
  readonly delayMs: (index: number) => number;
  readonly startMs?: number;
  readonly offsetMs?: number;
}): ClockSample[] => {
  const { rate, count, delayMs, startMs = 0, offsetMs = 1e9 } = options;
  return Array.from({ length: count }, (_, index) => {
    const askedMs = startMs + index * 20;
    return { askedMs, guestMs: offsetMs + (askedMs + delayMs(index)) * rate };
  });
};

describe('drift', () => {
  test('of a clock that goes right is none, however long most questions take', () => {
    const samples = ask({ rate: 1, count: 1_000, delayMs: (index) => (index % 10 === 3 ? 0.1 : 50) });
    expect(driftPpm(bestOfWindows(samples, 250))).toBeCloseTo(0, 6);
  });

  test('is what was put in, through any delays that spare one question in each window', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -400_000, max: 400_000 }),
        fc.array(fc.double({ min: 0.2, max: 500, noNaN: true }), { minLength: 7, maxLength: 7 }),
        (ppm, delays) => {
          const samples = ask({
            rate: 1 + ppm / 1e6,
            count: 2_000,
            delayMs: (index) => (index % 10 === 0 ? 0.2 : delays[index % 7]!),
          });
          expect(driftPpm(bestOfWindows(samples, 1_000))).toBeCloseTo(ppm, -3);
        },
      ),
    );
  });

  test('single bad windows do not count', () => {
    const points = bestOfWindows(ask({ rate: 1.000_01, count: 5_000, delayMs: () => 0.2 }), 1_000);
    const bad = points.map((point, index) =>
      index % 9 === 4 ? { ...point, offsetMs: point.offsetMs + 300 } : point,
    );
    expect(driftPpm(bad)).toBeCloseTo(10, 0);
  });

  test('of less than two windows is not a number', () => {
    expect(driftPpm([])).toBeNaN();
    expect(driftPpm([{ hostMs: 0, offsetMs: 0 }])).toBeNaN();
  });
});

test('a step is what lies between two stretches', () => {
  const before = bestOfWindows(ask({ rate: 1, count: 100, delayMs: () => 0.2 }), 500);
  const after = bestOfWindows(
    ask({ rate: 1, count: 100, delayMs: () => 0.2, startMs: 10_000, offsetMs: 1e9 - 70 }),
    500,
  );
  expect(stepMs(before, after)).toBeCloseTo(-70, 6);
  expect(stepMs([], after)).toBeNaN();
});

test('the report names its figures with their units', () => {
  const report = makeReport(
    { suite: 'time', smoke: true, startedAt: new Date() },
    {
      results: [
        {
          name: 'time-protected',
          params: { protected: true, intervalMs: 20 },
          metrics: { driftPpm: -12.5, offsetGainedMs: -7.5, pausedShare: 0.12 },
        },
      ],
      ratios: { timeDriftProtectedPpm: -12.5, timeDriftUnprotectedPpm: Number.NaN },
    },
  );
  expect(report.ratios).toEqual({ timeDriftProtectedPpm: -12.5 });
  const page = renderMarkdown([report]);
  expect(page).toContain('drift, ppm');
  expect(page).toContain('with a checkpoint every 20 ms');
  expect(renderHtml([report])).toContain('The guest’s clock');
});
