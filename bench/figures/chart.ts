/** Charts as data: what is drawn, on which axes. How it looks is bench/html's business. */
import type { BenchReport, BenchResult } from '../report.js';

/** Its label ends in the unit: `pause, ms (median)`. */
interface Axis {
  readonly label: string;
  readonly scale?: 'linear' | 'log';
}

/** Horizontal bars: one group per case, one bar per series in each. */
export interface BarChart {
  readonly kind: 'bars';
  readonly title: string;
  readonly note?: string;
  readonly axis: Axis;
  readonly groups: readonly string[];
  readonly series: readonly { readonly name: string; readonly values: readonly (number | undefined)[] }[];
}

export interface LineChart {
  readonly kind: 'lines';
  readonly title: string;
  readonly note?: string;
  /** Ticks are where there are points. */
  readonly x: Axis;
  /** From zero, unless logarithmic. `max`: the axis goes at least so far, such as to 100 %. */
  readonly y: Axis & { readonly max?: number };
  readonly series: readonly {
    readonly name: string;
    readonly points: readonly { readonly x: number; readonly y: number }[];
  }[];
  /** Horizontal lines to compare with. */
  readonly references?: readonly { readonly name: string; readonly y: number }[];
}

export type Chart = BarChart | LineChart;

interface BarSpec {
  readonly title: string;
  readonly note?: string;
  readonly axis: Axis;
  readonly where: (result: BenchResult) => boolean;
  readonly group?: (result: BenchResult) => string;
  /** Name shown → metric drawn. */
  readonly series: Readonly<Record<string, string>>;
  readonly factor?: number;
}

/** Bars of some metrics of some cases; undefined if the report has none of them. */
export const barChart = (report: BenchReport, spec: BarSpec): BarChart | undefined => {
  const metrics = Object.values(spec.series);
  const results = report.results.filter(
    (result) => spec.where(result) && metrics.some((name) => result.metrics[name] !== undefined),
  );
  if (results.length === 0) return undefined;
  const { title, note, axis, factor = 1 } = spec;
  const scaled = (value: number | undefined): number | undefined => value && value * factor;
  return {
    kind: 'bars',
    title,
    ...(note === undefined ? {} : { note }),
    axis,
    groups: results.map((result) => (spec.group ?? (({ name }) => name))(result)),
    series: Object.entries(spec.series)
      .map(([name, metric]) => ({ name, values: results.map(({ metrics }) => scaled(metrics[metric])) }))
      .filter(({ values }) => values.some((value) => value !== undefined)),
  };
};

interface PivotBarSpec {
  readonly title: string;
  readonly note?: string;
  readonly axis: Axis;
  readonly where: (result: BenchResult) => boolean;
  readonly group: (result: BenchResult) => string;
  readonly series: (result: BenchResult) => string;
  readonly metric: string;
}

/** Bars of one metric over two parameters; undefined if the report has none of it. */
export const pivotBarChart = (report: BenchReport, spec: PivotBarSpec): BarChart | undefined => {
  const { title, note, axis, where, group, series, metric } = spec;
  const results = report.results.filter((result) => where(result) && result.metrics[metric] !== undefined);
  if (results.length === 0) return undefined;
  const groups = [...new Set(results.map(group))];
  const valueAt = (inGroup: string, inSeries: string): number | undefined =>
    results.find((result) => group(result) === inGroup && series(result) === inSeries)?.metrics[metric];
  return {
    kind: 'bars',
    title,
    ...(note === undefined ? {} : { note }),
    axis,
    groups,
    series: [...new Set(results.map(series))].map((name) => ({
      name,
      values: groups.map((of) => valueAt(of, name)),
    })),
  };
};

interface LineSpec {
  readonly title: string;
  readonly note?: string;
  readonly x: Axis & { readonly of: (result: BenchResult) => number | undefined };
  readonly y: Axis & { readonly metric: string; readonly factor?: number; readonly max?: number };
  readonly where: (result: BenchResult) => boolean;
  readonly series: (result: BenchResult) => string;
  readonly references?: readonly { readonly name: string; readonly y: number | undefined }[];
}

/** Lines of one metric over a parameter; undefined if no line has two points. */
export const lineChart = (report: BenchReport, spec: LineSpec): LineChart | undefined => {
  const lines = new Map<string, { x: number; y: number }[]>();
  for (const result of report.results) {
    const x = spec.x.of(result);
    const y = result.metrics[spec.y.metric];
    if (!spec.where(result) || x === undefined || y === undefined) continue;
    const name = spec.series(result);
    (lines.get(name) ?? lines.set(name, []).get(name)!).push({ x, y: y * (spec.y.factor ?? 1) });
  }
  const series = [...lines].map(([name, points]) => ({ name, points: points.sort((a, b) => a.x - b.x) }));
  if (!series.some(({ points }) => points.length > 1)) return undefined;
  const { of: _of, ...x } = spec.x;
  const { metric: _metric, factor: _factor, ...y } = spec.y;
  return {
    kind: 'lines',
    title: spec.title,
    ...(spec.note === undefined ? {} : { note: spec.note }),
    x,
    y,
    series,
    references: (spec.references ?? []).flatMap(({ name, y: at }) =>
      at === undefined ? [] : [{ name, y: at * (spec.y.factor ?? 1) }],
    ),
  };
};

/** A chart whose data is not in the report (a smoke run, an older one) is not shown. */
export const present = (charts: readonly (Chart | undefined)[]): Chart[] =>
  charts.filter((chart) => chart !== undefined);
