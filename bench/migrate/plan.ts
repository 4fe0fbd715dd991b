/** Which guests are moved, by which engine and policy, how often, and over what link; after `--smoke` and `--only`. */
import type { MigrationSettingsInput } from '../../lib/index.js';
import type { MigrationPolicyName } from '../../lib/migrate/policies.js';
import type { WantedCases } from '../report.js';
import type { Engine, MoveSettings } from './moving-guest.js';

export type Workload = 'idle' | 'redis' | 'writer' | 'cache';

export interface CasePlan {
  readonly name: string;
  readonly engine: Engine;
  readonly turns: number;
  readonly move: MoveSettings;
  /** The downtime it is allowed is RELAXED times what the rounds of this case had come down to, once that is known. */
  readonly relaxes?: string;
}

/** A little more than what a writer's rounds come down to: `fixed` gets there, and no sooner than it must. */
export const RELAXED = 1.1;

/** The cases of one guest, which takes them in turns. */
export interface WorkloadPlan {
  readonly workload: Workload;
  readonly size: WorkloadSize;
  readonly cases: readonly CasePlan[];
}

/** memwriter's, random order; and of the file that the guest of `cache` reads. */
export interface WorkloadSize {
  readonly ramMb: number;
  /** Of the link, both ways; undefined: as fast as the veth and the cores. */
  readonly mbitPerS: number | undefined;
  readonly pagesPerSecond: number;
  readonly workingSetPages: number;
  readonly fileMiB: number;
  /** Between moves: a VM that has just arrived has no translated code, and writes less until it has. */
  readonly settleMs: number;
}

/** Of QEMU's dirty log: a TCG guest of a rounder size arrives damaged (lib/migrate/qemu-dirty-log.ts). */
const ODD_MB = 8 / 1024;

interface Size extends WorkloadSize {
  readonly downtimeMs: number;
  /** Where it is not measured by `fixed` in the same run. */
  readonly relaxedDowntimeMs: number;
  readonly turns: number;
  /** Of the writer under `mp` and `auto`: whether they always arrive. */
  readonly trials: number;
  /** When `fixed` has had enough time. */
  readonly fixedMsMax: number;
  readonly workloads: readonly Workload[];
}

/**
 * The link carries some 48 MB/s of pages, 11,700 a second, and so the working set in 2.8 s. A random writer at r times
 * that leaves ever less of its set in each round, but in the long run x of it, which takes x times 2.8 s of the link:
 *
 *   QEMU's engine      x = 1 - exp(-r x)    each page of a round is sent, also one that has been written again
 *   Holdfast's         x = 1 - 1/r          such pages are left to the next round
 *
 * `fixed` is to fail by either, and not by luck: rounds vary by a tenth and more, so x times 2.8 s has to be well
 * above the downtime, which is the default of `holdfast migrate`, 0.3 s. At r = 1.25 it is 1.04 and 0.56 s. The nearer
 * r is to 1, the slower rounds come down to that (the rest shrinks by some 1/r a round), as they do where a relaxed
 * downtime costs `fixed` many of them.
 */
const full: Size = {
  ...{ ramMb: 512 + ODD_MB, mbitPerS: 400, pagesPerSecond: 14_600, workingSetPages: 32_768, fileMiB: 256 },
  settleMs: 1_500,
  ...{ downtimeMs: 300, relaxedDowntimeMs: 1_200 },
  ...{ turns: 7, trials: 20, fixedMsMax: 20_000 },
  workloads: ['idle', 'redis', 'writer', 'cache'],
};
const smokeSize: Size = {
  ...{ ramMb: 192 + ODD_MB, mbitPerS: 400, pagesPerSecond: 20_000, workingSetPages: 4_096, fileMiB: 16 },
  settleMs: 300,
  ...{ downtimeMs: 30, relaxedDowntimeMs: 250 },
  ...{ turns: 1, trials: 1, fixedMsMax: 4_000 },
  workloads: ['idle', 'writer'],
};
const MOVE_MS_MAX = 120_000;

interface Variant {
  readonly workload: Workload;
  readonly engine: Engine;
  readonly policy: MigrationPolicyName;
  /** Last part of the name. */
  readonly suffix?: string;
  readonly turns: number;
  readonly downtimeMs: number;
  readonly timeMaxMs?: number;
  readonly extra?: Partial<MigrationSettingsInput>;
}

const casePlan = (variant: Variant): CasePlan => {
  const { workload, engine, policy, suffix, turns, extra } = variant;
  const { downtimeMs, timeMaxMs = MOVE_MS_MAX } = variant;
  return {
    name: [workload, policy, ...(suffix === undefined ? [] : [suffix]), engine].join('-'),
    ...(suffix === 'relaxed' ? { relaxes: [workload, policy, engine].join('-') } : {}),
    engine,
    turns,
    move: { policy, downtimeMs, timeMaxMs, roundsMax: 10_000, ...(extra === undefined ? {} : { extra }) },
  };
};

const variantsOf = ({ turns, trials, fixedMsMax, downtimeMs, relaxedDowntimeMs }: Size): Variant[] => {
  const engines = ['holdfast', 'qemu'] as const;
  const both = (variant: Omit<Variant, 'engine'>): Variant[] =>
    engines.map((engine) => ({ ...variant, engine }));
  const asked = { downtimeMs, turns };
  return [
    ...both({ workload: 'idle', policy: 'fixed', ...asked }),
    {
      ...{ workload: 'idle', policy: 'fixed', engine: 'holdfast', suffix: 'early', ...asked },
      extra: { resumeEarly: 'now' },
    },
    ...(['fixed', 'mp', 'auto'] as const).flatMap((policy) => both({ workload: 'redis', policy, ...asked })),
    ...both({
      ...{ workload: 'writer', policy: 'fixed', downtimeMs },
      ...{ turns: Math.min(turns, 2), timeMaxMs: fixedMsMax },
    }),
    ...both({
      ...{ workload: 'writer', policy: 'fixed', suffix: 'relaxed', downtimeMs: relaxedDowntimeMs, turns },
    }),
    ...both({ workload: 'writer', policy: 'mp', downtimeMs, turns: trials }),
    ...both({ workload: 'writer', policy: 'auto', downtimeMs, turns: trials }),
    { workload: 'cache', policy: 'fixed', engine: 'holdfast', ...asked },
    {
      ...{ workload: 'cache', policy: 'fixed', engine: 'holdfast', suffix: 'skip', ...asked },
      extra: { skipDiskPages: true },
    },
  ];
};

/** Links are limited where the point is that they are slower than the guest, or than its memory is large. */
const isLimited = (workload: Workload): boolean => workload === 'writer' || workload === 'cache';

export const migratePlan = (smoke: boolean, wanted: WantedCases): WorkloadPlan[] => {
  const { workloads, ...size } = smoke ? smokeSize : full;
  const wantedCases = variantsOf({ workloads, ...size })
    .filter(({ workload }) => workloads.includes(workload))
    .map((variant) => ({ workload: variant.workload, plan: casePlan(variant) }))
    .filter(({ plan }) => wanted.wants(plan.name));
  return workloads
    .map((workload) => ({
      workload,
      size: { ...size, mbitPerS: isLimited(workload) ? size.mbitPerS : undefined },
      cases: wantedCases.filter((each) => each.workload === workload).map(({ plan }) => plan),
    }))
    .filter(({ cases }) => cases.length > 0);
};
