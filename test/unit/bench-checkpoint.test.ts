/** The suite `checkpoint`: what is run, and what is compared with what. */
import { describe, expect, test } from 'vitest';
import { CaseFilter } from '../../bench/case-filter.js';
import { caseName, checkpointPlan } from '../../bench/checkpoint/plan.js';
import { checkpointRatios } from '../../bench/checkpoint/ratios.js';
import { spreads } from '../../bench/checkpoint/spreads.js';
import { thesisResults } from '../../bench/checkpoint/thesis.js';
import { checkpointFigures } from '../../bench/figures/checkpoint.js';
import { type BenchResult, makeReport } from '../../bench/report.js';

/** Names of the cases that are run. */
const planned = (only?: string, smoke = false): string[] =>
  [...(checkpointPlan(smoke, new CaseFilter(only))?.methodsOf ?? [])].flatMap(([workload, methods]) =>
    methods.map((method) => caseName(workload, method)),
  );

describe('what is run', () => {
  test('one and two in a row, by both methods, of all that the thesis has two of', () => {
    for (const smoke of [false, true]) {
      const cases = planned(undefined, smoke);
      const workloads = smoke ? ['linpack-300'] : ['linpack-500', 'linpack-1000'];
      for (const workload of [...workloads, 'bonnie-write', 'bonnie-read']) {
        const methods = ['alone', 'capture-one', 'capture-two', 'handoff-one', 'handoff-two', 'savevm'];
        expect(cases.filter((name) => name.startsWith(`${workload}-`))).toEqual(
          methods.map((method) => `${workload}-${method}`),
        );
      }
    }
  });

  test('the whole of LINPACK 3000 only if it is named', () => {
    const whole = ['alone', 'capture-one', 'handoff-one'].map((method) => `linpack-3000-whole-${method}`);
    const others = [undefined, '*', 'linpack-*', 'linpack-3000-*', '*-capture-one'];
    for (const only of others) {
      expect(planned(only).filter((name) => name.includes('whole'))).toEqual([]);
      expect(planned(only)).toContain('linpack-3000-capture-one');
    }
    expect(planned('linpack-3000-whole-*')).toEqual(whole);
    // Whatever is measured under a checkpoint is measured alone, too.
    expect(planned('linpack-3000-whole-capture-one')).toEqual(whole.slice(0, 2));
    expect(planned('linpack-3000-whole-*', true)).toEqual([]);
  });
});

test('turns come down to median and maximum of each figure', () => {
  const turns = [
    { pauseMs: 3, pages: 10 },
    { pauseMs: 1, pages: 30 },
    { pauseMs: 2, pages: 20 },
  ];
  expect(spreads(turns)).toEqual({ pauseMsP50: 2, pauseMsMax: 3, pagesP50: 20, pagesMax: 30 });
});

const underWorkload = (workload: string, method: string, metrics: BenchResult['metrics']): BenchResult => ({
  name: `${workload}-${method}`,
  params: { workload, method },
  metrics,
});

test('savevm is compared workload by workload: the slowest one does not decide alone', () => {
  const results = [
    ...[10_000, 500, 300].flatMap((savevmMs, index) => [
      underWorkload(`w${index}`, 'savevm', { stoppedMs: savevmMs }),
      underWorkload(`w${index}`, 'capture-one', { stoppedMs: 10 }),
    ]),
    underWorkload('w2', 'handoff-one', { stoppedMs: 20, prefixMs: 10 }),
  ];
  expect(checkpointRatios(results)).toMatchObject({
    checkpointStopSavevmVsCapture: 50,
    checkpointStopSavevmVsCaptureLeast: 30,
    checkpointStopSavevmVsHandoff: 10,
  });
});

test('one by hand-off is judged by all that the guest stands still for it', () => {
  const pauses = { pauseMsP50: 20, prefixMsP50: 15, allStopsMsP50: 35 };
  const results = ['pause-full', 'pause-checkpoint-by-handoff'].map((name) => ({
    name,
    params: {},
    metrics: pauses,
  }));
  expect(checkpointRatios(results)).toMatchObject({
    checkpointFullPauseMs: 20,
    checkpointByHandoffPauseMs: 35,
  });
});

describe('the phases beside the thesis’s', () => {
  const checkpoint = (name: string, method: string, allS: number): BenchResult => ({
    name,
    params: { workload: 'some', method },
    metrics: {
      ...{ workloadS: 20, workloadVsAlone: 1.25 },
      ...{ allS, saveStateS: 2, copyFileS: 1, commitS: 0.5, stoppedMs: 7 },
      ...{ allOfAloneShare: allS / 16, saveStateOfAloneShare: 0.125 },
    },
  });
  const tablesOf = (...ours: readonly BenchResult[]) => {
    const run = { suite: 'checkpoint', smoke: false, startedAt: new Date(0) };
    const alone = { name: 'bonnie-read-alone', params: { workload: 'some', method: 'alone' }, metrics: {} };
    const results = [alone, ...ours, ...thesisResults];
    return checkpointFigures.tables(makeReport(run, { results, ratios: {} }));
  };
  const titled = (tables: ReturnType<typeof tablesOf>, begin: string) =>
    tables.find(({ title }) => title.startsWith(begin));

  test('each of two in a row has a row, with all phases', () => {
    const tables = tablesOf(
      checkpoint('bonnie-read-capture-one', 'capture-one', 4),
      checkpoint('bonnie-read-capture-two-first', 'capture-two', 5),
      checkpoint('bonnie-read-capture-two-second', 'capture-two', 6),
      checkpoint('bonnie-read-handoff-two-second', 'handoff-two', 8),
    );
    const phases = titled(tables, 'Phases of each checkpoint')!;
    expect(phases.caption).toContain('all, s; then workload, s; then save state, s; then copy file, s; then');
    expect(phases.head).toEqual(['experiment', 'thesis', 'capture', 'handoff']);
    expect(phases.rows.slice(0, 3)).toEqual([
      ['bonnie-read', '90.9 / 72.2 / 79.6 / – / 0.69 / 9.30', '4 / 20 / 2 / 1 / 0.50 / –', '–'],
      [
        'bonnie-read, first of two',
        '90.2 / 70.4 / 78.9 / 1.83 / 0.16 / 9.80',
        '5 / 20 / 2 / 1 / 0.50 / –',
        '–',
      ],
      [
        'bonnie-read, second of two',
        '154 / 127 / 141 / 4.38 / 0.18 / 9.60',
        '6 / 20 / 2 / 1 / 0.50 / –',
        '8 / 20 / 2 / 1 / 0.50 / –',
      ],
    ]);
    const shares = titled(tables, 'Phases as shares')!;
    expect(shares.rows[1]!.slice(2)).toEqual(['31.3 / 12.5 / – / – / –', '–']);
    // They are not in the table of the workloads once more.
    const workloads = titled(tables, 'Workloads')!;
    expect([workloads.head, ...workloads.rows].flat().join()).not.toMatch(/save state|copy file|commit/);
  });

  test('the thesis’s LINPACK 3000 stands beside the whole one, where there is one', () => {
    const cutOff = checkpoint('linpack-3000-capture-one', 'capture-one', 4);
    const whole = checkpoint('linpack-3000-whole-capture-one', 'capture-one', 5);
    const cellOf = (row: string, ...ours: readonly BenchResult[]): string | undefined =>
      titled(tablesOf(...ours), 'Phases of each')!.rows.find(([name]) => name === row)?.[1];
    const published = '38.3 / 65.5 / 28.6 / – / 0.080 / 9.20';
    expect(cellOf('linpack-3000', cutOff)).toBe(published);
    expect(cellOf('linpack-3000-whole', cutOff, whole)).toBe(published);
    expect(cellOf('linpack-3000', cutOff, whole)).toBe('–');
  });
});
