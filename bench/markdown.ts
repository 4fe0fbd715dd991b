/**
 * docs/benchmarks.md, from reports: every number on that page comes from a run,
 * none is typed.
 */
import { percentile } from '../lib/stats.js';
import { judge, meaningOf, shownRatios } from './figures/goals.js';
import { formatNumber } from './figures/metric.js';
import { figuresOf, suiteNames } from './figures/suites.js';
import { runOf, type Table } from './figures/table.js';
import { conclusions } from './figures/text.js';
import type { BenchReport } from './report.js';

/** What `npm run campaign:failover` and `campaign:disk` write with `-- --json FILE`, as far as it is shown. */
export interface Campaign {
  /** Absent: false. */
  readonly disk?: boolean;
  readonly seed: number;
  readonly acknowledged: number;
  readonly lost: number;
  readonly survivor: { readonly broken: readonly unknown[] };
  readonly trials: readonly {
    readonly kind: string;
    readonly failureToRunningMs: number;
    readonly clientStallMs: number;
  }[];
}

/** A table's cell must not end it, nor become a tag. */
const cell = (text: string): string =>
  text.replace(/[\\|]/g, '\\$&').replaceAll('<', '&lt;').replaceAll('\n', ' ');

const rowOf = (cells: readonly string[]): string => `| ${cells.map(cell).join(' | ')} |`;

const tableLines = (head: readonly string[], rows: readonly (readonly string[])[]): string[] => [
  rowOf(head),
  `|${'---|'.repeat(head.length)}`,
  ...rows.map(rowOf),
];

const tableSection = ({ title, caption, head, rows }: Table): string[] => [
  `### ${title}`,
  '',
  caption,
  '',
  ...tableLines(head, rows),
  '',
];

const ratioSection = (report: BenchReport): string[] => {
  const names = shownRatios(report);
  if (names.length === 0) return [];
  const rows = names.map((name) => {
    const verdict = judge(report, name);
    return [
      name,
      meaningOf(name),
      formatNumber(report.ratios[name]!),
      verdict === undefined ? '' : `${verdict.goal}: ${verdict.text}`,
    ];
  });
  return [
    '### Figures and ratios of this run',
    '',
    `Run: ${runOf(report)}.`,
    '',
    ...tableLines(['name', 'what it says', 'measured', 'goal'], rows),
    '',
  ];
};

const machineLine = ({ machine }: BenchReport): string =>
  `${machine.cores} × ${machine.cpu}, ${formatNumber(Math.round(machine.memoryBytes / 2 ** 30))} GiB, Linux ${machine.kernel}, ${machine.qemu}, Node ${machine.node}`;

const suiteSection = (report: BenchReport): string[] => {
  const figures = figuresOf(report.suite);
  return [
    `## ${figures.title}`,
    '',
    ...(figures.about === '' ? [] : [figures.about, '']),
    `Run: ${runOf(report)}${report.durationS === undefined ? '' : `, ${report.durationS} s`}.`,
    '',
    ...ratioSection(report),
    ...figures.tables(report).flatMap(tableSection),
  ];
};

/** Kinds of failure in the campaign's words → on the page. */
const failureKinds: Readonly<Record<string, string>> = {
  host: 'host (QEMU and all daemons)',
  qemu: 'QEMU',
  daemon: 'primary’s daemon',
  link: 'link (silent: found by the heartbeat time-out)',
};

const campaignSection = ({
  trials,
  seed,
  acknowledged,
  lost,
  survivor,
  disk = false,
}: Campaign): string[] => {
  const kinds = [...new Set(Object.keys(failureKinds)), ...trials.map(({ kind }) => kind)];
  const rows = [...new Set(kinds)].flatMap((kind) => {
    const of = trials.filter((trial) => trial.kind === kind);
    if (of.length === 0) return [];
    const running = of.map((trial) => trial.failureToRunningMs);
    const stall = of.map((trial) => trial.clientStallMs);
    const ms = (values: readonly number[], p: number): string =>
      formatNumber(Math.round(percentile(values, p)));
    return [
      [
        failureKinds[kind] ?? kind,
        String(of.length),
        `${ms(running, 50)} / ${ms(running, 100)}`,
        ms(stall, 50),
      ],
    ];
  });
  const broken = survivor.broken.length;
  return [
    disk ? '## Failover campaign, with a disk' : '## Failover campaign',
    '',
    `\`npm run campaign:${disk ? 'disk' : 'failover'}\` (${trials.length} trials, ${disk ? 'redis and SQLite on ext4' : 'redis'} under load, seed ${seed}): ${formatNumber(acknowledged)} ${disk ? 'increments and rows' : 'increments'} acknowledged, ${lost === 0 ? 'none' : formatNumber(lost)} lost; of the connection that lived through all trials, ${broken === 0 ? 'no break' : `${broken} breaks`}.`,
    '',
    ...tableLines(
      ['what was killed', 'trials', 'failure to running, ms, p50 / max', 'client stall, ms, p50'],
      rows,
    ),
    '',
    'The client’s stall is longer than the guest’s absence: what was in flight has to be sent again, and TCP waits at least 200 ms before it does.',
    '',
  ];
};

const machineSection = (reports: readonly BenchReport[]): string[] => {
  const machines = [...new Set(reports.map(machineLine))];
  if (machines.length === 0) return [];
  if (machines.length === 1) return [`Machine of all runs: ${machines[0]}.`, ''];
  return reports.flatMap((report) => [`Machine of ${report.suite}: ${machineLine(report)}.`, '']);
};

/** The page. Sections come in the order of the reports; the campaigns follow. */
export const renderMarkdown = (
  reports: readonly BenchReport[],
  campaigns: readonly Campaign[] = [],
): string =>
  [
    '# Benchmarks',
    '',
    `\`npm run bench -- ${suiteNames.join('|')} [--smoke] [--only NAMES] [--json FILE] [--html FILE]\` measures, in namespaces of its own; \`--html\` writes the same figures with charts. This page is generated from the reports of such runs, by \`npm run bench -- page REPORT… --markdown docs/benchmarks.md\`, and not edited by hand. Where a cell has two figures, its head says which: the median (p50) and the 99th percentile (p99), the smallest or the largest.`,
    '',
    ...machineSection(reports),
    ...reports.flatMap(suiteSection),
    ...campaigns.flatMap(campaignSection),
    '## What may be concluded, and what not',
    '',
    ...conclusions.map((line) => `- ${line}`),
    '',
  ].join('\n');
