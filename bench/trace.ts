/**
 * Suite `trace`: what tracing takes from the guest, measured as Zhang, Bai and Wei did for their engine on Xen:
 * the same workload with and without. A guest with two vCPUs, and its work in windows that take turns:
 * untraced, traced, and traced with the guest's processes. Each traced window is compared with the untraced
 * ones on both sides of it, so that a busy machine weighs on all alike.
 */
import { percentile } from '../lib/stats.js';
import type { TraceDocument } from '../lib/trace/document.js';
import { parseGuestSymbols, symbolsCommand } from '../lib/trace/guest-symbols.js';
import { recordTrace, type TraceOptions } from '../lib/trace/record.js';
import { guestOutput } from '../test/lab/guest-shell.js';
import { Lab } from '../test/lab/lab.js';
import { measureRates, startComputing, startRedisLoad, type WorkMeter } from './epoch/work.js';
import { type RunningGuest, startGuest } from './pair.js';
import { type BenchResult, metricOf, type Progress, type RunSuite } from './report.js';

interface Size {
  readonly turns: number;
  readonly windowMs: number;
}

const full: Size = { turns: 20, windowMs: 2_000 };
const smokeSize: Size = { turns: 1, windowMs: 200 };

const GUEST_RATE_PER_S = 1_000;
const REDIS_CONNECTIONS = 16;
const WARM_UP_MS = 1_000;

const workloads = {
  cpu: (lab: Lab, guest: RunningGuest) =>
    startComputing(lab, guest.ramPath, { pagesPerSecond: 500, workingSetPages: 1_024 }),
  redis: (lab: Lab) => startRedisLoad(lab, REDIS_CONNECTIONS),
} as const;

type GuestTracing = NonNullable<TraceOptions['guest']>;

/** The rate of the guest's work in one window, while it is traced. */
const tracedRate = async (
  meter: WorkMeter,
  guest: RunningGuest,
  windowMs: number,
  processes: GuestTracing | undefined,
): Promise<{ readonly perS: number; readonly trace: TraceDocument }> => {
  const end = new AbortController();
  let begun = (): void => {};
  const recording = new Promise<void>((resolve) => {
    begun = resolve;
  });
  const ended = recordTrace({ qmp: guest.qmpPath, signal: end.signal, guest: processes, onRecording: begun });
  await Promise.race([recording, ended]);
  const [perS = Number.NaN] = await measureRates(meter, 1, windowMs);
  end.abort();
  return { perS, trace: await ended };
};

const measureWorkload = async (
  name: keyof typeof workloads,
  {
    lab,
    guest,
    processes,
  }: { readonly lab: Lab; readonly guest: RunningGuest; readonly processes: GuestTracing },
  { turns, windowMs }: Size,
  progress: Progress,
): Promise<BenchResult> => {
  const meter = await workloads[name](lab, guest);
  await measureRates(meter, 1, WARM_UP_MS);
  const untraced: number[] = [];
  const shares: { readonly host: number[]; readonly guest: number[] } = { host: [], guest: [] };
  const traces: TraceDocument[] = [];
  const untracedRate = async (): Promise<number> => {
    const [perS = Number.NaN] = await measureRates(meter, 1, windowMs);
    untraced.push(perS);
    return perS;
  };
  let before = await untracedRate();
  for (let turn = 1; turn <= turns; turn += 1) {
    progress(`trace-${name}: turn ${turn} of ${turns}`);
    for (const kind of ['host', 'guest'] as const) {
      const { perS, trace } = await tracedRate(
        meter,
        guest,
        windowMs,
        kind === 'guest' ? processes : undefined,
      );
      const after = await untracedRate();
      shares[kind].push(perS / ((before + after) / 2));
      traces.push(trace);
      before = after;
    }
  }
  await meter.stop();
  const overhead = (share: number): number => (1 - share) * 100;
  const perS = traces.map(({ recorded, durationUs }) => recorded.events / (durationUs / 1e6));
  return {
    name: `trace-${name}`,
    params: { workload: name, vcpus: 2, guestRatePerS: GUEST_RATE_PER_S },
    metrics: {
      turns,
      workUntracedPerSP50: percentile(untraced, 50),
      overheadPercentP50: overhead(percentile(shares.host, 50)),
      overheadWithGuestPercentP50: overhead(percentile(shares.guest, 50)),
      eventsPerSP50: percentile(perS, 50),
      lostEvents: traces.reduce((sum, { recorded }) => sum + recorded.lost, 0),
      lateLooks: traces.reduce((sum, { guest: record }) => sum + (record?.late ?? 0), 0),
    },
  };
};

export const runTraceSuite: RunSuite = async (smoke, progress, wanted) => {
  const names = (['cpu', 'redis'] as const).filter((name) => wanted.wants(`trace-${name}`));
  if (names.length === 0) return { results: [], ratios: {} };
  progress('trace: booting the guest');
  await using lab = await Lab.create({ tag: 'bench' });
  const guest = await startGuest(lab, { workload: 'redis', vcpus: 2 });
  const symbols = parseGuestSymbols(await guestOutput(lab.client, symbolsCommand));
  const processes = { symbols, ratePerS: GUEST_RATE_PER_S };
  const results: BenchResult[] = [];
  for (const name of names) {
    results.push(await measureWorkload(name, { lab, guest, processes }, smoke ? smokeSize : full, progress));
  }
  return { results, ratios: ratiosOf(results) };
};

const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number => metricOf(results, name, key);
  return {
    traceOverheadPercentCpu: metric('trace-cpu', 'overheadPercentP50'),
    traceOverheadPercentRedis: metric('trace-redis', 'overheadPercentP50'),
    traceGuestOverheadPercentCpu: metric('trace-cpu', 'overheadWithGuestPercentP50'),
    traceGuestOverheadPercentRedis: metric('trace-redis', 'overheadWithGuestPercentP50'),
  };
};
