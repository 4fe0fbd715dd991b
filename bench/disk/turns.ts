/**
 * The same probes on two guests in turns, so that a machine that grows slower or faster during the run
 * falls on all alike:
 *
 *   guest 1, QEMU's raw file driver            raw          raw          raw
 *   guest 2, disk servers                server protected server protected server …
 *
 * A protected turn is compared with the unprotected ones around it, those with the raw ones.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { PrimaryStatus } from '../../lib/primary/primary.js';
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { endPair, type MeasuredEpoch, type Pair, startPair } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { bootGuest, type DiskGuest, replicaSettings } from './guests.js';
import { caseName, INTERVAL_MS, type SetUp, setUpParams, type TurnPlan } from './plan.js';
import { type Probe, prepareGuest, type Sample } from './probes.js';

/** Until the first epochs, which are larger, are over; and until the primary, which asks the servers once a second, knows their counts. */
const SETTLE_MS = 1_500;

type Turn = ReadonlyMap<Probe, Sample>;

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/** The more, the better: what can be compared as a share. */
const ratesOf = (sample: Sample): string[] => Object.keys(sample).filter((name) => name.endsWith('PerS'));

/** `writeMbPerS` → `writeShare`. */
const shareName = (rate: string): string => rate.replace(/(Mb)?PerS$/, 'Share');

class Measurement {
  readonly #setUp: SetUp;
  readonly #probe: Probe;
  readonly #samples: Sample[] = [];
  readonly #epochs: MeasuredEpoch[] = [];
  /** Of each turn, what remained of the figures of the turns it is compared with. */
  readonly #shares: Record<string, number>[] = [];

  constructor(setUp: SetUp, probe: Probe) {
    this.#setUp = setUp;
    this.#probe = probe;
  }

  add(sample: Sample, epochs: readonly MeasuredEpoch[]): void {
    this.#samples.push(sample);
    this.#epochs.push(...epochs);
  }

  compare(during: Sample, around: readonly Sample[]): void {
    if (around.length === 0) return;
    this.#shares.push(
      Object.fromEntries(
        ratesOf(during).map((name) => [name, during[name]! / mean(around.map((sample) => sample[name]!))]),
      ),
    );
  }

  result(): BenchResult {
    const first = this.#samples[0] ?? {};
    const median = (of: readonly Sample[], name: string): number =>
      percentile(
        of.map((sample) => sample[name]!),
        50,
      );
    return {
      name: caseName(this.#probe, this.#setUp),
      params: { ...this.#probe.params, ...setUpParams[this.#setUp], accelerator: 'tcg' },
      metrics: {
        turns: this.#samples.length,
        // Each turn has percentiles of its own: the median of the turns.
        ...Object.fromEntries(Object.keys(first).map((name) => [name, median(this.#samples, name)])),
        ...Object.fromEntries(ratesOf(first).map((name) => [shareName(name), median(this.#shares, name)])),
        ...this.#epochMetrics(),
      },
    };
  }

  #epochMetrics(): Record<string, number> {
    if (this.#epochs.length === 0) return {};
    const of = (part: 'pauseMs' | 'ackMs' | 'intervalMs', p: number): number =>
      percentile(
        this.#epochs.map((epoch) => epoch[part]),
        p,
      );
    return {
      epochs: this.#epochs.length,
      measuredIntervalMsP50: of('intervalMs', 50),
      pauseMsP50: of('pauseMs', 50),
      pauseMsP99: of('pauseMs', 99),
      ackMsP50: of('ackMs', 50),
      ackMsP99: of('ackMs', 99),
    };
  }
}

const epochsOf = (pair: Pair | undefined): readonly MeasuredEpoch[] =>
  (pair?.primary.of('epoch') ?? []) as unknown as readonly MeasuredEpoch[];

/** What the logs of all disks took, and what of it was copied on its way out. */
interface Logged {
  readonly loggedBytes: number;
  readonly copiedBytes: number;
  readonly writtenBytes: number;
}

class Turns {
  readonly #plan: TurnPlan;
  readonly #progress: Progress;
  readonly #measurements = new Map<string, Measurement>();
  readonly #logged: Logged[] = [];

  constructor(plan: TurnPlan, progress: Progress) {
    this.#plan = plan;
    this.#progress = progress;
  }

  async run(rawLab: Lab, serverLab: Lab): Promise<BenchResult[]> {
    const { probes, size, passes } = this.#plan;
    const needsRaw = probes.raw.length > 0;
    const needsServer = probes.server.length > 0;
    const [raw, server] = await Promise.all([
      needsRaw ? bootGuest(rawLab, 'raw', size) : undefined,
      needsServer ? bootGuest(serverLab, 'server', size) : undefined,
    ]);
    for (const guest of [raw, server]) if (guest !== undefined) await prepareGuest(guest.lab.client, size);
    let rawBefore = await this.#turn('raw', raw, 'first turn');
    let serverBefore = await this.#turn('server', server, 'first turn');
    this.#compare('server', serverBefore, [rawBefore]);
    for (let pass = 1; pass <= passes; pass += 1) {
      const text = `turn ${pass} of ${passes}`;
      const protectedTurn = await this.#protectedTurn(server, text);
      const rawAfter = await this.#turn('raw', raw, text);
      const serverAfter = await this.#turn('server', server, text);
      this.#compare('protected', protectedTurn, [serverBefore, serverAfter]);
      this.#compare('server', serverAfter, [rawBefore, rawAfter]);
      [rawBefore, serverBefore] = [rawAfter, serverAfter];
    }
    const results = [...this.#measurements.values()].map((measurement) => measurement.result());
    return [...results, ...this.#copies()];
  }

  async #protectedTurn(guest: DiskGuest | undefined, text: string): Promise<Turn> {
    if (guest === undefined || this.#plan.probes.protected.length === 0) return new Map();
    const backup = replicaSettings(guest);
    const pair = await startPair(guest.lab, guest, { intervalMs: INTERVAL_MS }, { backup });
    await sleep(SETTLE_MS);
    const before = await statusOf(pair, 1);
    const turn = await this.#turn('protected', guest, text, pair);
    await sleep(SETTLE_MS);
    this.#logged.push(loggedBetween(before, await statusOf(pair, 2)));
    await endPair(pair);
    return turn;
  }

  async #turn(setUp: SetUp, guest: DiskGuest | undefined, text: string, pair?: Pair): Promise<Turn> {
    const samples = new Map<Probe, Sample>();
    if (guest === undefined) return samples;
    for (const probe of this.#plan.probes[setUp]) {
      this.#progress(`${caseName(probe, setUp)}: ${text}`);
      const first = epochsOf(pair).length;
      const sample = await probe.measure(guest.lab.client, this.#plan.size);
      samples.set(probe, sample);
      this.#measurement(setUp, probe).add(sample, epochsOf(pair).slice(first));
    }
    return samples;
  }

  #compare(setUp: SetUp, during: Turn, around: readonly Turn[]): void {
    for (const [probe, sample] of during) {
      const others = around.map((turn) => turn.get(probe)).filter((sample) => sample !== undefined);
      this.#measurement(setUp, probe).compare(sample, others);
    }
  }

  #measurement(setUp: SetUp, probe: Probe): Measurement {
    const name = caseName(probe, setUp);
    const measurement = this.#measurements.get(name) ?? new Measurement(setUp, probe);
    this.#measurements.set(name, measurement);
    return measurement;
  }

  /**
   * Copies that replication makes of each byte the guest writes, on the primary. One is the record in the
   * ring; from there the kernel sends it by reference, and what it would not is counted by the addon.
   */
  #copies(): BenchResult[] {
    if (this.#logged.length === 0) return [];
    const sum = (part: keyof Logged): number => this.#logged.reduce((total, each) => total + each[part], 0);
    const [writtenBytes, loggedBytes, copiedBytes] = [
      sum('writtenBytes'),
      sum('loggedBytes'),
      sum('copiedBytes'),
    ];
    return [
      {
        name: 'copies',
        params: { ...setUpParams.protected },
        metrics: {
          writtenBytes,
          loggedBytes,
          copiedBytes,
          copiesPerWrittenByte: (loggedBytes + copiedBytes) / writtenBytes,
        },
      },
    ];
  }
}

const statusOf = async ({ primary }: Pair, count: number): Promise<PrimaryStatus> => {
  primary.say('status');
  return (await primary.message('status', { count })) as unknown as PrimaryStatus;
};

const loggedBetween = (before: PrimaryStatus, after: PrimaryStatus): Logged => {
  const sum = ({ disks = [] }: PrimaryStatus, of: (disk: (typeof disks)[number]) => number): number =>
    disks.reduce((total, disk) => total + of(disk), 0);
  const grown = (of: Parameters<typeof sum>[1]): number => sum(after, of) - sum(before, of);
  return {
    loggedBytes: grown(({ loggedBytes }) => loggedBytes),
    copiedBytes: grown(({ copiedBytes }) => copiedBytes),
    writtenBytes: grown(({ server }) => server?.writeBytes ?? 0),
  };
};

/** Boots both guests and measures them. */
export const measureTurns = async (plan: TurnPlan, progress: Progress): Promise<BenchResult[]> => {
  progress('booting the guests');
  await using rawLab = await Lab.create({ tag: 'disk' });
  await using serverLab = await Lab.create({ tag: 'disk' });
  return await new Turns(plan, progress).run(rawLab, serverLab);
};
