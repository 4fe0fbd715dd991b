/**
 * Ways to protect the same VM: which gate holds its output, and what begins an
 * epoch. The gate decides how the VM is attached to the network, so each has a
 * guest of its own, which is also measured unprotected.
 */
import type { PrimaryOptions } from '../../lib/index.js';
import type { Lab } from '../../test/lab/lab.js';
import { type BenchGuest, startGuest, startRelayedGuest } from '../pair.js';
import type { BenchResult } from '../report.js';

type Settings = Partial<Omit<PrimaryOptions, 'key' | 'signal' | 'logger'>>;

export interface SetUp {
  readonly name: string;
  readonly params: BenchResult['params'];
  /** Undefined: unprotected. */
  readonly settings: Settings | undefined;
  readonly inSmoke: boolean;
}

/** A guest, and the ways to protect it. */
export interface GuestPlan {
  readonly name: string;
  readonly unprotected: SetUp;
  readonly protections: readonly SetUp[];
  start(lab: Lab): Promise<BenchGuest>;
}

const unprotected = (network: string): SetUp => ({
  name: `${network}-unprotected`,
  params: { gate: 'none', epochsBegin: 'never' },
  settings: undefined,
  inSmoke: true,
});

/** An epoch every so many milliseconds, whatever the guest does. */
const everyMs = (gate: NonNullable<PrimaryOptions['gate']>, intervalMs: number): SetUp => ({
  name: `${gate}-${intervalMs}ms`,
  params: { gate, epochsBegin: 'by the clock', intervalMs },
  settings: { gate, intervalMs },
  inSmoke: gate === 'filter-buffer' && intervalMs === 25,
});

/** The defaults, said out loud: the report shall show them. */
const BUDGETS = { minIntervalMs: 2, maxIntervalMs: 100, delayBudgetMs: 10 } as const;

/** When output waits, within the budgets. */
const byLoad = (gate: NonNullable<PrimaryOptions['gate']>): SetUp => ({
  name: `${gate}-adaptive`,
  params: { gate, epochsBegin: 'by the load', ...BUDGETS },
  settings: { gate, ...BUDGETS },
  inSmoke: true,
});

export const INTERVALS_MS = [10, 25] as const;

const tap: GuestPlan = {
  name: 'tap',
  unprotected: unprotected('tap'),
  protections: INTERVALS_MS.map((intervalMs) => everyMs('filter-buffer', intervalMs)),
  start: (lab) => startGuest(lab, { workload: 'redis' }),
};

/** Launched as `holdfast primary -- qemu…` does; unprotected, its frames pass through the relay, too. */
const relay: GuestPlan = {
  name: 'relay',
  unprotected: unprotected('relay'),
  protections: [...INTERVALS_MS.map((intervalMs) => everyMs('relay', intervalMs)), byLoad('relay')],
  start: (lab) => startRelayedGuest(lab, { workload: 'redis' }),
};

export const guestPlans: readonly GuestPlan[] = [tap, relay];
