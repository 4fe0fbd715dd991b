/** Which guests are booted, protected how and measured with what, after `--smoke` and `--only`. */
import type { WantedCases } from '../report.js';
import { type Probe, type ProbeSize, probes } from './probes.js';
import { type GuestPlan, guestPlans, type SetUp } from './set-ups.js';

/** A way to protect the guest, or none, with the probes that measure it. */
export interface Measured {
  readonly setUp: SetUp;
  readonly probes: readonly Probe[];
}

export interface TurnPlan {
  readonly guest: GuestPlan;
  readonly unprotected: Measured;
  readonly protections: readonly Measured[];
  readonly size: ProbeSize;
  readonly passes: number;
}

export const caseName = (probe: Probe, setUp: SetUp): string => `${probe.name}-${setUp.name}`;

interface Size {
  readonly probe: ProbeSize;
  readonly passes: number;
}

const full: Size = { probe: { pings: 200, redisWarmUpMs: 1_000, redisMs: 5_000 }, passes: 3 };
const smokeSize: Size = { probe: { pings: 15, redisWarmUpMs: 100, redisMs: 400 }, passes: 1 };

/** One for each guest that is needed. What is measured protected is measured unprotected, too. */
export const turnPlans = (smoke: boolean, wanted: WantedCases): TurnPlan[] => {
  const { probe: size, passes } = smoke ? smokeSize : full;
  const measured = (setUp: SetUp): Measured => ({
    setUp,
    probes: probes.filter((probe) => wanted.wants(caseName(probe, setUp))),
  });
  return guestPlans.flatMap((guest) => {
    const protections = guest.protections
      .filter(({ inSmoke }) => !smoke || inSmoke)
      .map(measured)
      .filter(({ probes }) => probes.length > 0);
    const alone = measured(guest.unprotected);
    const needed = [alone, ...protections].flatMap((each) => each.probes);
    const unprotected = { ...alone, probes: probes.filter((probe) => needed.includes(probe)) };
    return needed.length === 0 ? [] : [{ guest, unprotected, protections, size, passes }];
  });
};
