/** Tables of results: what distinguishes the cases, and their metrics with p50 and p99 in one cell. */
import type { BenchReport, BenchResult } from '../report.js';
import { describeMetric, formatNumber, type Metric, scaleFor } from './metric.js';

export interface Table {
  readonly title: string;
  /** What all its cases share, and which run it is from. */
  readonly caption: string;
  /** The first column names the row. */
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

/** `epoch, revision 27e999b, 2026-11-21 06:10 UTC, smoke size`. */
export const runOf = (report: BenchReport): string =>
  [
    report.suite,
    `revision ${report.revision}`,
    ...(report.startedAt === undefined ? [] : [`${report.startedAt.slice(0, 16).replace('T', ' ')} UTC`]),
    ...(report.smoke ? ['smoke size'] : []),
    ...(report.only === undefined ? [] : [`only ${report.only.join(', ')}`]),
  ].join(', ');

/** Metrics that differ only in their statistic (p50, p99) make one column. */
interface Column {
  readonly label: string;
  readonly names: readonly string[];
  readonly text: (result: BenchResult) => string;
}

const columnsOf = (results: readonly BenchResult[]): Column[] => {
  const groups = new Map<string, string[]>();
  for (const { metrics } of results) {
    for (const name of Object.keys(metrics)) {
      const { label, unit } = describeMetric(name);
      const key = `${label}\0${unit}`;
      const names = groups.get(key) ?? groups.set(key, []).get(key)!;
      if (!names.includes(name)) names.push(name);
    }
  }
  return [...groups.values()].map((names) => {
    const { label, unit } = describeMetric(names[0]!);
    const values = results.flatMap(({ metrics }) => names.flatMap((name) => metrics[name] ?? []));
    const scale = scaleFor(unit, values);
    const statistics = names.map((name) => describeMetric(name).statistic).filter((text) => text !== '');
    const about = [
      ...(scale.unit === '' ? [] : [scale.unit]),
      ...(statistics.length === 0 ? [] : [statistics.join(' / ')]),
    ];
    return {
      label: about.length === 0 ? label : `${label}, ${about.join(', ')}`,
      names,
      text: ({ metrics }) => {
        const shown = names.map((name) => metrics[name]);
        if (shown.every((value) => value === undefined)) return '–';
        return shown
          .map((value) => (value === undefined ? '–' : formatNumber(value * scale.factor)))
          .join(' / ');
      },
    };
  });
};

type Param = BenchResult['params'][string];

const paramText = (value: Param | undefined): string =>
  value === undefined
    ? '–'
    : typeof value === 'number'
      ? formatNumber(value)
      : value === true
        ? 'yes'
        : value === false
          ? 'no'
          : value;

const paramLabel = (name: string): string => {
  const { label, unit } = describeMetric(name);
  return unit === '' ? label : `${label}, ${unit}`;
};

/** `interval 25 ms`. */
const paramInWords = (name: string, value: Param | undefined): string => {
  const { label, unit } = describeMetric(name);
  return `${label} ${paramText(value)}${unit === '' ? '' : ` ${unit}`}`;
};

export interface TableOptions {
  readonly title: string;
  readonly note?: string;
  /** Cases as columns: for few cases with many metrics. Default: whatever makes it narrower. */
  readonly casesAsColumns?: boolean;
  /** The parameters tell the cases apart: no column of names. */
  readonly unnamed?: boolean;
}

export const resultTable = (
  report: BenchReport,
  results: readonly BenchResult[],
  options: TableOptions,
): Table => {
  const keys = [...new Set(results.flatMap(({ params }) => Object.keys(params)))];
  const shared = keys.filter((key) =>
    results.every(({ params }) => key in params && params[key] === results[0]?.params[key]),
  );
  const varying = keys.filter((key) => !shared.includes(key));
  const columns = columnsOf(results);
  const caption = [
    ...(options.note === undefined ? [] : [options.note]),
    ...(shared.length === 0
      ? []
      : [`All: ${shared.map((key) => paramInWords(key, results[0]?.params[key])).join('; ')}.`]),
    `Run: ${runOf(report)}.`,
  ].join(' ');
  const parts = [
    ...varying.map((key) => ({
      label: paramLabel(key),
      text: ({ params }: BenchResult): string => paramText(params[key]),
    })),
    ...columns,
  ];
  const asColumns = options.casesAsColumns ?? (results.length <= 8 && parts.length > results.length);
  return asColumns
    ? {
        title: options.title,
        caption,
        head: ['', ...results.map(({ name }) => name)],
        rows: parts.map(({ label, text }) => [label, ...results.map(text)]),
      }
    : {
        title: options.title,
        caption,
        head: [...(options.unnamed ? [] : ['case']), ...parts.map(({ label }) => label)],
        rows: results.map((result) => [
          ...(options.unnamed ? [] : [result.name]),
          ...parts.map(({ text }) => text(result)),
        ]),
      };
};

export interface PivotOptions {
  readonly title: string;
  readonly note: string;
  /** Head of the first column, which names the rows. */
  readonly corner: string;
  readonly row: (result: BenchResult) => string;
  readonly column: (result: BenchResult) => string;
  /** Shown in each cell, one after the other. */
  readonly metrics: readonly string[];
}

/** Some metrics over two parameters. Rows and columns come in the order of the results. */
export const pivotTable = (
  report: BenchReport,
  results: readonly BenchResult[],
  { title, note, corner, row, column, metrics }: PivotOptions,
): Table | undefined => {
  const known = results.filter((result) => metrics.some((name) => result.metrics[name] !== undefined));
  if (known.length === 0) return undefined;
  const columns = [...new Set(known.map(column))];
  const cells = metrics.map((metric) => {
    const described = describeMetric(metric);
    const values = known.flatMap((result) => result.metrics[metric] ?? []);
    return { metric, ...described, ...scaleFor(described.unit, values) };
  });
  const cell = (of: readonly BenchResult[], name: string): string => {
    const found = of.find((result) => column(result) === name);
    if (found === undefined) return '–';
    return cells
      .map(({ metric, factor }) => {
        const value = found.metrics[metric];
        return value === undefined ? '–' : formatNumber(value * factor);
      })
      .join(' / ');
  };
  const rows = [...new Set(known.map(row))].map((name) => {
    const of = known.filter((result) => row(result) === name);
    return [name, ...columns.map((each) => cell(of, each))];
  });
  const caption = `Each cell: ${cellsInWords(cells)}. ${note} Run: ${runOf(report)}.`;
  return { title, caption, head: [corner, ...columns], rows };
};

/** `sender CPU, ms per MB, p50 / p99`. */
const cellsInWords = (cells: readonly Pick<Metric, 'label' | 'unit' | 'statistic'>[]): string => {
  const statistics = new Map<string, string[]>();
  for (const { label, unit, statistic } of cells) {
    const words = unit === '' ? label : `${label}, ${unit}`;
    statistics.set(words, [...(statistics.get(words) ?? []), statistic]);
  }
  return [...statistics]
    .map(([words, of]) => (of.every((statistic) => statistic === '') ? words : `${words}, ${of.join(' / ')}`))
    .join('; then ');
};

/** Tables of what a report does not hold are not shown. */
export const presentTables = (tables: readonly (Table | undefined)[]): Table[] =>
  tables.filter((table) => table !== undefined);

/** resultTable(), but of no cases no table. */
export const tableOfAny = (
  report: BenchReport,
  results: readonly BenchResult[],
  options: TableOptions,
): Table | undefined => (results.length === 0 ? undefined : resultTable(report, results, options));

/** Results that have the same metrics belong in one table. */
export const tablesByShape = (
  report: BenchReport,
  results: readonly BenchResult[],
  title: string,
): Table[] => {
  const shapes = new Map<string, BenchResult[]>();
  for (const result of results) {
    const shape = Object.keys(result.metrics).sort().join();
    (shapes.get(shape) ?? shapes.set(shape, []).get(shape)!).push(result);
  }
  return [...shapes.values()].map((alike, index) =>
    resultTable(report, alike, { title: shapes.size === 1 ? title : `${title} (${index + 1})` }),
  );
};
