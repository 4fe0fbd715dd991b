/**
 * For how long one guest stands still, turn after turn: increments, full checkpoints, hand-offs, checkpoints by
 * hand-off, and how long a restored one takes until it runs. It writes the same 20 MB of memory over and over.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Checkpointing, type CheckpointReport } from '../../lib/checkpoint/checkpointing.js';
import type { HandoffResult } from '../../lib/handoff/options.js';
import { identifyProcess, waitForExit } from '../../lib/vm/process.js';
import { holdfast, runDirOf } from '../../test/lab/daemons.js';
import { startMemwriter } from '../../test/lab/guest-shell.js';
import { Lab } from '../../test/lab/lab.js';
import type { BenchResult, Progress } from '../report.js';
import { startIdleGuest } from './idle-guest.js';
import { jsonLinesOf } from './json-lines.js';
import type { CheckpointPlan, PauseSize } from './plan.js';
import { type Figures, spreads } from './spreads.js';
import { runRole } from './turns.js';

/** Long enough for the guest to write all of its 20 MB. */
const BETWEEN_MS = 400;
const PAGES_PER_S = 20_000;
const CLI_TIMEOUT_MS = 120_000;

const ofCapture = ({ pauseMs, bytes, pausePages, totalMs }: CheckpointReport): Figures => ({
  ...{ pauseMs, writtenBytes: bytes, pausePages, totalMs },
});

/** What a command that has ended well told. */
const linesOf = async (lab: Lab, args: readonly string[]): Promise<Record<string, unknown>[]> =>
  jsonLinesOf(await holdfast(lab, 'a', [...args, '--json'], { timeoutMs: CLI_TIMEOUT_MS }));

const takeCaptures = async (
  lab: Lab,
  qmp: string,
  size: PauseSize,
): Promise<{ readonly fulls: Figures[]; readonly increments: Figures[] }> => {
  const options = { qmp, dir: lab.path('captured'), keep: 3, runDir: runDirOf(lab, 'a') };
  const fulls: Figures[] = [];
  const increments: Figures[] = [];
  for (let run = 1; run <= size.fulls; run += 1) {
    await using running = await Checkpointing.start(options);
    fulls.push(ofCapture(await running.take()));
    while (run === size.fulls && increments.length < size.increments) {
      await sleep(BETWEEN_MS);
      await running.idle();
      increments.push(ofCapture(await running.take()));
    }
    await running.idle();
  }
  return { fulls, increments };
};

/** The guest must have ended: they have its tap. */
const restoreAgain = async (lab: Lab, serialPath: string, restores: number): Promise<Figures[]> => {
  const turns: Figures[] = [];
  for (let turn = 1; turn <= restores; turn += 1) {
    const [restored = {}] = await linesOf(lab, [
      ...['restore', '--ram-dir', lab.sharedMemoryDir, '--name', `again-${turn}`],
      ...['--replace', `${serialPath}=${serialPath}-again`, lab.path('captured')],
    ]);
    const { pid, totalMs, startMs, loadMs } = restored as Record<
      'pid' | 'totalMs' | 'startMs' | 'loadMs',
      number
    >;
    turns.push({ runsAfterMs: totalMs, qemuStartMs: startMs, loadMs });
    await end(pid);
  }
  return turns;
};

const end = async (pid: number): Promise<void> => {
  const identity = await identifyProcess(pid);
  process.kill(pid, 'SIGKILL');
  await waitForExit(identity, { pollMs: 10, signal: AbortSignal.timeout(10_000) });
};

export const measurePauses = async (
  { pauses, ramMb }: CheckpointPlan,
  progress: Progress,
): Promise<BenchResult[]> => {
  if (pauses === undefined) return [];
  progress('pauses: booting the guest');
  await using lab = await Lab.create({ tag: 'bckpp' });
  const { workingSetPages } = pauses;
  const guest = await startIdleGuest(lab, { ramMb });
  await startMemwriter(lab.client, { pagesPerSecond: PAGES_PER_S, workingSetPages });
  const result = (name: string, turns: readonly Figures[]): BenchResult => {
    const metrics = { turns: turns.length, ...spreads(turns) };
    progress(`${name}: ${JSON.stringify(metrics)}`);
    return {
      name,
      params: { guest: 'writes memory', workingSetPages, ramMb, accelerator: 'tcg' },
      metrics,
    };
  };
  const { fulls, increments } = await takeCaptures(lab, guest.qmpPath, pauses);
  const results = [result('pause-full', fulls), result('pause-increment', increments)];

  const saved: Figures[] = [];
  for (let turn = 1; turn <= pauses.checkpointsByHandoff; turn += 1) {
    const dir = join(lab.dir, `by-handoff-${turn}`);
    const [one = {}] = await runRole(lab, { method: 'handoff', checkpoints: 1, qmp: guest.qmpPath, dir });
    const {
      stoppedMs = Number.NaN,
      prefixMs = Number.NaN,
      writtenBytes = Number.NaN,
      allMs = Number.NaN,
    } = one;
    const allStopsMs = stoppedMs + prefixMs;
    saved.push({ pauseMs: stoppedMs, prefixMs, allStopsMs, writtenBytes, totalMs: allMs });
  }
  results.push(result('pause-checkpoint-by-handoff', saved));

  const given: Figures[] = [];
  let pid = 0;
  for (let turn = 1; turn <= pauses.handoffs; turn += 1) {
    const last = (await linesOf(lab, ['handoff', '--qmp', guest.qmpPath])).at(-1) as unknown as HandoffResult;
    pid = last.to.pid;
    given.push({ pauseMs: last.downtimeMs, ...last.parts, totalMs: last.totalMs });
  }
  results.push(result('pause-handoff', given));

  await end(pid);
  results.push(result('restore', await restoreAgain(lab, guest.serialPath, pauses.restores)));
  return results;
};
