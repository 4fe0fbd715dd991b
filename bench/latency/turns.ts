/**
 * One guest, unprotected and protected in turns (U A U B U …), so that a machine
 * that grows slower or faster during the run falls on all alike. In each turn
 * every probe has its time, one after the other.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { LatencyHistogram } from '../../test/lab/latency-histogram.js';
import { endPair, type MeasuredEpoch, type Pair, startPair } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { caseName, type Measured, type TurnPlan } from './plan.js';
import type { Probe } from './probes.js';
import type { Sample } from './sample.js';
import type { SetUp } from './set-ups.js';

/** Until the first epochs, which are larger, are over, and pacing knows the guest. */
const SETTLE_MS = 500;

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

class Measurement {
  readonly #setUp: SetUp;
  readonly #probe: Probe;
  readonly #roundTrips = new LatencyHistogram();
  readonly #repliesPerS: number[] = [];
  readonly #shares: number[] = [];
  readonly #epochs: MeasuredEpoch[] = [];
  #lost = 0;
  #turns = 0;

  constructor(setUp: SetUp, probe: Probe) {
    this.#setUp = setUp;
    this.#probe = probe;
  }

  add({ roundTrips, lost, repliesPerS }: Sample, epochs: readonly MeasuredEpoch[]): void {
    this.#turns += 1;
    this.#roundTrips.merge(roundTrips.buckets);
    this.#lost += lost;
    if (repliesPerS !== undefined) this.#repliesPerS.push(repliesPerS);
    this.#epochs.push(...epochs);
  }

  /** A protected turn's throughput against those of the unprotected turns around it. */
  compare(during: Sample, around: readonly Sample[]): void {
    const rates = around.flatMap(({ repliesPerS }) => repliesPerS ?? []);
    if (during.repliesPerS !== undefined && rates.length > 0)
      this.#shares.push(during.repliesPerS / mean(rates));
  }

  result(): BenchResult {
    const trips = this.#roundTrips;
    return {
      name: caseName(this.#probe, this.#setUp),
      params: { probe: this.#probe.name, ...this.#setUp.params, ...this.#probe.params, accelerator: 'tcg' },
      metrics: {
        turns: this.#turns,
        roundTrips: trips.count,
        lost: this.#lost,
        roundTripMsP50: trips.percentileMs(0.5),
        roundTripMsP90: trips.percentileMs(0.9),
        roundTripMsP99: trips.percentileMs(0.99),
        roundTripMsMax: trips.maxMs,
        repliesPerSP50: percentile(this.#repliesPerS, 50),
        throughputShareP50: percentile(this.#shares, 50),
        throughputShareMin: percentile(this.#shares, 0),
        ...this.#epochMetrics(),
      },
    };
  }

  #epochMetrics(): Record<string, number> {
    if (this.#epochs.length === 0) return {};
    const of = (
      part: 'pauseMs' | 'ackMs' | 'outputDelayMs' | 'intervalMs' | 'dirtyPages',
      p: number,
    ): number =>
      percentile(
        this.#epochs.map((epoch) => epoch[part]),
        p,
      );
    const waits = this.#epochs.flatMap(({ outputWaitMs }) => outputWaitMs ?? []);
    const triggered = this.#epochs.filter(({ trigger }) => trigger === 'output').length;
    return {
      epochs: this.#epochs.length,
      measuredIntervalMsP50: of('intervalMs', 50),
      pauseMsP50: of('pauseMs', 50),
      pauseMsP99: of('pauseMs', 99),
      ackMsP50: of('ackMs', 50),
      ackMsP99: of('ackMs', 99),
      dirtyPagesP50: of('dirtyPages', 50),
      outputDelayMsP50: of('outputDelayMs', 50),
      outputDelayMsP99: of('outputDelayMs', 99),
      // Not a number where the gate does not see output.
      outputWaitMsP50: percentile(waits, 50),
      outputWaitMsP99: percentile(waits, 99),
      outputTriggeredShare: triggered / this.#epochs.length,
    };
  }
}

type Turn = ReadonlyMap<Probe, Sample>;

/** The reports so far; an unprotected guest has none. */
const epochsOf = (pair: Pair | undefined): readonly MeasuredEpoch[] =>
  (pair?.primary.of('epoch') ?? []) as unknown as readonly MeasuredEpoch[];

class Turns {
  readonly #lab: Lab;
  readonly #plan: TurnPlan;
  readonly #progress: Progress;
  readonly #measurements = new Map<SetUp, Map<Probe, Measurement>>();

  constructor(lab: Lab, plan: TurnPlan, progress: Progress) {
    this.#lab = lab;
    this.#plan = plan;
    this.#progress = progress;
  }

  async run(): Promise<BenchResult[]> {
    const { unprotected, protections, passes } = this.#plan;
    const guest = await this.#plan.guest.start(this.#lab);
    let before = await this.#turn(unprotected, 'first turn');
    for (let pass = 1; pass <= passes; pass += 1) {
      for (const protection of protections) {
        const { setUp } = protection;
        const text = `turn ${pass} of ${passes}`;
        const pair = await startPair(this.#lab, guest, setUp.settings ?? {});
        await sleep(SETTLE_MS);
        const during = await this.#turn(protection, text, pair);
        await endPair(pair);
        const after = await this.#turn(unprotected, text);
        this.#compare(setUp, during, [before, after]);
        before = after;
      }
    }
    return [...this.#measurements.values()].flatMap((probes) =>
      [...probes.values()].map((measurement) => measurement.result()),
    );
  }

  async #turn({ setUp, probes }: Measured, text: string, pair?: Pair): Promise<Turn> {
    const samples = new Map<Probe, Sample>();
    for (const probe of probes) {
      this.#progress(`${caseName(probe, setUp)}: ${text}`);
      const first = epochsOf(pair).length;
      const sample = await probe.measure(this.#lab, this.#plan.size);
      samples.set(probe, sample);
      this.#measurement(setUp, probe).add(sample, epochsOf(pair).slice(first));
    }
    return samples;
  }

  #compare(setUp: SetUp, during: Turn, around: readonly Turn[]): void {
    for (const [probe, sample] of during) {
      const unprotected = around.flatMap((turn) => turn.get(probe) ?? []);
      this.#measurement(setUp, probe).compare(sample, unprotected);
    }
  }

  #measurement(setUp: SetUp, probe: Probe): Measurement {
    const probes = this.#measurements.get(setUp) ?? new Map<Probe, Measurement>();
    this.#measurements.set(setUp, probes);
    const measurement = probes.get(probe) ?? new Measurement(setUp, probe);
    probes.set(probe, measurement);
    return measurement;
  }
}

/** Boots the plan's guest and measures it. */
export const measureTurns = async (plan: TurnPlan, progress: Progress): Promise<BenchResult[]> => {
  progress(`${plan.guest.name}: booting the guest`);
  await using lab = await Lab.create({ tag: 'lat' });
  return await new Turns(lab, plan, progress).run();
};
