/**
 * Records a trace of a running VM: who ran where, until it is enough.
 *
 *   QMP ─ vCPUs' threads, pauses, memory map
 *   /proc, tracefs ─ cores, tracepoints ──► SchedTrace (native) ──► events ──► histories
 *   run queues, or the agent ────────────► GuestSource ──────────► changes ──► slices
 */
import { setTimeout as delay } from 'node:timers/promises';
import { native } from '../native.js';
import { QmpClient } from '../qmp/client.js';
import type { GuestSymbols } from './binding.js';
import type { ThreadIdentity, TraceDocument } from './document.js';
import { AGENT_RATE_PER_S, openGuestAgent } from './guest-agent-source.js';
import { openRunQueues, RUN_QUEUE_RATE_PER_S } from './guest-run-queues.js';
import type { GuestSource } from './guest-source.js';
import { marksOfVmEvents, type VmEvent } from './marks.js';
import { decodeSchedEvents } from './sched-events.js';
import { monotonicNs, type SchedRecording, startSchedRecording } from './sched-recording.js';
import { type ThreadHistory, threadHistories } from './thread-history.js';
import {
  otherThreads,
  sharedThreadNotes,
  type ThreadTimes,
  threadName,
  threadTimes,
  vcpuThreads,
} from './threads.js';

/** 48 MB in the addon; an hour of a vCPU that is switched five hundred times a second. */
const EVENTS_MAX_DEFAULT = 2_000_000;
/** STOP, RESUME and MIGRATION events that are kept; a VM under checkpoints has some fifty pairs a second. */
const VM_EVENTS_MAX = 100_000;
/** How often the limits are looked at. */
const LOOK_MS = 250;

export interface TraceOptions {
  /** QMP socket of the VM; no other client may hold it. */
  readonly qmp: string;
  /** Default: until `signal`, or until a limit is reached. */
  readonly seconds?: number | undefined;
  /** Ends the recording; what there is, is returned. */
  readonly signal?: AbortSignal | undefined;
  /** QEMU's other threads as well: its main loop, its workers. */
  readonly allThreads?: boolean | undefined;
  /**
   * The guest's processes, too: out of its RAM by its kernel's symbols (parseGuestSymbols), by default 1,000
   * looks a second, or by the agent at a socket, by default 5.
   */
  readonly guest?:
    | { readonly symbols: GuestSymbols; readonly ratePerS?: number | undefined }
    | { readonly agent: string; readonly ratePerS?: number | undefined }
    | undefined;
  /** Kernel's buffer of each core, bytes: a power of two (default 1 MiB). */
  readonly ringBytes?: number | undefined;
  /** Events after which it ends (default 2,000,000). */
  readonly eventsMax?: number | undefined;
  /** Recording has begun. */
  readonly onRecording?: ((threads: readonly ThreadIdentity[]) => void) | undefined;
}

/**
 * @throws UnsupportedHostError where the host does not let us trace; QmpConnectionError, also where no
 * agent answers; UnsupportedVmError and ConfigError for a guest whose processes cannot be found
 */
export const recordTrace = async (options: TraceOptions): Promise<TraceDocument> => {
  await using qmp = await QmpClient.connect(options.qmp, { signal: options.signal });
  const pid = native.peerPid(qmp.socketFd);
  const [name, status, cpus] = await Promise.all(
    qmp.pipeline([{ execute: 'query-name' }, { execute: 'query-status' }, { execute: 'query-cpus-fast' }]),
  );
  const vcpus = vcpuThreads(cpus);
  const threads = options.allThreads === true ? [...vcpus, ...(await otherThreads(pid, vcpus))] : vcpus;
  const guest =
    options.guest === undefined ? undefined : await openGuest(qmp, pid, cpus.length, options.guest);
  await guest?.start();
  const recording = await startSchedRecording({
    native,
    threads: threads.map(({ tid }) => tid),
    ringBytes: options.ringBytes,
    eventsMax: options.eventsMax ?? EVENTS_MAX_DEFAULT,
    keepLatest: false,
  }).catch(async (error: unknown) => {
    await guest?.stop();
    throw error;
  });
  const watch = watchVm(qmp, recording.originMs);
  const before = await Promise.all(threads.map(({ tid }) => threadTimes(pid, tid)));
  options.onRecording?.(threads);
  const ending = await untilEnough(qmp, recording, options);
  const after = await Promise.all(threads.map(({ tid }) => threadTimes(pid, tid)));
  const durationUs = (monotonicNs() - recording.originNs) / 1e3;
  watch.end();
  await Promise.all([recording.trace.close(), guest?.stop()]);
  const histories = threadHistories(
    eventsOf(recording, durationUs),
    threads.map(({ tid }, index) => ({ tid, ranOn: ranOn(before[index], after[index]) })),
    durationUs,
  );
  return {
    title: name.name === undefined || name.name === '' ? `process ${pid}` : name.name,
    pid,
    beganAt: new Date(recording.originMs).toISOString(),
    durationUs,
    coveredUs: durationUs,
    cores: recording.cores,
    threads: threads.map((thread, index) => ({ ...thread, ...histories[index]! })),
    marks: marksOfVmEvents(watch.events, !status.running, durationUs),
    guest: guest?.record(recording.originNs, durationUs),
    recorded: recording.trace.stats(),
    threadNames: await namesOf(histories),
    notes: [...sharedThreadNotes(threads), ...ending],
  };
};

const eventsOf = ({ trace, originNs }: SchedRecording, durationUs: number) =>
  decodeSchedEvents(trace.take(), originNs).filter(({ atUs }) => atUs >= 0 && atUs <= durationUs);

/** A thread that never left its core makes no events; its CPU time tells that it ran. */
const ranOn = (before: ThreadTimes | undefined, after: ThreadTimes | undefined): number | undefined =>
  before !== undefined && after !== undefined && after.ranNs > before.ranNs ? after.core : undefined;

/** Waits for the end, and says what a reader should know of it. */
const untilEnough = async (
  qmp: QmpClient,
  { trace }: SchedRecording,
  { seconds, signal }: TraceOptions,
): Promise<string[]> => {
  const enough = new AbortController();
  const end = (): void => enough.abort();
  signal?.addEventListener('abort', end);
  let note: string | undefined;
  void qmp.closed.then(() => {
    note ??= 'the VM ended, or its monitor did: the trace ends there';
    end();
  });
  const timer = setInterval(() => {
    if (!trace.stats().full) return;
    note ??= 'the trace ended early: it has as many events as it may';
    end();
  }, LOOK_MS);
  try {
    if (signal?.aborted !== true) {
      // Node's timers end at 24 days; who wants more says nothing and presses Ctrl-C.
      await delay((seconds ?? 2 ** 21) * 1_000, undefined, { signal: enough.signal }).catch(() => {});
    }
    return note === undefined ? [] : [note];
  } finally {
    clearInterval(timer);
    signal?.removeEventListener('abort', end);
  }
};

interface VmWatch {
  readonly events: readonly VmEvent[];
  end(): void;
}

/** QEMU stamps its events by the wall clock, in microseconds. */
const watchVm = (qmp: QmpClient, originMs: number): VmWatch => {
  const events: VmEvent[] = [];
  const ends = (['STOP', 'RESUME', 'MIGRATION'] as const).map((name) =>
    qmp.on(name, ({ timestamp, data }) => {
      if (events.length >= VM_EVENTS_MAX) return;
      const atUs = (timestamp.seconds - originMs / 1e3) * 1e6 + timestamp.microseconds;
      const status = (data as { readonly status?: string } | undefined)?.status;
      events.push({ name, atUs: Math.max(0, atUs), status });
    }),
  );
  return {
    events,
    end: () => {
      for (const end of ends) end();
    },
  };
};

const openGuest = async (
  qmp: QmpClient,
  pid: number,
  vcpus: number,
  guest: NonNullable<TraceOptions['guest']>,
): Promise<GuestSource> =>
  'symbols' in guest
    ? await openRunQueues({
        ...{ native, qmp, pid, vcpus, symbols: guest.symbols },
        ratePerS: guest.ratePerS ?? RUN_QUEUE_RATE_PER_S,
      })
    : openGuestAgent({ path: guest.agent, vcpus, ratePerS: guest.ratePerS ?? AGENT_RATE_PER_S });

/** Of those who pushed a thread off its core; who has ended by now keeps only its number. */
export const namesOf = async (histories: readonly ThreadHistory[]): Promise<Map<number, string>> => {
  const tids = new Set(
    histories.flatMap(({ waits }) =>
      waits.flatMap(({ pushedOffBy }) => (pushedOffBy === undefined ? [] : [pushedOffBy])),
    ),
  );
  const names = await Promise.all([...tids].map(async (tid) => [tid, await threadName(tid)] as const));
  return new Map(names.flatMap(([tid, name]) => (name === undefined ? [] : [[tid, name] as const])));
};
