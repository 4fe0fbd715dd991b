/** What every suite writes: results beside the machine, the revision and the ratios of the same run. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { judge } from './figures/goals.js';

export interface BenchResult {
  readonly name: string;
  readonly params: Readonly<Record<string, string | number | boolean>>;
  /** Named with their unit last: pauseMsP50, dirtyPagesP50. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** NaN if it was not measured; the report leaves such a ratio out. */
export const metricOf = (results: readonly BenchResult[], name: string, metric: string): number =>
  results.find((result) => result.name === name)?.metrics[metric] ?? Number.NaN;

export interface SuiteOutput {
  readonly results: readonly BenchResult[];
  readonly ratios: Readonly<Record<string, number>>;
}

export type Progress = (text: string) => void;

/** Which cases of a suite are wanted; see `CaseFilter`. */
export interface WantedCases {
  wants(name: string): boolean;
  /**
   * Of a case that takes so long that nobody runs it by the way: only where --only names its family, as
   * `linpack-3000-whole-*` does and `linpack-*` does not.
   */
  wantsNamed(name: string, family: string): boolean;
}

/** Measures; `wanted` is asked once for every case, before anything is set up for it. */
export type RunSuite = (smoke: boolean, progress: Progress, wanted: WantedCases) => Promise<SuiteOutput>;

export interface BenchReport {
  readonly suite: string;
  readonly revision: string;
  /** When the run began, ISO 8601. Absent in reports of older revisions. */
  readonly startedAt?: string;
  readonly durationS?: number;
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryBytes: number;
    readonly kernel: string;
    readonly qemu: string;
    readonly node: string;
  };
  readonly smoke: boolean;
  /** The cases asked for with --only; absent: all. */
  readonly only?: readonly string[];
  readonly results: readonly BenchResult[];
  /** Figures to reach, and ratios: each of those against something measured in the same run. */
  readonly ratios: Readonly<Record<string, number>>;
}

const firstLine = (command: string, args: readonly string[]): string => {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split(
      '\n',
    )[0]!;
  } catch {
    return 'unknown';
  }
};

const cpuModel = (): string =>
  /model name\s*:\s*(.*)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown';

/** What is not a number (its case was not measured) is left out: JSON has no word for it. */
const numbersOf = (values: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => Number.isFinite(value)));

export interface Run {
  readonly suite: string;
  readonly smoke: boolean;
  readonly only?: readonly string[];
  readonly startedAt: Date;
}

/** Describes the machine, and joins it with what was measured in `run`, which ends now. */
export const makeReport = (run: Run, { results, ratios }: SuiteOutput): BenchReport => ({
  suite: run.suite,
  revision: firstLine('git', ['describe', '--always', '--dirty']),
  startedAt: run.startedAt.toISOString(),
  durationS: Math.round((Date.now() - run.startedAt.getTime()) / 1000),
  machine: {
    cpu: cpuModel(),
    cores: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    qemu: firstLine('qemu-system-x86_64', ['--version']),
    node: process.version,
  },
  smoke: run.smoke,
  ...(run.only === undefined ? {} : { only: run.only }),
  results: results.map((result) => ({ ...result, metrics: numbersOf(result.metrics) })),
  ratios: numbersOf(ratios),
});

const shown = (value: number): string =>
  Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 2 : 1);

/** One block per result, for a terminal. */
export const renderReport = (report: BenchReport): string => {
  const { machine } = report;
  const lines = [
    `${report.suite} (${report.revision}${report.smoke ? ', smoke size' : ''})`,
    `${machine.cores} × ${machine.cpu}, Linux ${machine.kernel}, ${machine.qemu}, Node ${machine.node}`,
  ];
  for (const result of report.results) {
    const params = Object.entries(result.params)
      .map(([key, value]) => `${key}=${value}`)
      .join(' ');
    lines.push('', `${result.name}  ${params}`);
    for (const [name, value] of Object.entries(result.metrics)) {
      lines.push(`  ${name.padEnd(24)} ${shown(value).padStart(12)}`);
    }
  }
  if (Object.keys(report.ratios).length > 0) {
    lines.push('', 'figures and ratios of this run');
    for (const [name, value] of Object.entries(report.ratios)) {
      lines.push(`  ${name.padEnd(32)} ${shown(value).padStart(8)}${verdictOf(report, name)}`);
    }
  }
  return lines.join('\n');
};

/** `  goal ≤ 0.50: reached`, where there is a goal and the run is large enough to be judged by it. */
const verdictOf = (report: BenchReport, name: string): string => {
  const verdict = judge(report, name);
  return verdict === undefined ? '' : `  goal ${verdict.goal}: ${verdict.text}`;
};
