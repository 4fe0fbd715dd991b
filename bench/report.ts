/** What every suite writes: results beside the machine, the revision and the ratios of the same run. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';

export interface BenchResult {
  readonly name: string;
  readonly params: Readonly<Record<string, string | number | boolean>>;
  /** Named with their unit last: pauseMsP50, dirtyPagesP50. */
  readonly metrics: Readonly<Record<string, number>>;
}

export interface BenchReport {
  readonly suite: string;
  readonly revision: string;
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryBytes: number;
    readonly kernel: string;
    readonly qemu: string;
    readonly node: string;
    readonly accelerator: string;
  };
  readonly smoke: boolean;
  readonly results: readonly BenchResult[];
  /** Each against something measured in the same run. */
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

export const makeReport = (
  suite: string,
  smoke: boolean,
  results: readonly BenchResult[],
  ratios: Readonly<Record<string, number>>,
): BenchReport => ({
  suite,
  revision: firstLine('git', ['describe', '--always', '--dirty']),
  machine: {
    cpu: cpuModel(),
    cores: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    qemu: firstLine('qemu-system-x86_64', ['--version']),
    node: process.version,
    accelerator: 'tcg',
  },
  smoke,
  results,
  ratios,
});

const shown = (value: number): string =>
  Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 2 : 1);

/** One block per result, for a person. */
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
    lines.push('', 'ratios within this run');
    for (const [name, value] of Object.entries(report.ratios)) {
      lines.push(`  ${name.padEnd(32)} ${shown(value).padStart(8)}`);
    }
  }
  return lines.join('\n');
};
