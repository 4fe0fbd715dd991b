/** Which guests are moved, by which engine and policy, how often, and over what link; after `--smoke` and `--only`. */
import { type MigrationSettingsInput, migrationSettings } from '../../lib/index.js';
import type { MigrationPolicyName } from '../../lib/migrate/policies.js';
import type { WantedCases } from '../report.js';
import type { Engine, MoveSettings } from './moving-guest.js';

export type Workload = 'idle' | 'redis' | 'writer' | 'cache';

export interface CasePlan {
  readonly name: string;
  readonly engine: Engine;
  readonly turns: number;
  readonly move: MoveSettings;
}

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
}

/** What an operator allows who has not thought about it: the default of `holdfast migrate`. */
const DOWNTIME_MS = 300;
/**
 * The least of a writer's remainder: in rounds over a link of 400 Mbit/s a random writer at 1.2 times its rate
 * leaves ever less of 64 MiB, but never less than 31 %, 420 ms of it. What a patient operator would allow.
 */
const RELAXED_DOWNTIME_MS = 500;
/** Of QEMU's dirty log: a TCG guest of a rounder size arrives damaged (lib/migrate/qemu-dirty-log.ts). */
const ODD_MB = 8 / 1024;

interface Size extends WorkloadSize {
  readonly turns: number;
  /** Of the writer under `mp` and `auto`: whether they always arrive. */
  readonly trials: number;
  /** When `fixed` has had enough time. */
  readonly fixedMsMax: number;
  readonly workloads: readonly Workload[];
}

const full: Size = {
  ...{ ramMb: 512 + ODD_MB, mbitPerS: 400, pagesPerSecond: 14_650, workingSetPages: 16_384, fileMiB: 256 },
  ...{ turns: 7, trials: 20, fixedMsMax: 20_000 },
  workloads: ['idle', 'redis', 'writer', 'cache'],
};
const smokeSize: Size = {
  ...{ ramMb: 192 + ODD_MB, mbitPerS: 800, pagesPerSecond: 20_000, workingSetPages: 4_096, fileMiB: 16 },
  ...{ turns: 1, trials: 1, fixedMsMax: 2_000 },
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
  readonly downtimeMs?: number;
  readonly timeMaxMs?: number;
  readonly extra?: Partial<MigrationSettingsInput>;
}

const casePlan = (variant: Variant): CasePlan => {
  const { workload, engine, policy, suffix, turns, extra } = variant;
  const { downtimeMs = DOWNTIME_MS, timeMaxMs = MOVE_MS_MAX } = variant;
  return {
    name: [workload, policy, ...(suffix === undefined ? [] : [suffix]), engine].join('-'),
    engine,
    turns,
    move: { policy, downtimeMs, timeMaxMs, roundsMax: 10_000, ...(extra === undefined ? {} : { extra }) },
  };
};

/** Settings of Holdfast's engine alone that not every revision has: their cases are offered where it does. */
const optional = (name: string, variant: Variant): Variant[] =>
  name in migrationSettings.shape ? [{ ...variant, extra: { [name]: true } }] : [];

const variantsOf = ({ turns, trials, fixedMsMax }: Size): Variant[] => {
  const engines = ['holdfast', 'qemu'] as const;
  const both = (variant: Omit<Variant, 'engine'>): Variant[] =>
    engines.map((engine) => ({ ...variant, engine }));
  return [
    ...both({ workload: 'idle', policy: 'fixed', turns }),
    ...optional('resumeEarly', {
      ...{ workload: 'idle', policy: 'fixed', engine: 'holdfast', suffix: 'early', turns },
    }),
    ...(['fixed', 'mp', 'auto'] as const).flatMap((policy) => both({ workload: 'redis', policy, turns })),
    ...both({ workload: 'writer', policy: 'fixed', turns: Math.min(turns, 2), timeMaxMs: fixedMsMax }),
    ...both({
      ...{ workload: 'writer', policy: 'fixed', suffix: 'relaxed', turns },
      downtimeMs: RELAXED_DOWNTIME_MS,
    }),
    ...both({ workload: 'writer', policy: 'mp', turns: trials }),
    ...both({ workload: 'writer', policy: 'auto', turns: trials }),
    { workload: 'cache', policy: 'fixed', engine: 'holdfast', turns },
    ...optional('skipDiskPages', {
      ...{ workload: 'cache', policy: 'fixed', engine: 'holdfast', suffix: 'skip', turns },
    }),
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
