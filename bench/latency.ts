/**
 * Suite `latency`: what a client of a protected VM waits, and what throughput
 * is left to it; by gate, and with epochs by the clock or by the load.
 *
 *   client ── LAN ── tap ──────────────── guest     unprotected, filter-buffer
 *
 * A 512 MB Linux guest with redis on TCG; client, guest and both roles share this
 * machine, each in a namespace of its own.
 */
import { type Probe, type ProbeSize, probes } from './latency/probes.js';
import { ratiosOf } from './latency/ratios.js';
import { guestPlans, type SetUp } from './latency/set-ups.js';
import { caseName, measureTurns } from './latency/turns.js';
import type { BenchResult, RunSuite } from './report.js';

interface Size {
  readonly probe: ProbeSize;
  readonly passes: number;
  /** The set-ups that a smoke run is content with; undefined: all. */
  readonly protections?: readonly string[];
}

const full: Size = { probe: { pings: 200, redisWarmUpMs: 1_000, redisMs: 5_000 }, passes: 3 };
const smokeSize: Size = {
  probe: { pings: 15, redisWarmUpMs: 100, redisMs: 400 },
  passes: 1,
  protections: ['filter-buffer-25ms', 'relay-adaptive'],
};

export const runLatencySuite: RunSuite = async (smoke, progress, wanted) => {
  const { probe: size, passes, protections: chosen } = smoke ? smokeSize : full;
  const results: BenchResult[] = [];
  for (const guest of guestPlans) {
    const wantedOf = (setUp: SetUp): readonly Probe[] =>
      probes.filter((probe) => wanted.wants(caseName(probe, setUp)));
    const protections = guest.protections
      .filter(({ name }) => chosen?.includes(name) ?? true)
      .map((setUp) => ({ setUp, wanted: wantedOf(setUp) }))
      .filter(({ wanted }) => wanted.length > 0);
    // What is measured protected has to be measured unprotected, too.
    const needed = new Set([...wantedOf(guest.unprotected), ...protections.flatMap(({ wanted }) => wanted)]);
    if (needed.size === 0) continue;
    const probesOf = (setUp: SetUp): readonly Probe[] =>
      protections.find((protection) => protection.setUp === setUp)?.wanted ??
      probes.filter((probe) => needed.has(probe));
    const plan = { guest, protections: protections.map(({ setUp }) => setUp), probesOf, size, passes };
    results.push(...(await measureTurns(plan, progress)));
  }
  return { results, ratios: ratiosOf(results) };
};
