/** What the benchmark makes of its results: names, numbers, tables, verdicts, and pages of them. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CaseFilter } from '../../bench/case-filter.js';
import { judge, meaningOf } from '../../bench/figures/goals.js';
import { describeMetric, formatNumber, scaleFor } from '../../bench/figures/metric.js';
import { figuresOf } from '../../bench/figures/suites.js';
import { pivotTable, resultTable } from '../../bench/figures/table.js';
import { html, Markup } from '../../bench/html/markup.js';
import { renderHtml } from '../../bench/html/page.js';
import { pointScale, valueScale } from '../../bench/html/scale.js';
import { renderMarkdown } from '../../bench/markdown.js';
import { type BenchReport, makeReport, renderReport } from '../../bench/report.js';
import { epochReport, latencyReport, peersReport, sendReport } from '../e2e/support/bench-reports.js';

const reports = [sendReport, epochReport, latencyReport, peersReport];

describe('names of metrics', () => {
  test.each([
    ['pauseMsP50', 'pause', 'ms', 'p50'],
    ['senderCpuMsPerMbP99', 'sender CPU', 'ms per MB', 'p99'],
    ['dirtyPagesP50', 'dirty pages', '', 'p50'],
    ['killToRunningMsMax', 'kill to running', 'ms', 'max'],
    ['pageBytesGbPerS', 'throughput of page bytes', 'GB/s', ''],
    ['guestWorkShareMin', 'guest’s work that remains', 'share', 'min'],
    ['rounds', 'rounds', '', ''],
    ['zeroPages', 'zero pages', '', ''],
    ['somethingNewUsP90', 'something new', 'µs', 'p90'],
  ])('%s', (name, label, unit, statistic) => {
    expect(describeMetric(name)).toEqual({ name, label, unit, statistic });
  });

  test('numbers have three figures or so', () => {
    expect([0, 12, 0.5, 0.046, 3.456, 21.84, 116.3, 5066, 0.0001].map(formatNumber)).toEqual([
      ...['0', '12', '0.50', '0.046', '3.46', '21.8', '116', '5,066', '0.00'],
    ]);
  });

  test('bytes are scaled by the largest', () => {
    expect(scaleFor('bytes', [1, 18_700_000]).unit).toBe('MB');
    expect(scaleFor('bytes', [900]).unit).toBe('bytes');
    expect(scaleFor('share', [0.5])).toEqual({ unit: '%', factor: 100 });
  });
});

describe('--only', () => {
  test('without it everything is wanted', () => {
    const filter = new CaseFilter();
    expect(filter.wants('anything')).toBe(true);
    expect([filter.names, filter.unknown]).toEqual([undefined, []]);
  });

  test('names and patterns; a misspelt one is told', () => {
    const filter = new CaseFilter('dirty-500, sweep-*-20ms,falover');
    const names = ['dirty-500', 'dirty-5000', 'sweep-redis-20ms', 'sweep-redis-200ms', 'failover'];
    expect(names.filter((name) => filter.wants(name))).toEqual(['dirty-500', 'sweep-redis-20ms']);
    expect(filter.unknown).toEqual(['falover']);
    expect(filter.offered).toEqual(names);
  });

  test('a case that has to be named is wanted only by a pattern that begins with its family', () => {
    const wants = (only?: string): boolean => new CaseFilter(only).wantsNamed('long-run-alone', 'long-run');
    expect([undefined, '*', 'long-*', 'long-run'].map(wants)).toEqual([false, false, false, false]);
    expect(['long-run-*', 'long-run-alone', 'short,long-run*'].map(wants)).toEqual([true, true, true]);
    const filter = new CaseFilter('long-*');
    filter.wantsNamed('long-run-alone', 'long-run');
    expect([filter.offered, filter.unknown]).toEqual([['long-run-alone'], ['long-*']]);
  });

  test('a dot is a dot', () => {
    expect(new CaseFilter('a.c').wants('abc')).toBe(false);
  });
});

describe('verdicts', () => {
  test('reached, not reached, without a goal', () => {
    expect(judge(sendReport, 'cpuZeroCopyVsCopyRun4')).toEqual({
      ...{ goal: '≤ 0.5', reached: false, text: 'not reached' },
    });
    expect(judge(peersReport, 'pauseColoVsHoldfast')).toMatchObject({ goal: '≥ 20', reached: false });
    expect(judge(latencyReport, 'pingProtectedMsP50')).toMatchObject({ goal: '≤ 5', reached: true });
    expect(judge(latencyReport, 'pingProtectedMsP99')).toMatchObject({ goal: '≤ 15', reached: false });
    expect(judge(epochReport, 'checkpointsMissedIdle')).toMatchObject({ goal: '≤ 0', reached: true });
    expect(judge(epochReport, 'pauseVsQemuFloor')).toBeUndefined();
    expect(meaningOf('guestWorkShareRedisAt20Ms')).toContain('every 20 ms');
  });

  test('a smoke run is not judged', () => {
    const smoke: BenchReport = { ...sendReport, smoke: true };
    expect(judge(smoke, 'cpuZeroCopyVsCopyRun4')?.reached).toBeUndefined();
    expect(renderReport(smoke)).toContain('not judged: smoke size');
  });
});

describe('a report', () => {
  test('leaves out what is not a number', () => {
    const run = { suite: 'epoch', smoke: true, startedAt: new Date(0) };
    const { ratios, results, startedAt } = makeReport(run, {
      results: [{ name: 'a', params: {}, metrics: { pauseMsP50: Number.NaN, rounds: 1 } }],
      ratios: { one: 1, none: Number.NaN, endless: Number.POSITIVE_INFINITY },
    });
    expect({ ratios, metrics: results[0]?.metrics, startedAt }).toEqual({
      ...{ ratios: { one: 1 }, metrics: { rounds: 1 }, startedAt: '1970-01-01T00:00:00.000Z' },
    });
  });
});

describe('tables', () => {
  const results = [
    { name: 'a', params: { ramMiB: 512, sender: 'copy' }, metrics: { pauseMsP50: 1, pauseMsP99: 2 } },
    { name: 'b', params: { ramMiB: 512, sender: 'splice' }, metrics: { pauseMsP50: 3 } },
  ];

  test('what all share is said once, percentiles share a cell, what is missing is a dash', () => {
    const table = resultTable(epochReport, results, { title: 't', casesAsColumns: false });
    expect(table.head).toEqual(['case', 'sender', 'pause, ms, p50 / p99']);
    expect(table.rows).toEqual([
      ['a', 'copy', '1 / 2'],
      ['b', 'splice', '3 / –'],
    ]);
    expect(table.caption).toContain('All: RAM 512 MiB.');
    expect(table.caption).toContain('Run: epoch, revision abc1234, 2026-01-02 03:04 UTC.');
  });

  test('turned round', () => {
    const table = resultTable(epochReport, results, { title: 't', casesAsColumns: true });
    expect(table.head).toEqual(['', 'a', 'b']);
    expect(table.rows).toEqual([
      ['sender', 'copy', 'splice'],
      ['pause, ms, p50 / p99', '1 / 2', '3 / –'],
    ]);
  });

  test('over two parameters', () => {
    const of = (row: string, column: string, value: number) => ({
      ...{ name: '', params: { row, column }, metrics: { copiedBytesP50: value } },
    });
    const table = pivotTable(sendReport, [of('x', '1', 2e6), of('x', '2', 4e6), of('y', '2', 0)], {
      title: 't',
      note: '',
      corner: 'c',
      row: ({ params }) => String(params.row),
      column: ({ params }) => String(params.column),
      metrics: ['copiedBytesP50'],
    });
    expect(table?.head).toEqual(['c', '1', '2']);
    expect(table?.rows).toEqual([
      ['x', '2', '4'],
      ['y', '–', '0'],
    ]);
    expect(table?.caption).toContain('copied, MB, p50');
  });

  test.each(reports.map((report) => [report.suite, report] as const))(
    'of %s: every row is as wide as the head, no number is lost to NaN',
    (_suite, report) => {
      const figures = figuresOf(report.suite);
      const tables = [...figures.tables(report), ...(figures.details?.(report) ?? [])];
      expect(tables.length).toBeGreaterThan(1);
      for (const { title, head, rows } of tables) {
        for (const row of rows) expect(row.length, title).toBe(head.length);
        expect(rows.flat().join(), title).not.toMatch(/NaN|undefined/);
      }
    },
  );

  test('a report of which little is known has no charts, and its tables', () => {
    const report: BenchReport = { ...epochReport, suite: 'unheard-of', results, ratios: {} };
    expect(figuresOf('unheard-of').charts(report)).toEqual([]);
    expect(figuresOf('unheard-of').tables(report)).toHaveLength(2);
    for (const suite of ['send', 'epoch', 'latency', 'peers'])
      expect(figuresOf(suite).charts({ ...report, results: [] })).toEqual([]);
  });
});

describe('markup', () => {
  test('values are escaped, markup is not', () => {
    expect(
      html`<a title="${`"'&`}">${'<b>'}${new Markup('<i>')}${undefined}${[html`x`, undefined]}</a>`.text,
    ).toBe('<a title="&quot;&#39;&amp;">&lt;b&gt;<i>x</a>');
  });

  test('no name, parameter or machine can break out of the page', () => {
    const hostile = '</style><script>alert(1)</script>|`"\'&';
    const report: BenchReport = {
      ...epochReport,
      revision: hostile,
      machine: { ...epochReport.machine, cpu: hostile },
      results: [
        { name: `dirty-${hostile}`, params: { sender: hostile }, metrics: { pauseMsP50: 1, [hostile]: 2 } },
      ],
      ratios: { [hostile]: 1 },
    };
    const page = renderHtml([report]);
    expect(page).not.toContain('<script');
    expect(page.match(/<\/style>/g)).toHaveLength(1);
    const markdown = renderMarkdown([report]);
    for (const line of markdown.split('\n').filter((text) => text.startsWith('|')))
      expect(line).not.toMatch(/[^\\]\|`|<script/);
  });
});

describe('scales', () => {
  const positive = fc.double({ min: 1e-4, max: 1e6, noNaN: true });

  test.each(['linear', 'log'] as const)('%s: ticks ascend and enclose the values', (scale) => {
    fc.assert(
      fc.property(fc.array(positive, { minLength: 1, maxLength: 20 }), (values) => {
        const { ticks, place } = valueScale(values, [100, 500], { scale });
        expect(ticks.length).toBeGreaterThan(0);
        expect(ticks.length).toBeLessThan(25);
        for (let n = 1; n < ticks.length; n += 1) expect(ticks[n]!).toBeGreaterThan(ticks[n - 1]!);
        for (const value of [...values, ...ticks]) {
          expect(place(value)).toBeGreaterThanOrEqual(99.99);
          expect(place(value)).toBeLessThanOrEqual(500.01);
        }
      }),
    );
  });

  test('an axis goes as far as it should, and farther if a value does', () => {
    expect(valueScale([40], [0, 1], { max: 100 }).ticks.at(-1)).toBe(100);
    expect(valueScale([104], [0, 1], { max: 100 }).place(104)).toBeLessThanOrEqual(1);
  });

  test('points keep their order, and one alone stands in the middle', () => {
    const { place, ticks } = pointScale([200, 5, 20], [0, 100], 'log');
    expect(ticks).toEqual([5, 20, 200]);
    expect([place(5), place(200)]).toEqual([0, 100]);
    expect(pointScale([7], [0, 100]).place(7)).toBe(50);
  });
});

describe('the Markdown page', () => {
  const campaign = {
    ...{ seed: 7, acknowledged: 62_261, lost: 0, survivor: { broken: [] } },
    trials: [
      { kind: 'host', failureToRunningMs: 26, clientStallMs: 238.2 },
      { kind: 'host', failureToRunningMs: 36, clientStallMs: 255.1 },
      { kind: 'link', failureToRunningMs: 521, clientStallMs: 925 },
    ],
  };

  test('has every suite, the campaign, and what may be concluded', () => {
    const page = renderMarkdown(reports, [campaign, { ...campaign, disk: true }]);
    for (const report of reports) expect(page).toContain(`\n## ${figuresOf(report.suite).title}\n`);
    expect(page).toContain('| host (QEMU and all daemons) | 2 | 26 / 36 | 238 |');
    expect(page).toContain('62,261 increments acknowledged, none lost');
    expect(page).toContain('\n## Failover campaign, with a disk\n');
    expect(page).toContain('62,261 increments and rows acknowledged, none lost');
    expect(page).toContain('\n## What may be concluded, and what not\n');
    expect(page).toContain('| cpuZeroCopyVsCopyRun4 |');
  });

  test('its tables are well-formed', () => {
    const lines = renderMarkdown(reports, [campaign]).split('\n');
    const cells = (line: string): number => line.split(/(?<!\\)\|/).length;
    lines.forEach((line, at) => {
      if (line.startsWith('|') && lines[at - 1]?.startsWith('|'))
        expect(cells(line)).toBe(cells(lines[at - 1]!));
    });
  });
});
