/** One case's turns, and what remained of the turns that each is compared with. */
import { percentile } from '../../lib/stats.js';
import type { BenchResult } from '../report.js';
import type { CoresUsed } from './host-cpu.js';
import { caseName, type SetUp, setUpParams } from './plan.js';
import type { Probe, Sample } from './probes.js';

/** An epoch, of whoever takes them. */
export interface Pause {
  readonly pauseMs: number;
  readonly intervalMs: number;
  readonly ackMs?: number;
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/** The more, the better: what can be compared as a share. */
const ratesOf = (sample: Sample): string[] => Object.keys(sample).filter((name) => name.endsWith('PerS'));

/** `writeMbPerS` → `writeShare`, `writeOfFloorShare`. */
const shareName = (rate: string, of: string): string => rate.replace(/(Mb)?PerS$/, `${of}Share`);

/** What a guest measured with a clock that shows only a share of the time. Its waits cannot be put right one by one. */
export const ratesByClock = (sample: Sample, clockShare: number): Sample =>
  Object.fromEntries(ratesOf(sample).map((rate) => [rate, sample[rate]! * clockShare]));

/** The median of the turns, each of which has percentiles of its own. */
const medians = (turns: readonly Sample[]): Sample =>
  Object.fromEntries(
    [...new Set(turns.flatMap((turn) => Object.keys(turn)))].map((name) => [
      name,
      percentile(
        turns.flatMap((turn) => turn[name] ?? []),
        50,
      ),
    ]),
  );

export class Measurement {
  readonly #setUp: SetUp;
  readonly #probe: Probe;
  readonly #samples: Sample[] = [];
  readonly #cores: Sample[] = [];
  readonly #pauses: Pause[] = [];
  readonly #shares: Sample[] = [];

  constructor(setUp: SetUp, probe: Probe) {
    this.#setUp = setUp;
    this.#probe = probe;
  }

  add(sample: Sample, pauses: readonly Pause[], cores: CoresUsed): void {
    this.#samples.push(sample);
    this.#pauses.push(...pauses);
    this.#cores.push({ ...cores });
  }

  /** @param of the end of the share's name */
  compare(during: Sample, around: readonly Sample[], of: string): void {
    if (around.length === 0) return;
    const share = (rate: string): number => during[rate]! / mean(around.map((sample) => sample[rate]!));
    this.#shares.push(Object.fromEntries(ratesOf(during).map((rate) => [shareName(rate, of), share(rate)])));
  }

  result(): BenchResult {
    return {
      name: caseName(this.#probe, this.#setUp),
      params: { ...this.#probe.params, ...setUpParams[this.#setUp], accelerator: 'tcg' },
      metrics: {
        turns: this.#samples.length,
        ...medians(this.#samples),
        ...medians(this.#shares),
        ...this.#epochMetrics(),
        ...medians(this.#cores),
      },
    };
  }

  #epochMetrics(): Record<string, number> {
    if (this.#pauses.length === 0) return {};
    const of = (part: keyof Pause, p: number): number =>
      percentile(
        this.#pauses.flatMap((pause) => pause[part] ?? []),
        p,
      );
    return {
      epochs: this.#pauses.length,
      measuredIntervalMsP50: of('intervalMs', 50),
      pauseMsP50: of('pauseMs', 50),
      pauseMsP99: of('pauseMs', 99),
      ackMsP50: of('ackMs', 50),
      ackMsP99: of('ackMs', 99),
    };
  }
}
