/** Which guests are measured with what, after `--smoke` and `--only`. */
import { availableParallelism } from 'node:os';
import type { WantedCases } from '../report.js';
import { type Probe, type ProbeSize, probes } from './probes.js';

/**
 * raw: QEMU's own file driver. server: through the disk server, unprotected. floor: the same, with bare epochs,
 * nothing of Holdfast's in them. protected: replicated. alone: as server, but all of host a on one processor.
 * apart: as protected, host a on that processor and host b on the other: what two hosts would do, one core each.
 */
export const setUps = ['raw', 'server', 'floor', 'protected', 'alone', 'apart'] as const;
export type SetUp = (typeof setUps)[number];

/** What a protected guest's epochs are, and the floor's. */
export const INTERVAL_MS = 20;

/** What a set-up is compared with, and the name of the share: `rateShare`, `rateOfFloorShare`. */
export const baselines: Readonly<Record<SetUp, readonly { readonly setUp: SetUp; readonly of: string }[]>> = {
  raw: [],
  server: [{ setUp: 'raw', of: '' }],
  floor: [{ setUp: 'server', of: '' }],
  protected: [
    { setUp: 'server', of: '' },
    { setUp: 'floor', of: 'OfFloor' },
  ],
  alone: [],
  apart: [{ setUp: 'alone', of: '' }],
};

export const caseName = (probe: Probe, setUp: SetUp): string => `${probe.name}-${setUp}`;

const server = 'disk server';
const byTheClock = { epochsBegin: 'by the clock', intervalMs: INTERVAL_MS } as const;

export const setUpParams: Readonly<Record<SetUp, Readonly<Record<string, string | number>>>> = {
  raw: { disk: 'QEMU’s raw file driver', epochsBegin: 'never', processors: 'shared' },
  server: { disk: server, epochsBegin: 'never', processors: 'shared' },
  floor: { disk: server, ...byTheClock, epochsBegin: 'by the clock, bare', processors: 'shared' },
  protected: { disk: server, ...byTheClock, processors: 'shared' },
  alone: { disk: server, epochsBegin: 'never', processors: 'one' },
  apart: { disk: server, ...byTheClock, processors: 'one for each host' },
};

export interface TurnPlan {
  /** Of each set-up; empty: it is not measured. */
  readonly probes: Readonly<Record<SetUp, readonly Probe[]>>;
  readonly size: ProbeSize;
  readonly passes: number;
}

const full = { size: { seconds: 3, spanMiB: 512, bonnieMiB: 256 }, passes: 2 } as const;
const smokeSize = { size: { seconds: 1, spanMiB: 16, bonnieMiB: 16 }, passes: 1 } as const;
/** One of each kind. */
const smokeProbes = ['sequential-write-1m', 'fsync', 'bonnie'];

/** With what it is compared, and so on: what is measured protected is measured unprotected, too. */
const withBaselines = (chosen: ReadonlySet<SetUp>): ReadonlySet<SetUp> => {
  const all = new Set(chosen);
  // A set-up's baselines are looked at after it was added: a Set's iterator finds what comes meanwhile.
  for (const setUp of all) {
    if (setUp === 'server') continue; // what remains of QEMU's own driver is asked for by name
    for (const baseline of baselines[setUp]) all.add(baseline.setUp);
  }
  return all;
};

/** Undefined if nothing is wanted. A machine with one processor has none to give each host. */
export const turnPlan = (
  smoke: boolean,
  wanted: WantedCases,
  processors = availableParallelism(),
): TurnPlan | undefined => {
  const offered = probes.filter(({ name }) => !smoke || smokeProbes.includes(name));
  const can = (setUp: SetUp, probe: Probe): boolean =>
    (setUp !== 'alone' && setUp !== 'apart') || (processors > 1 && probe.name !== 'bonnie');
  const measured = new Map(
    offered.map((probe) => [
      probe,
      withBaselines(
        new Set(setUps.filter((setUp) => can(setUp, probe) && wanted.wants(caseName(probe, setUp)))),
      ),
    ]),
  );
  if ([...measured.values()].every((chosen) => chosen.size === 0)) return undefined;
  const of = (setUp: SetUp): Probe[] => offered.filter((probe) => measured.get(probe)!.has(setUp));
  const planned = Object.fromEntries(setUps.map((setUp) => [setUp, of(setUp)])) as Record<SetUp, Probe[]>;
  return { probes: planned, ...(smoke ? smokeSize : full) };
};
