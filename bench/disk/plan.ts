/** Which guests are measured with what, after `--smoke` and `--only`. */
import type { WantedCases } from '../report.js';
import { type Probe, type ProbeSize, probes } from './probes.js';

/** raw: QEMU's own file driver. server: through the disk server, unprotected. protected: the same, replicated. */
export const setUps = ['raw', 'server', 'protected'] as const;
export type SetUp = (typeof setUps)[number];

/** What a protected guest's epochs are. */
export const INTERVAL_MS = 20;

export const caseName = (probe: Probe, setUp: SetUp): string => `${probe.name}-${setUp}`;

export const setUpParams: Readonly<Record<SetUp, Readonly<Record<string, string | number>>>> = {
  raw: { disk: 'QEMU’s raw file driver', epochsBegin: 'never' },
  server: { disk: 'disk server', epochsBegin: 'never' },
  protected: { disk: 'disk server', epochsBegin: 'by the clock', intervalMs: INTERVAL_MS },
};

export interface TurnPlan {
  /** Of each set-up; empty: it is not measured. */
  readonly probes: Readonly<Record<SetUp, readonly Probe[]>>;
  readonly size: ProbeSize;
  readonly passes: number;
}

const full = { size: { seconds: 3, spanMiB: 512, bonnieMiB: 256 }, passes: 3 } as const;
const smokeSize = { size: { seconds: 1, spanMiB: 16, bonnieMiB: 16 }, passes: 1 } as const;
/** One of each kind. */
const smokeProbes = ['sequential-write-1m', 'fsync', 'bonnie'];

/** Undefined if nothing is wanted. What is measured protected is measured unprotected, too. */
export const turnPlan = (smoke: boolean, wanted: WantedCases): TurnPlan | undefined => {
  const offered = probes.filter(({ name }) => !smoke || smokeProbes.includes(name));
  const of = (setUp: SetUp): Probe[] => offered.filter((probe) => wanted.wants(caseName(probe, setUp)));
  const measured = { raw: of('raw'), server: of('server'), protected: of('protected') };
  const needed = offered.filter((probe) => setUps.some((setUp) => measured[setUp].includes(probe)));
  if (needed.length === 0) return undefined;
  const server = needed.filter(
    (probe) => measured.server.includes(probe) || measured.protected.includes(probe),
  );
  return { probes: { ...measured, server }, ...(smoke ? smokeSize : full) };
};
