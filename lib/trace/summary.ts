/** A trace in figures. Pure. */
import { percentile } from '../stats.js';
import { type ThreadIdentity, type TraceDocument, threadNameOf } from './document.js';
import { mapProcesses } from './process-mapping.js';
import type { ThreadHistory } from './thread-history.js';

export interface ThreadSummary {
  readonly tid: number;
  readonly label: string;
  readonly vcpus: readonly number[];
  /** Of the trace's time, on any core. */
  readonly ranShare: number;
  /** Core to its share of the time that the thread ran. */
  readonly coreShares: Readonly<Record<string, number>>;
  readonly migrations: number;
  /** From the migration to running on the new core. */
  readonly migrationMs: { readonly p50: number; readonly max: number } | undefined;
  /** Runnable, and on no core. */
  readonly waitedMs: number;
  readonly waits: number;
  readonly longestWait:
    | { readonly ms: number; readonly atMs: number; readonly pushedOffBy: string | undefined }
    | undefined;
  readonly gaps: number;
}

export interface ProcessSummary {
  readonly pid: number;
  readonly name: string;
  /** Of the trace's time, on any vCPU. */
  readonly onVcpuShare: number;
  /** Of the trace's time, on any core: less, where its vCPUs wait for cores. */
  readonly onCoreShare: number;
  /** Of its time on vCPUs, and on cores. */
  readonly vcpuShares: Readonly<Record<string, number>>;
  readonly coreShares: Readonly<Record<string, number>>;
}

export interface TraceSummary {
  readonly title: string;
  readonly durationMs: number;
  readonly threads: readonly ThreadSummary[];
  readonly pauses: { readonly count: number; readonly ms: number; readonly maxMs: number };
  readonly events: {
    readonly recorded: number;
    /** Missing here: found the kernel's buffer full, or were over the limit. */
    readonly lost: number;
    readonly discarded: number;
  };
  readonly guest?: {
    readonly source: 'run queues' | 'guest agent';
    readonly kernel: string;
    /** What is shorter may not have been seen; each change is at most so late. */
    readonly samplingErrorMs: number;
    readonly looks: number;
    readonly late: number;
    readonly processes: readonly ProcessSummary[];
  };
  readonly notes: readonly string[];
}

export const summarize = (trace: TraceDocument): TraceSummary => {
  const pausesUs = trace.marks
    .filter(({ kind }) => kind === 'paused')
    .map(({ fromUs, toUs }) => toUs - fromUs);
  const { events: recorded, lost, discarded } = trace.recorded;
  return {
    title: trace.title,
    durationMs: trace.durationUs / 1e3,
    threads: trace.threads.map((thread) => summarizeThread(thread, trace)),
    pauses: {
      count: pausesUs.length,
      ms: sum(pausesUs) / 1e3,
      maxMs: largest(pausesUs) / 1e3,
    },
    events: { recorded, lost, discarded },
    ...(trace.guest === undefined
      ? {}
      : {
          guest: {
            source: trace.guest.source,
            kernel: trace.guest.kernel,
            samplingErrorMs: trace.guest.intervalUs / 1e3,
            looks: trace.guest.looks,
            late: trace.guest.late,
            processes: summarizeProcesses(trace),
          },
        }),
    notes: trace.notes,
  };
};

const summarizeThread = (
  { tid, label, vcpus, slices, waits, migrations, gaps }: ThreadIdentity & ThreadHistory,
  { coveredUs, threadNames }: TraceDocument,
): ThreadSummary => {
  const coreUs = new Map<number, number>();
  for (const { core, fromUs, toUs } of slices) coreUs.set(core, (coreUs.get(core) ?? 0) + toUs - fromUs);
  const ranAfterMs = migrations.flatMap(({ ranAfterUs }) =>
    ranAfterUs === undefined ? [] : [ranAfterUs / 1e3],
  );
  const longest = waits.reduce<(typeof waits)[number] | undefined>(
    (best, wait) => (best === undefined || lengthOf(wait) > lengthOf(best) ? wait : best),
    undefined,
  );
  return {
    tid,
    label,
    vcpus,
    ranShare: share(sum([...coreUs.values()]), coveredUs),
    coreShares: shares(coreUs),
    migrations: migrations.length,
    migrationMs:
      ranAfterMs.length === 0 ? undefined : { p50: percentile(ranAfterMs, 50), max: largest(ranAfterMs) },
    waitedMs: sum(waits.map(lengthOf)) / 1e3,
    waits: waits.length,
    longestWait:
      longest === undefined
        ? undefined
        : {
            ms: lengthOf(longest) / 1e3,
            atMs: longest.fromUs / 1e3,
            pushedOffBy:
              longest.pushedOffBy === undefined ? undefined : threadNameOf(threadNames, longest.pushedOffBy),
          },
    gaps,
  };
};

const summarizeProcesses = ({ guest, threads, coveredUs }: TraceDocument): ProcessSummary[] => {
  const slicesOf = new Map(
    threads.flatMap(({ vcpus, slices }) => vcpus.map((vcpu) => [vcpu, slices] as const)),
  );
  return mapProcesses(guest?.slices ?? [], slicesOf).map((process) => ({
    pid: process.pid,
    name: process.name,
    onVcpuShare: share(process.onVcpuUs, coveredUs),
    onCoreShare: share(process.onCoreUs, coveredUs),
    vcpuShares: shares(process.vcpuUs),
    coreShares: shares(process.coreUs),
  }));
};

const lengthOf = ({ fromUs, toUs }: { readonly fromUs: number; readonly toUs: number }): number =>
  toUs - fromUs;

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** 0 of none; a trace may hold more values than a call takes arguments. */
const largest = (values: readonly number[]): number =>
  values.reduce((most, value) => Math.max(most, value), 0);

const share = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);

const shares = (parts: ReadonlyMap<number, number>): Record<string, number> => {
  const whole = sum([...parts.values()]);
  return Object.fromEntries(
    [...parts].sort(([a], [b]) => a - b).map(([key, part]) => [String(key), share(part, whole)]),
  );
};
