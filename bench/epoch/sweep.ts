/**
 * What protection leaves of the guest's own work, over intervals and dirty rates.
 *
 * Unprotected and protected take turns (U P5 U P10 U …), and each protected turn is
 * compared with the unprotected ones right before and after it, so that a machine
 * that grows slower or faster during the run does not show as a cost of protection.
 */
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { type BenchGuest, endPair, type MeasuredEpoch, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress, WantedCases } from '../report.js';
import { measureRates, startComputing, startRedisLoad, type WorkMeter } from './work.js';

interface Workload {
  readonly name: string;
  readonly params: Readonly<Record<string, string | number>>;
  start(lab: Lab, guest: BenchGuest): Promise<WorkMeter>;
}

/** `pagesPerSecond` is the rate while unprotected; slowed down, it writes as much less as it does of other work. */
const computing = (pagesPerSecond: number, workingSetPages: number): Workload => ({
  name: `cpu-${pagesPerSecond}`,
  params: { workload: 'cpu', pagesPerSecond, workingSetPages },
  start: (lab, guest) => startComputing(lab, guest.ramPath, { pagesPerSecond, workingSetPages }),
});

/**
 * So many that the guest's CPU is the limit and not the clients' waiting: each waits for its output delay.
 * At intervals of 100 ms and more the waiting is the limit nevertheless.
 */
const REDIS_CONNECTIONS = 256;

const redis: Workload = {
  name: 'redis',
  params: { workload: 'redis', connections: REDIS_CONNECTIONS },
  start: (lab) => startRedisLoad(lab, REDIS_CONNECTIONS),
};

interface Size {
  readonly workloads: readonly Workload[];
  readonly intervalsMs: readonly number[];
  readonly passes: number;
  readonly windows: number;
  readonly windowMs: number;
}

const full: Size = {
  workloads: [computing(2_500, 4_000), computing(25_000, 20_000), redis],
  intervalsMs: [5, 10, 20, 50, 100, 200],
  passes: 2,
  windows: 2,
  windowMs: 1_000,
};

const smokeSize: Size = {
  workloads: [computing(2_500, 4_000), redis],
  intervalsMs: [20],
  passes: 1,
  windows: 2,
  windowMs: 500,
};

/** The writer has found its proportion of writes to work by then, and QEMU's translator has filled its caches. */
const WARM_UP_MS = 2_000;

/** Until prestaging has settled and the first epochs, which are larger, are over. */
const SETTLE_MS = 500;

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

class Measurement {
  readonly intervalMs: number;
  readonly shares: number[] = [];
  readonly unprotected: number[] = [];
  readonly protected: number[] = [];
  readonly epochs: MeasuredEpoch[] = [];

  constructor(intervalMs: number) {
    this.intervalMs = intervalMs;
  }

  /** One protected turn between two unprotected ones. */
  add(before: readonly number[], during: readonly number[], after: readonly number[]): void {
    const around = [...before, ...after];
    this.shares.push(...during.map((rate) => rate / mean(around)));
    this.unprotected.push(...around);
    this.protected.push(...during);
  }

  result(name: string, workload: Workload): BenchResult {
    const of = (part: 'pauseMs' | 'outputDelayMs' | 'intervalMs' | 'dirtyPages', p: number): number =>
      percentile(
        this.epochs.map((epoch) => epoch[part]),
        p,
      );
    return {
      name,
      params: { ...workload.params, gate: 'relay', intervalMs: this.intervalMs, accelerator: 'tcg' },
      metrics: {
        guestWorkShareP50: percentile(this.shares, 50),
        guestWorkShareMin: Math.min(...this.shares),
        workUnprotectedPerSP50: percentile(this.unprotected, 50),
        workProtectedPerSP50: percentile(this.protected, 50),
        epochs: this.epochs.length,
        measuredIntervalMsP50: of('intervalMs', 50),
        pauseMsP50: of('pauseMs', 50),
        pauseMsP99: of('pauseMs', 99),
        dirtyPagesP50: of('dirtyPages', 50),
        outputDelayMsP50: of('outputDelayMs', 50),
        outputDelayMsP99: of('outputDelayMs', 99),
      },
    };
  }
}

const caseName = (workload: Workload, intervalMs: number): string => `sweep-${workload.name}-${intervalMs}ms`;

const measureWorkload = async (
  lab: Lab,
  guest: BenchGuest,
  workload: Workload,
  intervalsMs: readonly number[],
  { passes, windows, windowMs }: Size,
  progress: Progress,
): Promise<BenchResult[]> => {
  const meter = await workload.start(lab, guest);
  const measurements = intervalsMs.map((intervalMs) => new Measurement(intervalMs));
  await measureRates(meter, 1, WARM_UP_MS);
  let before = await measureRates(meter, windows, windowMs);
  for (let pass = 1; pass <= passes; pass += 1) {
    for (const measurement of measurements) {
      const { intervalMs } = measurement;
      progress(`${caseName(workload, intervalMs)}: turn ${pass} of ${passes}`);
      const pair = await startPair(lab, guest, { gate: 'relay', intervalMs });
      await measureRates(meter, 1, SETTLE_MS);
      const first = pair.primary.of('epoch').length;
      const during = await measureRates(meter, windows, windowMs);
      measurement.epochs.push(...(pair.primary.of('epoch').slice(first) as unknown as MeasuredEpoch[]));
      await endPair(pair);
      await measureRates(meter, 1, SETTLE_MS / 2);
      const after = await measureRates(meter, windows, windowMs);
      measurement.add(before, during, after);
      before = after;
    }
  }
  await meter.stop();
  return measurements.map((measurement) =>
    measurement.result(caseName(workload, measurement.intervalMs), workload),
  );
};

/** The sweep's cases are sweep-<workload>-<interval>ms. */
export const runSweep = async (
  smoke: boolean,
  progress: Progress,
  wanted: WantedCases,
): Promise<BenchResult[]> => {
  const size = smoke ? smokeSize : full;
  const plan = size.workloads
    .map((workload) => ({
      workload,
      intervalsMs: size.intervalsMs.filter((intervalMs) => wanted.wants(caseName(workload, intervalMs))),
    }))
    .filter(({ intervalsMs }) => intervalsMs.length > 0);
  if (plan.length === 0) return [];
  progress('sweep: booting the guest');
  await using lab = await Lab.create({ tag: 'bench' });
  // One guest for all: redis costs nothing while nobody asks it, and the writer comes and goes.
  const guest = await startRelayedGuest(lab, { workload: 'redis' });
  const results: BenchResult[] = [];
  for (const { workload, intervalsMs } of plan)
    results.push(...(await measureWorkload(lab, guest, workload, intervalsMs, size, progress)));
  return results;
};
