/**
 * Suite `time`: how the guest's clock goes against the host's, unprotected, under
 * checkpoints every 20 ms, and across a failover. The guest is asked over one TCP
 * connection throughout; it has no NTP, so its clock is what its kernel and QEMU
 * make of it.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { repositoryRoot } from '../test/lab/guest.js';
import { JsonProcess } from '../test/lab/json-process.js';
import { Lab } from '../test/lab/lab.js';
import { guestAddress } from '../test/lab/network.js';
import { endPair, type MeasuredEpoch, type Pair, type RunningGuest, startGuest, startPair } from './pair.js';
import { type BenchResult, metricOf, type RunSuite } from './report.js';
import { bestOfWindows, type ClockPoint, type ClockSample, driftPpm, stepMs } from './time/drift.js';

interface Size {
  /** Of each stretch whose drift is measured. */
  readonly stretchMs: number;
  readonly afterFailoverMs: number;
  readonly windowMs: number;
}

const full: Size = { stretchMs: 600_000, afterFailoverMs: 120_000, windowMs: 1_000 };
const smokeSize: Size = { stretchMs: 4_000, afterFailoverMs: 2_000, windowMs: 250 };

const INTERVAL_MS = 20;
const REDIS_PORT = 6379;
/** Between an answer and the next question: often enough for one in each window to meet no delay. */
const PAUSE_MS = 20;
/** The first epochs are larger, and a guest just booted is still busy. */
const SETTLE_MS = 1_000;

class GuestClock {
  readonly #asker: JsonProcess;
  readonly #windowMs: number;

  private constructor(asker: JsonProcess, windowMs: number) {
    this.#asker = asker;
    this.#windowMs = windowMs;
  }

  static async ask(lab: Lab, windowMs: number): Promise<GuestClock> {
    const script = join(repositoryRoot(), 'dist/bench/time/clock-role.js');
    const options = { host: guestAddress, port: REDIS_PORT, pauseMs: PAUSE_MS };
    const asker = new JsonProcess(
      await lab.client.spawn(process.execPath, [script, JSON.stringify(options)]),
    );
    await asker.message('connected');
    return new GuestClock(asker, windowMs);
  }

  get #samples(): number {
    return this.#asker.of('sample').length;
  }

  /** What the guest's clock does in the time to come. */
  async watch(milliseconds: number): Promise<ClockPoint[]> {
    const first = this.#samples;
    await sleep(milliseconds);
    const broken = this.#asker.of('broken')[0];
    if (broken !== undefined) throw new Error(`the guest's clock can't be asked: ${String(broken.message)}`);
    const samples = this.#asker.of('sample').slice(first) as unknown as ClockSample[];
    return bestOfWindows(samples, this.#windowMs);
  }

  /** Settles with the first answer to a question that was asked after `hostMs` (Date.now()). */
  async answered(hostMs: number): Promise<void> {
    await this.#asker.until(
      'the guest to tell the time again',
      () => ((this.#asker.of('sample').at(-1)?.askedMs as number | undefined) ?? 0) > hostMs,
      30_000,
    );
  }
}

/** @throws Error without a single answer. */
const metricsOf = (points: readonly ClockPoint[]): Record<string, number> => {
  const [first, last] = [points[0], points.at(-1)];
  if (first === undefined || last === undefined) throw new Error('the guest did not tell the time');
  return {
    driftPpm: driftPpm(points),
    offsetGainedMs: last.offsetMs - first.offsetMs,
    watchedMs: last.hostMs - first.hostMs,
    windows: points.length,
  };
};

const watchProtected = async (
  clock: GuestClock,
  pair: Pair,
  milliseconds: number,
): Promise<{ readonly points: ClockPoint[]; readonly result: BenchResult }> => {
  await sleep(SETTLE_MS);
  const first = pair.primary.of('epoch').length;
  const startMs = performance.now();
  const points = await clock.watch(milliseconds);
  const elapsedMs = performance.now() - startMs;
  const epochs = pair.primary.of('epoch').slice(first) as unknown as MeasuredEpoch[];
  const pausedMs = epochs.reduce((sum, { pauseMs }) => sum + pauseMs, 0);
  return {
    points,
    result: {
      name: 'time-protected',
      params: { protected: true, intervalMs: INTERVAL_MS },
      metrics: { ...metricsOf(points), epochs: epochs.length, pausedShare: pausedMs / elapsedMs },
    },
  };
};

/** Kills the primary; the guest goes on at the backup from its last checkpoint, and so does its clock. */
const failOver = async (
  clock: GuestClock,
  guest: RunningGuest,
  pair: Pair,
  before: readonly ClockPoint[],
  milliseconds: number,
): Promise<BenchResult> => {
  const killedAtMs = Date.now();
  process.kill(pair.primary.process.pid, 'SIGKILL');
  process.kill(guest.process.pid, 'SIGKILL');
  const { resumedAtMs } = await pair.backup.message('took-over', { timeoutMs: 15_000 });
  await clock.answered(Number(resumedAtMs));
  const points = await clock.watch(milliseconds);
  return {
    name: 'time-failover',
    params: { protected: false, kill: 'SIGKILL of QEMU and daemon' },
    metrics: {
      ...metricsOf(points),
      stepMs: stepMs(before, points),
      killToRunningMs: Number(resumedAtMs) - killedAtMs,
    },
  };
};

export const runTimeSuite: RunSuite = async (smoke, progress, wanted) => {
  const { stretchMs, afterFailoverMs, windowMs } = smoke ? smokeSize : full;
  const wants = {
    unprotected: wanted.wants('time-unprotected'),
    protected: wanted.wants('time-protected'),
    failover: wanted.wants('time-failover'),
  };
  const results: BenchResult[] = [];
  if (!wants.unprotected && !wants.protected && !wants.failover) return { results, ratios: {} };
  progress('time: booting the guest');
  await using lab = await Lab.create({ tag: 'bench' });
  const guest = await startGuest(lab, { workload: 'redis' });
  const clock = await GuestClock.ask(lab, windowMs);
  const seconds = stretchMs / 1_000;
  if (wants.unprotected) {
    progress(`time-unprotected: ${seconds} s`);
    await sleep(SETTLE_MS);
    results.push({
      name: 'time-unprotected',
      params: { protected: false },
      metrics: metricsOf(await clock.watch(stretchMs)),
    });
  }
  if (wants.protected || wants.failover) {
    // Before a failover alone a few windows are enough.
    const watchMs = wants.protected ? stretchMs : 10 * windowMs;
    progress(`time-protected: ${watchMs / 1_000} s`);
    const pair = await startPair(lab, guest, { intervalMs: INTERVAL_MS });
    const { points, result } = await watchProtected(clock, pair, watchMs);
    if (wants.protected) results.push(result);
    if (wants.failover) {
      progress('time-failover');
      results.push(await failOver(clock, guest, pair, points, afterFailoverMs));
    } else {
      await endPair(pair);
    }
  }
  return { results, ratios: ratiosOf(results) };
};

const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number => metricOf(results, name, key);
  return {
    timeDriftUnprotectedPpm: metric('time-unprotected', 'driftPpm'),
    timeDriftProtectedPpm: metric('time-protected', 'driftPpm'),
    timeDriftAfterFailoverPpm: metric('time-failover', 'driftPpm'),
    timeStepAtFailoverMs: metric('time-failover', 'stepMs'),
  };
};
