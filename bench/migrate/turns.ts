/**
 * One guest, moved to and fro, case after case and again from the first: a machine that grows slower or faster
 * during the run falls on all cases alike.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { limitLink } from '../../test/lab/limit-link.js';
import type { BenchResult, Progress } from '../report.js';
import type { Move } from './moving-guest.js';
import { OutsideWatch } from './outside.js';
import type { CasePlan, WorkloadPlan } from './plan.js';
import { bootWorker } from './workloads.js';

/** A VM that has just arrived has no translated code: until it does its work again. */
const SETTLE_MS = 1_500;

type Measured = Move & { readonly clientGapMs: number | undefined };

const resultOf = (
  { workload, size }: WorkloadPlan,
  { name, engine, move }: CasePlan,
  moves: readonly Measured[],
): BenchResult => {
  const arrived = moves.filter((each) => each.event === 'moved');
  const spread = (stem: string, values: readonly number[], ends: readonly number[] = [50, 100]) =>
    Object.fromEntries(
      ends
        .filter(() => values.length > 0)
        .map((p) => [`${stem}${p === 100 ? 'Max' : p === 0 ? 'Min' : `P${p}`}`, percentile(values, p)]),
    );
  const gaps = arrived.flatMap(({ clientGapMs }) => clientGapMs ?? []);
  const parts = [...new Set(arrived.flatMap(({ parts }) => Object.keys(parts)))];
  const writes = workload === 'writer';
  return {
    name,
    params: {
      ...{ workload, engine, policy: move.policy, allowedDowntimeMs: move.downtimeMs },
      linkMbitPerS: size.mbitPerS ?? 'not limited',
      ...(writes ? { pagesPerSecond: size.pagesPerSecond, workingSetPages: size.workingSetPages } : {}),
      ...{ ramMb: Math.round(size.ramMb), accelerator: 'tcg' },
    },
    metrics: {
      trials: moves.length,
      arrived: arrived.length,
      ...spread(
        'totalMs',
        arrived.map(({ totalMs }) => totalMs),
      ),
      ...spread(
        'downtimeMs',
        arrived.map(({ downtimeMs }) => downtimeMs),
      ),
      ...spread('clientGapMs', gaps),
      ...spread(
        'linkBytes',
        moves.map(({ linkBytes }) => linkBytes),
        [50],
      ),
      ...spread(
        'rounds',
        moves.map(({ rounds }) => rounds),
        [50],
      ),
      ...Object.fromEntries(
        parts.map((part) => [
          `${part}P50`,
          percentile(
            arrived.flatMap(({ parts }) => parts[part] ?? []),
            50,
          ),
        ]),
      ),
    },
  };
};

export const measureWorkload = async (plan: WorkloadPlan, progress: Progress): Promise<BenchResult[]> => {
  const { workload, size, cases } = plan;
  progress(`${workload}: booting the guest`);
  await using lab = await Lab.create({ tag: 'move' });
  const { guest, finish } = await bootWorker(lab, workload, size);
  if (size.mbitPerS !== undefined) await limitLink(lab, size.mbitPerS);
  const moves = new Map<CasePlan, Measured[]>(cases.map((each) => [each, []]));
  const turns = Math.max(...cases.map((each) => each.turns));
  for (let turn = 1; turn <= turns; turn += 1) {
    for (const each of cases.filter(({ turns }) => turn <= turns)) {
      await sleep(SETTLE_MS);
      const outside = await OutsideWatch.start(lab);
      const move = await guest.move(each.engine, each.move);
      await sleep(SETTLE_MS / 3); // until it answers again
      moves.get(each)!.push({ ...move, clientGapMs: await outside.stop() });
      progress(`${each.name}: turn ${turn} of ${each.turns}: ${describeMove(move)}`);
    }
  }
  await finish();
  return cases.map((each) => resultOf(plan, each, moves.get(each)!));
};

const describeMove = (move: Move): string =>
  move.event === 'moved'
    ? `${move.totalMs.toFixed(0)} ms, ${move.rounds} rounds, stood still for ${move.downtimeMs.toFixed(1)} ms`
    : `stayed after ${move.rounds} rounds: ${move.message}`;
