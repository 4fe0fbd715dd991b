/**
 * What a computing guest loses while a checkpoint is written: its work from the begin of a checkpoint to its end,
 * against the windows before and after it, in turns. It writes 2,000 pages a second meanwhile. Attaching and
 * detaching are outside of that: nothing is written then.
 */
import { Checkpointing, type CheckpointReport } from '../../lib/checkpoint/checkpointing.js';
import { runDirOf } from '../../test/lab/daemons.js';
import { Lab } from '../../test/lab/lab.js';
import { measureRates, startComputing, type WorkMeter } from '../epoch/work.js';
import type { BenchResult, Progress } from '../report.js';
import { startIdleGuest } from './idle-guest.js';
import type { CheckpointPlan, LossSize } from './plan.js';
import { spreads } from './spreads.js';

const PAGES_PER_S = 2_000;
const WORKING_SET_PAGES = 5_120;
const WARM_UP_MS = 1_000;

type Written = Readonly<Record<'lostPercent' | 'totalMs' | 'writtenBytes', number>>;

interface Taken {
  readonly report: CheckpointReport;
  /** Of the guest's work, while it was written. */
  readonly rate: number;
}

const takeOne = async (meter: WorkMeter, running: Checkpointing): Promise<Taken> => {
  const [total, beganMs] = [await meter.total(), performance.now()];
  const report = await running.take();
  await running.idle();
  const rate = (((await meter.total()) - total) * 1_000) / (performance.now() - beganMs);
  return { report, rate };
};

const takeTurns = async (
  meter: WorkMeter,
  { turns, windowMs }: LossSize,
  take: () => Promise<Taken>,
): Promise<Written[]> => {
  const rate = async (): Promise<number> => (await measureRates(meter, 1, windowMs))[0] ?? Number.NaN;
  const written: Written[] = [];
  let before = await rate();
  for (let turn = 1; turn <= turns; turn += 1) {
    const { report, rate: during } = await take();
    const after = await rate();
    // Of the work in as much time without a checkpoint.
    const lostPercent = 100 * (1 - during / ((before + after) / 2));
    written.push({ lostPercent, totalMs: report.totalMs, writtenBytes: report.bytes });
    before = after;
  }
  return written;
};

export const measureLoss = async (
  { loss, ramMb }: CheckpointPlan,
  progress: Progress,
): Promise<BenchResult[]> => {
  if (loss === undefined) return [];
  progress('loss: booting the guest');
  await using lab = await Lab.create({ tag: 'bckpl' });
  const guest = await startIdleGuest(lab, { ramMb });
  const load = { pagesPerSecond: PAGES_PER_S, workingSetPages: WORKING_SET_PAGES };
  const meter = await startComputing(lab, guest.ramPath, load);
  await measureRates(meter, 1, WARM_UP_MS);
  const options = { qmp: guest.qmpPath, dir: lab.path('lossy'), keep: 2, runDir: runDirOf(lab, 'a') };
  const result = (kind: 'full' | 'increment', turns: readonly Written[]): BenchResult => {
    const metrics = { turns: turns.length, ...spreads(turns) };
    progress(`loss-${kind}: ${JSON.stringify(metrics)}`);
    return { name: `loss-${kind}`, params: { ...load, ramMb, accelerator: 'tcg' }, metrics };
  };
  const fulls = await takeTurns(meter, loss, async () => {
    await using running = await Checkpointing.start(options);
    return await takeOne(meter, running);
  });
  await using running = await Checkpointing.start(options);
  await running.take();
  await running.idle();
  const increments = await takeTurns(meter, loss, () => takeOne(meter, running));
  await meter.stop();
  return [result('full', fulls), result('increment', increments)];
};
