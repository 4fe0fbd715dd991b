/** Charts and tables of the suite `send`. */
import type { BenchReport, BenchResult } from '../report.js';
import { lineChart, pivotBarChart, present } from './chart.js';
import { formatNumber } from './metric.js';
import type { SuiteFigures } from './suites.js';
import { pivotTable, presentTables, resultTable, runOf, type Table, tableOfAny } from './table.js';

/** Where nothing else is said, figures are shown for transfers of this size. */
const SIZE_MIB = 20;
/** Where one run length must do. */
const RUN_PAGES = 4;

/** A transfer by one of the strategies, not a baseline. */
const isTransfer = ({ params }: BenchResult): boolean => params.strategy !== undefined;
const isControl = ({ name }: BenchResult): boolean => /-(un)?verified$/.test(name);
const isAuto = ({ params }: BenchResult): boolean => params.strategy === 'auto';
const isConcrete = (result: BenchResult): boolean =>
  isTransfer(result) && !isControl(result) && !isAuto(result);

const has = (params: Readonly<Record<string, string | number | boolean>>) => (result: BenchResult) =>
  Object.entries(params).every(([name, value]) => result.params[name] === value);

const usual = has({ sizeMiB: SIZE_MIB, streams: 1, capture: 'direct' });

const strategy = ({ params }: BenchResult): string => String(params.strategy);
const runs = ({ params }: BenchResult): string =>
  params.runPages === 1 ? '1 page' : `${params.runPages} pages`;
const streams = ({ params }: BenchResult): string =>
  params.streams === 1 ? '1 stream' : `${params.streams} streams`;
const lane = (result: BenchResult): string =>
  `${strategy(result)}, ${result.params.capture}, ${streams(result)}`;

const runAxis = {
  label: 'run length, pages of 4 KiB',
  scale: 'log',
  of: ({ params }: BenchResult) => Number(params.runPages),
} as const;

const baseline = (report: BenchReport, name: string, metric: string): number | undefined =>
  report.results.find((result) => result.name === name)?.metrics[metric];

const where20 = `Transfers of ${SIZE_MIB} MiB`;

/** Named as the strategies of one chart are. */
const sender = (result: BenchResult): string =>
  isTransfer(result) ? strategy(result) : String(result.params.tool);

const charts = (report: BenchReport) =>
  present([
    lineChart(report, {
      title: 'CPU of the sender',
      note: `${where20}, one stream, straight from the region. Thread clocks of the sending threads, with the digest and the handling of completions. A veth pair delivers in the sender’s context, so this also holds what the receiving host’s TCP does, alike for all.`,
      x: runAxis,
      y: { label: 'CPU, ms per MB (median)', metric: 'senderCpuMsPerMbP50' },
      where: (result) => isConcrete(result) && usual(result),
      series: strategy,
    }),
    lineChart(report, {
      title: 'CPU of the sender, from staging',
      note: `${where20}, one stream; the copy into staging is not counted.`,
      x: runAxis,
      y: { label: 'CPU, ms per MB (median)', metric: 'senderCpuMsPerMbP50' },
      where: (result) =>
        isConcrete(result) && has({ sizeMiB: SIZE_MIB, streams: 1, capture: 'staged' })(result),
      series: strategy,
    }),
    lineChart(report, {
      title: 'Time to acknowledgement',
      note: `${where20}, one stream, straight from the region: until the receiver has all of it, verified, and the sender knows. iperf3 sends one buffer again and again and verifies nothing.`,
      x: runAxis,
      y: { label: 'time, ms (median)', metric: 'ackMsP50' },
      where: (result) => isConcrete(result) && usual(result),
      series: strategy,
      references: [
        { name: 'iperf3', y: baseline(report, `iperf3-${SIZE_MIB}mib-streams1`, 'ackMsP50') },
        { name: 'iperf3 -Z', y: baseline(report, `iperf3-z-${SIZE_MIB}mib-streams1`, 'ackMsP50') },
      ],
    }),
    lineChart(report, {
      title: 'Throughput over the size',
      note: `Runs of 32 pages, one stream, straight from the region; payload per time to acknowledgement.`,
      x: {
        label: 'size of a transfer, MiB',
        scale: 'log',
        of: ({ params }) => Number(params.sizeMiB),
      },
      y: { label: 'throughput, GB/s (median)', metric: 'throughputGbPerSP50' },
      where: (result) => isConcrete(result) && has({ runPages: 32, streams: 1, capture: 'direct' })(result),
      series: strategy,
    }),
    lineChart(report, {
      title: 'CPU of the receiver',
      note: `${where20}, one stream, straight from the region. Thread clocks of the receiving threads, with the digest; the same receiver for every strategy.`,
      x: runAxis,
      y: { label: 'CPU, ms per MB (median)', metric: 'receiverCpuMsPerMbP50' },
      where: (result) => isConcrete(result) && usual(result),
      series: strategy,
    }),
    pivotBarChart(report, {
      title: 'One stream and two',
      note: `${where20}, runs of ${RUN_PAGES} pages, straight from the region. Sender and receiver share two cores here.`,
      axis: { label: 'time to acknowledgement, ms (median)' },
      where: (result) =>
        isConcrete(result) && has({ sizeMiB: SIZE_MIB, runPages: RUN_PAGES, capture: 'direct' })(result),
      group: strategy,
      series: streams,
      metric: 'ackMsP50',
    }),
    pivotBarChart(report, {
      title: 'Beside what one would write in Node',
      note: `${where20}, runs of ${RUN_PAGES} pages, one stream. CPU of the whole sending process on all sides, with Node’s own threads. node: socket.write of Buffers read from the file, with back-pressure respected; iperf3 over a gigabyte, so that its start doesn’t count.`,
      axis: { label: 'CPU of the sending process, ms per MB (median)' },
      where: (result) =>
        has({ sizeMiB: SIZE_MIB, streams: 1 })(result) &&
        (isConcrete(result)
          ? usual(result) && result.params.runPages === RUN_PAGES
          : !isTransfer(result) && (result.params.runPages ?? RUN_PAGES) === RUN_PAGES),
      group: sender,
      series: () => 'CPU',
      metric: 'senderProcessCpuMsPerMbP50',
    }),
    pivotBarChart(report, {
      title: 'What verification costs the sender',
      note: `${where20}, runs of ${RUN_PAGES} pages, one stream, in turns. Verified: both sides compute an xxh3 of every byte.`,
      axis: { label: 'CPU of the sender, ms per MB (median)' },
      where: (result) => isControl(result) && result.params.runPages === RUN_PAGES,
      group: strategy,
      series: ({ params }) => (params.verify === true ? 'verified' : 'unverified'),
      metric: 'senderCpuMsPerMbP50',
    }),
  ]);

/** The case `best` holds a strategy and a figure for each capture and run length. */
const bestTable = (report: BenchReport): Table | undefined => {
  const best = report.results.find(({ name }) => name === 'best');
  if (best === undefined) return undefined;
  const kinds = Object.keys(best.params).filter((name) => name.endsWith('Cpu'));
  const pick = (key: string, metric: string): string =>
    `${best.params[key] ?? '–'} (${formatNumber(best.metrics[metric] ?? Number.NaN)})`;
  const rows = kinds.map((key) => {
    const stem = key.slice(0, -'Cpu'.length);
    const [, capture = stem, pages = ''] = /^(.*)Run(\d+)$/.exec(stem) ?? [];
    return [
      `${capture}, runs of ${pages}`,
      pick(`${stem}Cpu`, `${stem}CpuMsPerMb`),
      pick(`${stem}Ack`, `${stem}AckMs`),
    ];
  });
  return {
    title: 'The best strategy',
    caption: `${where20}, one stream. Medians. Run: ${runOf(report)}.`,
    head: ['', 'least sender CPU (ms per MB)', 'soonest acknowledged (ms)'],
    rows,
  };
};

const tables = (report: BenchReport): Table[] => {
  const at20 = report.results.filter((result) => isConcrete(result) && result.params.sizeMiB === SIZE_MIB);
  const byRun = (title: string, ...metrics: string[]) =>
    pivotTable(report, at20, {
      title,
      note: `${where20}, over the run length.`,
      corner: 'strategy',
      row: lane,
      column: runs,
      metrics,
    });
  const bySize = report.results.filter(
    (result) => isConcrete(result) && has({ runPages: 32, streams: 1, capture: 'direct' })(result),
  );
  return presentTables([
    bestTable(report),
    byRun('CPU of the sender', 'senderCpuMsPerMbP50', 'senderCpuMsPerMbP99'),
    byRun('Time to acknowledgement', 'ackMsP50', 'ackMsP99'),
    byRun('Time until the last byte is with the kernel', 'sendMsP50', 'sendMsP99'),
    byRun('CPU of the receiver', 'receiverCpuMsPerMbP50'),
    byRun('System calls of a transfer', 'senderSyscallsP50', 'receiverSyscallsP50'),
    byRun('Bytes that the kernel copied, as it says', 'copiedBytesP50'),
    pivotTable(report, bySize, {
      title: 'Over the size of a transfer',
      note: 'Runs of 32 pages, one stream, straight from the region.',
      corner: 'strategy',
      row: strategy,
      column: ({ params }) => `${params.sizeMiB} MiB`,
      metrics: ['ackMsP50', 'throughputGbPerSP50'],
    }),
    tableOfAny(
      report,
      report.results.filter((result) => !isTransfer(result) && result.params.tool !== undefined),
      {
        title: 'Baselines',
        note: 'In turns with the transfers, on the same path. A scaled one ran over a gigabyte and is shown for as many bytes as the transfers.',
        casesAsColumns: false,
      },
    ),
    pivotTable(report, report.results.filter(isControl), {
      title: 'What verification costs',
      note: `${where20}, one stream, straight from the region, in turns.`,
      corner: 'strategy',
      row: (result) => `${strategy(result)}, ${result.params.verify === true ? 'verified' : 'unverified'}`,
      column: runs,
      metrics: ['senderCpuMsPerMbP50', 'receiverCpuMsPerMbP50', 'ackMsP50'],
    }),
    tableOfAny(report, report.results.filter(isAuto), {
      title: 'The automatic choice',
      casesAsColumns: false,
      unnamed: true,
    }),
  ]);
};

const details = (report: BenchReport): Table[] => {
  const kinds = new Map<string, BenchResult[]>();
  for (const result of report.results.filter(isConcrete)) {
    const kind = `${result.params.sizeMiB} MiB, ${result.params.capture}, ${streams(result)}`;
    (kinds.get(kind) ?? kinds.set(kind, []).get(kind)!).push(result);
  }
  return [...kinds].map(([title, results]) =>
    resultTable(report, results, { title, casesAsColumns: false, unnamed: true }),
  );
};

export const sendFigures: SuiteFigures = {
  title: 'Sending: strategies, run lengths, streams',
  about:
    'Pages of a 512 MiB file on tmpfs, in runs scattered all over it, go from one network namespace to another over a veth pair. In a round each strategy sends the same pages once, one at a time and in changing order; the rounds repeat with other pages, and iperf3 and a plain Node program take their turns between them.',
  charts,
  tables,
  details,
};
