/**
 * How many checkpoints a second there can be: an idle guest, the shortest interval,
 * for a minute. Those count that the backup has acknowledged; none may be missing.
 */
import { percentile } from '../../lib/stats.js';
import type { JsonProcess } from '../../test/lab/json-process.js';
import { Lab } from '../../test/lab/lab.js';
import { collectEpochs, endPair, type MeasuredEpoch, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { summariseEpochs } from './summary.js';

export const IDLE_CASE = 'idle-200';

/** The least there is: each epoch follows the acknowledgement of the one before. */
const settings = { gate: 'relay', intervalMs: 1 } as const;
const WARM_UP_EPOCHS = 100;
const PROTECT_TIMEOUT_MS = 60_000;
const LATE_MS_MAX = 10_000;

/** Without looking through what it says: at these rates that would be work beside the measured. */
const passTime = async (role: JsonProcess, ms: number): Promise<void> => {
  const endMs = performance.now() + ms;
  await role.until('the time to pass', () => performance.now() >= endMs, ms + LATE_MS_MAX);
};

export interface Continuity {
  readonly perS: number;
  /** The fewest in any full second. */
  readonly perSMin: number;
  /** Numbers between the first and the last that were never acknowledged. */
  readonly missed: number;
  /** The longest from one acknowledgement to the next. */
  readonly gapMsMax: number;
}

type Acknowledged = Pick<MeasuredEpoch, 'epoch' | 'atMs'>;

/** Pace and gaps of at least two checkpoints, in their order. */
export const continuityOf = (acknowledged: readonly Acknowledged[]): Continuity => {
  const [first, last] = [acknowledged[0], acknowledged.at(-1)];
  if (first === undefined || last === undefined || first === last)
    throw new Error(`${acknowledged.length} checkpoints have no pace`);
  const seconds = Math.floor((last.atMs - first.atMs) / 1000);
  const perSecond = Array.from({ length: seconds }, () => 0);
  const gapsMs: number[] = [];
  acknowledged.forEach(({ atMs }, n) => {
    const second = Math.floor((atMs - first.atMs) / 1000);
    if (second < seconds) perSecond[second]! += 1;
    if (n > 0) gapsMs.push(atMs - acknowledged[n - 1]!.atMs);
  });
  return {
    perS: ((acknowledged.length - 1) * 1000) / (last.atMs - first.atMs),
    perSMin: percentile(perSecond, 0),
    missed: last.epoch - first.epoch + 1 - new Set(acknowledged.map(({ epoch }) => epoch)).size,
    gapMsMax: percentile(gapsMs, 100),
  };
};

/** Case `idle-200`. */
export const measureIdle = async (seconds: number, progress: Progress): Promise<BenchResult> => {
  progress(`${IDLE_CASE}: ${seconds} s`);
  await using lab = await Lab.create({ tag: 'bench' });
  const guest = await startRelayedGuest(lab, { workload: 'idle' });
  const pair = await startPair(lab, guest, settings);
  await collectEpochs(pair.primary, WARM_UP_EPOCHS, PROTECT_TIMEOUT_MS);
  const first = pair.primary.of('epoch').length;
  await passTime(pair.primary, seconds * 1000);
  const epochs = pair.primary.of('epoch').slice(first) as unknown as MeasuredEpoch[];
  await endPair(pair);
  const { perS, perSMin, missed, gapMsMax } = continuityOf(epochs);
  return {
    name: IDLE_CASE,
    params: { workload: 'idle', ...settings, ramMiB: 512, accelerator: 'tcg' },
    metrics: {
      seconds,
      checkpointsPerSMean: perS,
      checkpointsPerSMin: perSMin,
      missed,
      gapMsMax,
      ...summariseEpochs(epochs),
    },
  };
};
