/**
 * What follows from the rows of a run. Everything is compared at 20 MiB and,
 * where nothing else is said, over one stream and straight from the region.
 */
import { type BenchResult, metricOf } from '../report.js';
import { concreteStrategies, runLengths } from './plan.js';

type Results = readonly BenchResult[];
type Strategy = (typeof concreteStrategies)[number];

const sizeMiB = 20;
const zeroCopy = concreteStrategies.filter((strategy) => strategy !== 'copy');

interface Where {
  readonly runPages: number;
  readonly streams?: number;
  readonly capture?: 'direct' | 'staged';
  /** `-unverified`, or its control `-verified`. */
  readonly suffix?: string;
}

const nameOf = (
  strategy: Strategy,
  { runPages, streams = 1, capture = 'direct', suffix = '' }: Where,
): string => `${strategy}-run${runPages}-${sizeMiB}mib-${capture}-streams${streams}${suffix}`;

interface Best {
  readonly strategy: Strategy | 'none';
  readonly value: number;
}

const bestOf = (
  results: Results,
  metric: string,
  where: Where,
  strategies: readonly Strategy[] = concreteStrategies,
): Best =>
  strategies
    .map((strategy): Best => ({ strategy, value: metricOf(results, nameOf(strategy, where), metric) }))
    .filter(({ value }) => Number.isFinite(value))
    .reduce<Best>((best, one) => (one.value < best.value ? one : best), {
      strategy: 'none',
      value: Number.POSITIVE_INFINITY,
    });

const cpu = 'senderCpuMsPerMbP50';
const processCpu = 'senderProcessCpuMsPerMbP50';
const ack = 'ackMsP50';
const longest = runLengths[runLengths.length - 1]!;

const cpuAgainstCopy = (results: Results, where: Where): number =>
  bestOf(results, cpu, where, zeroCopy).value / metricOf(results, nameOf('copy', where), cpu);

/** The same clock on both sides, that of the whole process; the cheaper way to read the file in Node. */
const nodeAgainstHoldfast = (results: Results, runPages: number): number => {
  const node = (['awaited', 'sync'] as const)
    .map((reads) => metricOf(results, `node-${reads}-run${runPages}-${sizeMiB}mib`, processCpu))
    .filter(Number.isFinite);
  return Math.min(...node) / bestOf(results, processCpu, { runPages }).value;
};

const ackAgainst = (results: Results, tool: string, where: Where): number =>
  bestOf(results, ack, where).value /
  metricOf(results, `${tool}-${sizeMiB}mib-streams${where.streams ?? 1}`, ack);

const verifiedAgainstUnverified = (results: Results, metric: string, runPages: number): number => {
  const { strategy } = bestOf(results, cpu, { runPages, suffix: '-verified' });
  if (strategy === 'none') return Number.NaN;
  const value = (suffix: string): number => metricOf(results, nameOf(strategy, { runPages, suffix }), metric);
  return value('-verified') / value('-unverified');
};

export const ratiosOf = (results: Results): Record<string, number> => {
  const all: Record<string, number> = {
    cpuZeroCopyVsCopyRun1: cpuAgainstCopy(results, { runPages: 1 }),
    cpuZeroCopyVsCopyRun4: cpuAgainstCopy(results, { runPages: 4 }),
    cpuZeroCopyVsCopyRun32: cpuAgainstCopy(results, { runPages: 32 }),
    cpuZeroCopyVsCopyRun512: cpuAgainstCopy(results, { runPages: longest }),
    cpuZeroCopyVsCopyRun1Staged: cpuAgainstCopy(results, { runPages: 1, capture: 'staged' }),
    cpuZeroCopyVsCopyRun4Staged: cpuAgainstCopy(results, { runPages: 4, capture: 'staged' }),
    // Without the digest, which costs all strategies the same.
    cpuZeroCopyVsCopyRun1Unverified: cpuAgainstCopy(results, { runPages: 1, suffix: '-unverified' }),
    cpuZeroCopyVsCopyRun4Unverified: cpuAgainstCopy(results, { runPages: 4, suffix: '-unverified' }),
    ackVsIperf3: ackAgainst(results, 'iperf3', { runPages: longest }),
    ackVsIperf3Scattered: ackAgainst(results, 'iperf3', { runPages: 1 }),
    ackVsIperf3Streams2: ackAgainst(results, 'iperf3', { runPages: longest, streams: 2 }),
    ackVsIperf3Sendfile: ackAgainst(results, 'iperf3-z', { runPages: longest }),
    ackVsIperf3Steady: ackAgainst(results, 'iperf3-steady', { runPages: longest }),
    cpuNodeVsHoldfast: nodeAgainstHoldfast(results, 4),
    cpuNodeVsHoldfastRun1: nodeAgainstHoldfast(results, 1),
    cpuNodeVsHoldfastRun32: nodeAgainstHoldfast(results, 32),
    cpuNodeVsHoldfastRun512: nodeAgainstHoldfast(results, longest),
    cpuVerifiedVsUnverified: verifiedAgainstUnverified(results, cpu, 4),
    ackVerifiedVsUnverified: verifiedAgainstUnverified(results, ack, 4),
    receiverCpuVerifiedVsUnverified: verifiedAgainstUnverified(results, 'receiverCpuMsPerMbP50', 4),
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => Number.isFinite(value) && value > 0));
};

/** A row that names the best strategy of each run length, by CPU and by time; none if nothing was measured. */
export const winnersOf = (results: Results): BenchResult[] => {
  const winners: Record<string, Best> = {};
  for (const capture of ['direct', 'staged'] as const) {
    for (const runPages of runLengths) {
      const where = { runPages, capture };
      winners[`${capture}Run${runPages}Cpu`] = bestOf(results, cpu, where);
      winners[`${capture}Run${runPages}Ack`] = bestOf(results, ack, where);
    }
  }
  const known = Object.entries(winners).filter(([, { strategy }]) => strategy !== 'none');
  if (known.length === 0) return [];
  const metric = (name: string): string => name.replace(/Cpu$/, 'CpuMsPerMb').replace(/Ack$/, 'AckMs');
  return [
    {
      name: 'best',
      params: Object.fromEntries(known.map(([name, { strategy }]) => [name, strategy])),
      metrics: Object.fromEntries(known.map(([name, { value }]) => [metric(name), value])),
    },
  ];
};
