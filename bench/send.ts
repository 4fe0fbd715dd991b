/**
 * Suite `send`: how the bytes of a checkpoint travel, and what each way costs.
 *
 *     host a                                      host b
 *     file of 512 MiB on tmpfs ─► openSender ── veth ─► openReceiver ─► file
 *                                 iperf3 -c  ── veth ─► iperf3 -s
 *                              socket.write  ── veth ─► a server that counts
 *
 * Every strategy has a connection of its own. In a round each sends the same
 * pages once, one transfer at a time; the rounds repeat with other pages, each
 * beginning with another strategy, and iperf3 and plain Node take their turns
 * between them. So whatever the machine does meanwhile falls on all alike.
 *
 * CPU of sender and receiver are thread clocks of the data plane's threads. A
 * veth pair delivers in the sending thread's context, so the sender's clock
 * also holds what the receiving host's TCP does: the same for every strategy
 * and baseline, but not what a network card would show.
 */
import { Lab } from '../test/lab/lab.js';
import type { BenchResult, Progress, RunSuite, SuiteOutput, WantedCases } from './report.js';
import { Baselines, NodePair, serveIperf } from './send/baselines.js';
import { type Block, type Case, casesOf, type Plan, planOf, type Size } from './send/plan.js';
import { ratiosOf, winnersOf } from './send/ratios.js';
import { fillRegion, pageBytes } from './send/region.js';
import { type Sample, summarise } from './send/samples.js';
import { type Transfer, Transfers } from './send/transfers.js';

interface Bench {
  readonly lab: Lab;
  readonly plan: Plan;
  readonly transfers: Transfers;
  readonly node: NodePair;
  readonly wanted: WantedCases;
  readonly progress: Progress;
}

interface MeasuredCase extends Case {
  readonly transfers: Transfer[];
}

/** A lane's name is that of its settings. */
const laneOf = ({ lane }: Case): string =>
  [
    lane.strategy,
    lane.streams,
    lane.staged ? 'staged' : 'direct',
    lane.verify ? 'verified' : 'unverified',
  ].join('-');

/** Opens what the cases need; settles with the names of the lanes, without those this kernel can't have. */
const openLanes = async (
  { plan, transfers, progress }: Bench,
  cases: readonly Case[],
): Promise<Set<string>> => {
  const open = new Set<string>();
  for (const [lane, { lane: options }] of new Map(cases.map((one) => [laneOf(one), one]))) {
    const refused = await transfers.open(lane, options);
    if (refused === undefined) {
      open.add(lane);
      await transfers.touch(lane, plan.regionBytes / pageBytes);
    } else {
      progress(`${options.strategy} is left out: ${refused}`);
    }
  }
  return open;
};

/** Each round begins one strategy further on: none always comes after the same neighbour. */
const rotated = <Value>(values: readonly Value[], by: number): Value[] => {
  const at = values.length === 0 ? 0 : by % values.length;
  return [...values.slice(at), ...values.slice(0, at)];
};

const measureSize = async (
  bench: Bench,
  block: Block,
  size: Size,
  cases: readonly MeasuredCase[],
): Promise<BenchResult[]> => {
  const { lab, node, transfers, wanted, progress } = bench;
  const baselines =
    block.baselineStreams === 0
      ? undefined
      : Baselines.of(
          { lab, node: block.baselineStreams === 1 ? node : undefined },
          size,
          block.baselineStreams,
          block.runLengths,
          (name) => wanted.wants(name),
        );
  // With --only most blocks have nothing to do.
  if (cases.length === 0 && (baselines?.empty ?? true)) return [];
  progress(`${block.name}: ${size.sizeMiB} MiB, ${size.rounds} rounds of ${cases.length}`);
  for (const [lane, { runPages }] of new Map(cases.map((each) => [laneOf(each), each]))) {
    // Staging and socket buffers grow to this size; nobody's figures shall contain that.
    await transfers.send(lane, { runPages, pages: size.pages, seed: 1 });
  }
  for (let round = 0; round < size.rounds; round += 1) {
    const seed = 1_000 + round;
    for (const runPages of block.runLengths) {
      const turn = cases.filter((one) => one.runPages === runPages);
      for (const one of rotated(turn, round)) {
        one.transfers.push(await transfers.send(laneOf(one), { runPages, pages: size.pages, seed }));
      }
    }
    if (round % size.baselineEvery === 0) await baselines?.round(seed);
  }
  return [...cases.map(resultOf), ...(baselines?.results() ?? [])];
};

const resultOf = ({ name, lane, size, runPages, transfers }: MeasuredCase): BenchResult => {
  const { strategy, streams, staged, verify } = lane;
  const capture = staged ? 'staged' : 'direct';
  const params = { strategy, runPages, sizeMiB: size.sizeMiB, streams, capture, verify };
  return {
    name,
    params: strategy === 'auto' ? { ...params, chose: choicesOf(transfers) } : params,
    metrics: summarise(transfers.map(({ sample }): Sample => sample)),
  };
};

/** `splice 42, copy 18`: what `auto` sent with, the most used first. */
const choicesOf = (transfers: readonly Transfer[]): string => {
  const times = new Map<string, number>();
  for (const { strategy } of transfers) times.set(strategy, (times.get(strategy) ?? 0) + 1);
  return [...times]
    .sort(([, a], [, b]) => b - a)
    .map(([strategy, count]) => `${strategy} ${count}`)
    .join(', ');
};

const measureBlock = async (bench: Bench, block: Block): Promise<BenchResult[]> => {
  const asked = casesOf(block).filter(({ name }) => bench.wanted.wants(name));
  const open = await openLanes(bench, asked);
  const cases = asked
    .filter((one) => open.has(laneOf(one)))
    .map((one): MeasuredCase => ({ ...one, transfers: [] }));
  const results: BenchResult[] = [];
  for (const size of block.sizes) {
    const ofSize = cases.filter((one) => one.size === size);
    results.push(...(await measureSize(bench, block, size, ofSize)));
  }
  for (const lane of open) await bench.transfers.close(lane);
  return results;
};

const runPlan = async (plan: Plan, progress: Progress, wanted: WantedCases): Promise<SuiteOutput> => {
  await using lab = await Lab.create({ tag: 'send' });
  const file = lab.sharedMemoryPath('region');
  progress(`filling a region of ${plan.regionBytes / 1024 / 1024} MiB`);
  await fillRegion(file, plan.regionBytes);
  await serveIperf(lab);
  const node = await NodePair.start(lab, file, plan.regionBytes);
  const transfers = await Transfers.start(lab, file, plan.regionBytes);
  const bench: Bench = { lab, plan, transfers, node, wanted, progress };
  const results: BenchResult[] = [];
  for (const block of plan.blocks) results.push(...(await measureBlock(bench, block)));
  return { results: [...winnersOf(results), ...results], ratios: ratiosOf(results) };
};

export const runSendSuite: RunSuite = async (smoke, progress, wanted) =>
  await runPlan(planOf(smoke), progress, wanted);
