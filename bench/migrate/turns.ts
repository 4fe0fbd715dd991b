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
import { type CasePlan, RELAXED, type WorkloadPlan } from './plan.js';
import { bootWorker } from './workloads.js';

/** For the answers to the last of a client's requests. */
const ANSWER_MS = 300;

type Measured = Move & { readonly allowedMs: number; readonly clientGapMs: number | undefined };
type Moves = ReadonlyMap<CasePlan, Measured[]>;

const median = (values: readonly number[]): number => percentile(values, 50);

/** As planned, but for a case that is to be just relaxed enough. */
const allowedMs = ({ move, relaxes }: CasePlan, moves: Moves): number => {
  const [, stayed = []] = [...moves].find(([{ name }]) => name === relaxes) ?? [];
  const remainders = stayed.flatMap((each) => (each.event === 'stayed' ? (each.remainderMs ?? []) : []));
  return remainders.length === 0 ? move.downtimeMs : Math.ceil(RELAXED * median(remainders));
};

const of = <Name extends string>(moves: readonly Readonly<Record<Name, number>>[], name: Name): number[] =>
  moves.map((each) => each[name]);

export const resultOf = (
  { workload, size }: WorkloadPlan,
  { name, engine, move }: CasePlan,
  moves: readonly Measured[],
): BenchResult => {
  const arrived = moves.filter((each) => each.event === 'moved');
  const stayed = moves.filter((each) => each.event === 'stayed');
  const middle = (stem: string, values: readonly number[]) =>
    values.length === 0 ? {} : { [`${stem}P50`]: median(values) };
  const spread = (stem: string, values: readonly number[]) =>
    values.length === 0 ? {} : { ...middle(stem, values), [`${stem}Max`]: percentile(values, 100) };
  const gaps = arrived.flatMap(({ clientGapMs }) => clientGapMs ?? []);
  const parts = [...new Set(arrived.flatMap(({ parts }) => Object.keys(parts)))];
  const writes = workload === 'writer';
  return {
    name,
    params: {
      ...{
        workload,
        engine,
        policy: move.policy,
        allowedDowntimeMs: median(moves.map(({ allowedMs }) => allowedMs)),
      },
      linkMbitPerS: size.mbitPerS ?? 'not limited',
      ...(writes ? { pagesPerSecond: size.pagesPerSecond, workingSetPages: size.workingSetPages } : {}),
      ...{ ramMb: Math.round(size.ramMb), accelerator: 'tcg' },
    },
    metrics: {
      ...{ trials: moves.length, arrived: arrived.length },
      ...spread('totalMs', of(arrived, 'totalMs')),
      ...spread('downtimeMs', of(arrived, 'downtimeMs')),
      ...spread('clientGapMs', gaps),
      // As the times: or a case that stays would count on one side of a comparison only.
      ...middle('linkBytes', of(arrived, 'linkBytes')),
      ...middle('stayedLinkBytes', of(stayed, 'linkBytes')),
      roundsP50: median(of(moves, 'rounds')),
      ...Object.fromEntries(
        parts.map((part) => [`${part}P50`, median(arrived.flatMap(({ parts }) => parts[part] ?? []))]),
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
  const moves: Moves = new Map(cases.map((each) => [each, []]));
  const turns = Math.max(...cases.map((each) => each.turns));
  for (let turn = 1; turn <= turns; turn += 1) {
    for (const each of cases.filter(({ turns }) => turn <= turns)) {
      await sleep(size.settleMs);
      const outside = await OutsideWatch.start(lab);
      const downtimeMs = allowedMs(each, moves);
      const move = await guest.move(each.engine, { ...each.move, downtimeMs });
      await sleep(ANSWER_MS);
      moves.get(each)!.push({ ...move, allowedMs: downtimeMs, clientGapMs: await outside.stop() });
      progress(`${each.name}: turn ${turn} of ${each.turns}: ${describeMove(move)}`);
    }
  }
  await finish();
  return cases.map((each) => resultOf(plan, each, moves.get(each)!));
};

const describeMove = (move: Move): string =>
  move.event === 'moved'
    ? `${move.totalMs.toFixed(0)} ms, ${move.rounds} rounds, stood still for ${move.downtimeMs.toFixed(1)} ms`
    : `stayed after ${move.rounds} rounds, ${move.remainderMs?.toFixed(0) ?? '?'} ms left: ${move.message}`;
