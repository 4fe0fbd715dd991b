/** What the suite measures: the cases, and how often each. */
import type { LaneOptions, SendStrategy } from './protocol.js';

export const concreteStrategies = ['copy', 'sendfile', 'splice', 'vmsplice', 'zerocopy', 'uring'] as const;

/** Pages to a run: scattered single pages, up to what a sequential writer leaves. */
export const runLengths = [1, 4, 32, 512] as const;

export interface Size {
  readonly sizeMiB: number;
  readonly pages: number;
  /** Transfers of each strategy and run length. */
  readonly rounds: number;
  /** The baselines take their turn after every so many rounds. */
  readonly baselineEvery: number;
}

const size = (sizeMiB: number, rounds: number, baselineEvery: number): Size => ({
  sizeMiB,
  pages: sizeMiB * 256,
  rounds,
  baselineEvery,
});

/** Lanes that are open at a time, their transfers interleaved. */
export interface Block {
  readonly name: string;
  readonly lanes: readonly LaneOptions[];
  readonly sizes: readonly Size[];
  readonly runLengths: readonly number[];
  /** Streams of the baselines that run in turns with this block; 0: none do. */
  readonly baselineStreams: number;
}

export interface Plan {
  readonly regionBytes: number;
  readonly blocks: readonly Block[];
}

interface Kind {
  readonly streams: number;
  readonly staged: boolean;
}

const lanesOf = (strategies: readonly SendStrategy[], kind: Kind, verify = true): LaneOptions[] =>
  strategies.map((strategy) => ({ strategy, ...kind, verify }));

const block = (
  { streams, staged }: Kind,
  strategies: readonly SendStrategy[],
  sizes: readonly Size[],
): Block => ({
  name: `${staged ? 'staged' : 'direct'}, ${streams} stream${streams === 1 ? '' : 's'}`,
  lanes: lanesOf(strategies, { streams, staged }),
  sizes,
  runLengths,
  // Staged, the baselines would be the same as beside `direct`.
  baselineStreams: staged ? 0 : streams,
});

/** Verified and not, in turns: what the digest costs both sides. */
const verifyBlock = (strategies: readonly SendStrategy[], sizes: readonly Size[]): Block => {
  const kind = { streams: 1, staged: false };
  return {
    name: 'verified against unverified',
    lanes: strategies.flatMap((strategy) => [
      ...lanesOf([strategy], kind),
      ...lanesOf([strategy], kind, false),
    ]),
    sizes,
    runLengths: [1, 4, 512],
    baselineStreams: 0,
  };
};

const fullSizes = [size(1, 60, 3), size(20, 30, 3), size(200, 6, 2)];

const fullPlan: Plan = {
  regionBytes: 512 * 1024 * 1024,
  blocks: [
    block({ streams: 1, staged: false }, concreteStrategies, fullSizes),
    block({ streams: 2, staged: false }, concreteStrategies, fullSizes),
    block({ streams: 1, staged: true }, concreteStrategies, fullSizes),
    block({ streams: 2, staged: true }, concreteStrategies, fullSizes),
    verifyBlock(concreteStrategies, [size(20, 20, 1)]),
    { ...block({ streams: 1, staged: false }, ['auto'], [size(20, 60, 1)]), baselineStreams: 0 },
  ],
};

const smokePlan: Plan = {
  regionBytes: 128 * 1024 * 1024,
  blocks: [
    block({ streams: 1, staged: false }, concreteStrategies, [size(1, 3, 3), size(20, 3, 3)]),
    {
      ...block({ streams: 2, staged: true }, ['copy', 'splice', 'zerocopy'], [size(1, 2, 1)]),
      runLengths: [1, 32],
    },
    { ...verifyBlock(['copy', 'splice'], [size(20, 2, 1)]), runLengths: [4] },
  ],
};

export const planOf = (smoke: boolean): Plan => (smoke ? smokePlan : fullPlan);

/** One row of the report. */
export interface Case {
  readonly name: string;
  readonly lane: LaneOptions;
  readonly size: Size;
  readonly runPages: number;
}

/** The same lane in two blocks (verified, and the control of unverified) is two cases: `suffix` tells them apart. */
const caseName = (lane: LaneOptions, { sizeMiB }: Size, runPages: number, suffix: string): string => {
  const capture = lane.staged ? 'staged' : 'direct';
  return `${lane.strategy}-run${runPages}-${sizeMiB}mib-${capture}-streams${lane.streams}${suffix}`;
};

/** In the order of a round. A run longer than the whole transfer is no case. */
export const casesOf = (one: Block): Case[] => {
  const controlled = one.lanes.some(({ verify }) => !verify);
  return one.sizes.flatMap((size) =>
    one.runLengths
      .filter((runPages) => runPages <= size.pages)
      .flatMap((runPages) =>
        one.lanes.map((lane) => {
          const suffix = lane.verify ? (controlled ? '-verified' : '') : '-unverified';
          return { name: caseName(lane, size, runPages, suffix), lane, size, runPages };
        }),
      ),
  );
};
