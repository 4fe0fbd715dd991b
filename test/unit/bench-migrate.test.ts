/** The suite `migrate`: which cases there are, what a client's gap is, and what is compared with what. */
import { describe, expect, test } from 'vitest';
import { CaseFilter } from '../../bench/case-filter.js';
import { renderHtml } from '../../bench/html/page.js';
import { renderMarkdown } from '../../bench/markdown.js';
import { longestGapMs } from '../../bench/migrate/outside.js';
import { migratePlan } from '../../bench/migrate/plan.js';
import { ratiosOf } from '../../bench/migrate/ratios.js';
import { resultOf } from '../../bench/migrate/turns.js';
import { type BenchResult, makeReport } from '../../bench/report.js';

const namesOf = (smoke: boolean, only?: string): string[] =>
  migratePlan(smoke, new CaseFilter(only)).flatMap(({ cases }) => cases.map(({ name }) => name));

describe('the plan', () => {
  test('has each policy of each engine, and what a guest that outruns the link needs', () => {
    const names = namesOf(false);
    for (const engine of ['holdfast', 'qemu']) {
      for (const policy of ['fixed', 'fixed-relaxed', 'mp', 'auto']) {
        expect(names).toContain(`writer-${policy}-${engine}`);
      }
      expect(names).toContain(`idle-fixed-${engine}`);
      expect(names).toContain(`redis-auto-${engine}`);
    }
    expect(names).toContain('cache-fixed-holdfast');
    expect(new Set(names).size).toBe(names.length);
  });

  test('limits the link only where that is the point', () => {
    const limits = migratePlan(false, new CaseFilter()).map(({ workload, size }) => [
      workload,
      size.mbitPerS,
    ]);
    expect(limits).toEqual([
      ['idle', undefined],
      ['redis', undefined],
      ['writer', 400],
      ['cache', 400],
    ]);
  });

  test('boots no guest for cases that nobody wants', () => {
    expect(namesOf(false, 'writer-mp-*')).toEqual(['writer-mp-holdfast', 'writer-mp-qemu']);
    expect(migratePlan(false, new CaseFilter('writer-mp-*'))).toHaveLength(1);
    expect(namesOf(true).every((name) => /^(idle|writer)-/.test(name))).toBe(true);
  });
});

describe("a client's gap", () => {
  const answers = (...sequences: readonly number[]): string =>
    sequences.map((seq) => `64 bytes from 10.77.0.10: seq=${seq} ttl=64 time=0.4 ms\n`).join('');

  test('is the longest time between two requests that were answered', () => {
    expect(longestGapMs(answers(0, 1, 2, 9, 10))).toBe(35);
    expect(longestGapMs(answers(0, 1, 2))).toBe(5);
  });

  test('is unknown of less than two', () => {
    expect(longestGapMs(answers(3))).toBeUndefined();
    expect(longestGapMs('')).toBeUndefined();
  });
});

const result = (name: string, metrics: BenchResult['metrics']): BenchResult => ({
  name,
  params: { workload: name.split('-')[0]!, engine: name.split('-').at(-1)!, allowedDowntimeMs: 300 },
  metrics: { trials: 20, arrived: 20, ...metrics },
});

const results = [
  result('idle-fixed-holdfast', { totalMsP50: 400, downtimeMsP50: 9, stopMsP50: 0.5 }),
  result('idle-fixed-qemu', { totalMsP50: 800, downtimeMsP50: 12 }),
  result('writer-fixed-holdfast', { arrived: 0 }),
  result('writer-fixed-qemu', { trials: 2, arrived: 1 }),
  result('writer-mp-holdfast', { totalMsP50: 6_000, linkBytesP50: 3e8 }),
  result('writer-mp-qemu', { arrived: 19 }),
  result('writer-fixed-relaxed-holdfast', { totalMsP50: 8_000, linkBytesP50: 4e8 }),
];

test('time and data are of the same moves: those that arrived', () => {
  const plan = migratePlan(true, new CaseFilter()).find(({ workload }) => workload === 'writer')!;
  const common = { rounds: 5, allowedMs: 30, clientGapMs: undefined };
  const moved = {
    ...common,
    event: 'moved',
    totalMs: 700,
    downtimeMs: 20,
    linkBytes: 3e8,
    parts: {},
  } as const;
  const stayed = {
    ...common,
    event: 'stayed',
    totalMs: 9_000,
    linkBytes: 9e8,
    code: '',
    message: '',
  } as const;
  const { metrics } = resultOf(plan, plan.cases[0]!, [stayed, moved, stayed]);
  expect(metrics).toMatchObject({ trials: 3, arrived: 1, totalMsP50: 700, linkBytesP50: 3e8 });
  expect(metrics.stayedLinkBytesP50).toBe(9e8);
  expect(resultOf(plan, plan.cases[0]!, [stayed]).metrics).not.toHaveProperty('linkBytesP50');
});

test('ratios: the engines, the policies, and the worse one of those that must always arrive', () => {
  const ratios = ratiosOf(results);
  expect(ratios.migrateTotalVsQemuIdle).toBe(0.5);
  expect(ratios.migrateDowntimeVsQemuIdle).toBe(0.75);
  expect(ratios.migrateIdleDowntimeMs).toBe(9);
  expect(ratios.migrateMpVsRelaxedTotal).toBe(0.75);
  expect(ratios.migrateMpVsRelaxedData).toBe(0.75);
  expect(ratios.migrateWriterMpArrivedShare).toBe(0.95);
  expect(ratios.migrateWriterFixedArrivedShare).toBe(0.5);
  expect(ratios.migrateWriterAutoArrivedShare).toBeNaN();
});

test('the report tells goals, and what was not measured not at all', () => {
  const report = makeReport(
    { suite: 'migrate', smoke: false, startedAt: new Date() },
    { results, ratios: ratiosOf(results) },
  );
  expect(report.ratios).not.toHaveProperty('migrateSkipVsWithoutTotal');
  const page = renderMarkdown([report]);
  expect(page).toContain('## Live migration: policies and engines');
  expect(page).toMatch(/migrateMpVsRelaxedTotal \|.*\| 0.75 \| ≤ 0.78: reached/);
  expect(page).toMatch(/migrateWriterMpArrivedShare \|.*not reached/);
  expect(page).toContain('downtime allowed');
  expect(renderHtml([report])).toContain('Live migration');
});
