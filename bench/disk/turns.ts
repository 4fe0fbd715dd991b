/**
 * The same probes on two guests in turns, so that a machine that grows slower or faster during the run
 * falls on all alike:
 *
 *   guest 1, QEMU's raw file driver     raw                                              raw
 *   guest 2, disk servers                  server │ floor  protected  alone  apart server    │ floor …
 *                                          pass 0 │ pass 1                                   │
 *
 * A turn is compared with those of its baselines (plan.ts) in its pass and in the one before.
 */
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PrimaryStatus } from '../../lib/primary/primary.js';
import { Lab } from '../../test/lab/lab.js';
import { endPair, type MeasuredEpoch, type Pair, startPair } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { BareEpochs, clockShare } from './bare-epochs.js';
import { bootGuest, type DiskGuest, replicaSettings } from './guests.js';
import { meterCores, pinHost } from './host-cpu.js';
import { Measurement, type Pause, ratesByClock } from './measurement.js';
import { baselines, caseName, INTERVAL_MS, type SetUp, setUpParams, setUps, type TurnPlan } from './plan.js';
import { type Probe, prepareGuest, type Sample } from './probes.js';

/** Until the first epochs, which are larger, are over; and until the primary, which asks the servers once a second, knows their counts. */
const SETTLE_MS = 1_500;

/** What each pass consists of. */
const firstPass: readonly SetUp[] = ['raw', 'server'];
const laterPasses: readonly SetUp[] = ['floor', 'protected', 'alone', 'apart', 'raw', 'server'];

interface Turn {
  readonly setUp: SetUp;
  readonly pass: number;
  readonly samples: ReadonlyMap<Probe, Sample>;
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
  readonly #turns: Turn[] = [];
  readonly #logged: Logged[] = [];

  constructor(plan: TurnPlan, progress: Progress) {
    this.#plan = plan;
    this.#progress = progress;
  }

  async run(rawLab: Lab, serverLab: Lab): Promise<BenchResult[]> {
    const { probes, size, passes } = this.#plan;
    const needsRaw = probes.raw.length > 0;
    const needsServer = setUps.some((setUp) => setUp !== 'raw' && probes[setUp].length > 0);
    const [raw, server] = await Promise.all([
      needsRaw ? bootGuest(rawLab, 'raw', size) : undefined,
      needsServer ? bootGuest(serverLab, 'server', size) : undefined,
    ]);
    for (const guest of [raw, server]) if (guest !== undefined) await prepareGuest(guest.lab.client, size);
    for (let pass = 0; pass <= passes; pass += 1) {
      for (const setUp of pass === 0 ? firstPass : laterPasses) {
        const guest = setUp === 'raw' ? raw : server;
        if (guest !== undefined && probes[setUp].length > 0) await this.#turn(setUp, guest, pass);
      }
    }
    this.#compare();
    const results = [...this.#measurements.values()].map((measurement) => measurement.result());
    return [...results, ...this.#copies()];
  }

  async #turn(setUp: SetUp, guest: DiskGuest, pass: number): Promise<void> {
    switch (setUp) {
      case 'raw':
      case 'server':
        return await this.#probe(setUp, guest, pass);
      case 'floor':
        return await this.#floorTurn(guest, pass);
      case 'protected':
        return await this.#protectedTurn(setUp, guest, pass);
      case 'alone':
        return await pinned(guest, () => this.#probe(setUp, guest, pass));
      case 'apart':
        return await this.#protectedTurn(setUp, guest, pass);
    }
  }

  async #floorTurn(guest: DiskGuest, pass: number): Promise<void> {
    const bare = await BareEpochs.start(guest.qmpPath, guest.lab.sharedMemoryPath('floor'), INTERVAL_MS);
    await this.#probe('floor', guest, pass, {
      epochs: () => bare.epochs,
      correct: (sample, first) => ratesByClock(sample, clockShare(bare.epochs.slice(first))),
      // A guest that asks for none has those of `stop` left out; to one that waits for its own they cost little.
      before: async ({ flushes }) => await bare.flushes(flushes),
    });
    await bare.flushes(true);
    await bare.end();
  }

  async #protectedTurn(setUp: 'protected' | 'apart', guest: DiskGuest, pass: number): Promise<void> {
    const backup = replicaSettings(guest);
    const pair = await startPair(guest.lab, guest, { intervalMs: INTERVAL_MS }, { backup });
    const probe = async (): Promise<void> => {
      await sleep(SETTLE_MS);
      const before = await statusOf(pair, 1);
      await this.#probe(setUp, guest, pass, { epochs: () => epochsOf(pair) });
      await sleep(SETTLE_MS);
      this.#logged.push(loggedBetween(before, await statusOf(pair, 2)));
    };
    await (setUp === 'apart' ? pinned(guest, probe) : probe());
    await endPair(pair);
  }

  async #probe(
    setUp: SetUp,
    guest: DiskGuest,
    pass: number,
    {
      epochs = () => [],
      before,
      correct = (sample) => sample,
    }: {
      epochs?: () => readonly Pause[];
      before?: (probe: Probe) => Promise<void>;
      correct?: (sample: Sample, firstEpoch: number) => Sample;
    } = {},
  ): Promise<void> {
    const samples = new Map<Probe, Sample>();
    for (const probe of this.#plan.probes[setUp]) {
      const text = pass === 0 ? 'first turn' : `turn ${pass} of ${this.#plan.passes}`;
      this.#progress(`${caseName(probe, setUp)}: ${text}`);
      await before?.(probe);
      const first = epochs().length;
      const coresUsed = meterCores(guest.lab);
      const sample = correct(await probe.measure(guest.lab.client, this.#plan.size), first);
      samples.set(probe, sample);
      this.#measurement(setUp, probe).add(sample, epochs().slice(first), coresUsed());
    }
    this.#turns.push({ setUp, pass, samples });
  }

  #compare(): void {
    for (const { setUp, pass, samples } of this.#turns) {
      for (const { setUp: baseline, of } of baselines[setUp]) {
        const around = this.#turns.filter(
          (turn) => turn.setUp === baseline && (turn.pass === pass || turn.pass === pass - 1),
        );
        for (const [probe, sample] of samples) {
          const others = around.map((turn) => turn.samples.get(probe)).filter((other) => other !== undefined);
          this.#measurement(setUp, probe).compare(sample, others, of);
        }
      }
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

/** Each host on a processor of its own, while `work` runs; then on all of them again. */
const pinned = async ({ lab }: DiskGuest, work: () => Promise<void>): Promise<void> => {
  await Promise.all([pinHost(lab, 'a', '0'), pinHost(lab, 'b', '1')]);
  try {
    await work();
  } finally {
    const all = `0-${availableParallelism() - 1}`;
    await Promise.all([pinHost(lab, 'a', all), pinHost(lab, 'b', all)]);
  }
};

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
