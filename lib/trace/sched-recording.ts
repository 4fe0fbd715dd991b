/** Recording the scheduler's events of some threads: opened with what the host has, or refused with the cure. */
import { readlink } from 'node:fs/promises';
import { type HoldfastError, toHoldfastError, UnsupportedHostError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import type { SchedTrace } from './binding.js';
import { onlineCores } from './threads.js';
import { readTracepoints } from './tracefs.js';

/** A busy core switches some thousand times a second, and an event takes a hundred bytes: seconds of it. */
export const RING_BYTES_DEFAULT = 1 << 20;

export type TraceNative = Pick<NativeBinding, 'SchedTrace' | 'readTracefs'>;

export interface SchedRecordingOptions {
  readonly native: TraceNative;
  readonly threads: readonly number[];
  readonly ringBytes?: number | undefined;
  readonly eventsMax: number;
  readonly keepLatest: boolean;
}

export interface SchedRecording {
  readonly trace: SchedTrace;
  readonly cores: readonly number[];
  /** From here on nothing is left out; nanoseconds on CLOCK_MONOTONIC. */
  readonly originNs: number;
  /** The same moment by the wall clock, milliseconds since 1970. */
  readonly originMs: number;
}

/** @throws UnsupportedHostError */
export const startSchedRecording = async (options: SchedRecordingOptions): Promise<SchedRecording> => {
  const { native, threads, ringBytes = RING_BYTES_DEFAULT, eventsMax, keepLatest } = options;
  await assertHostPids();
  const [tracepoints, cores] = await Promise.all([readTracepoints(native), onlineCores()]);
  const trace = new native.SchedTrace({ threads, cores, tracepoints, ringBytes, eventsMax, keepLatest });
  try {
    await trace.start();
  } catch (error) {
    throw refusal(error);
  }
  return { trace, cores, originNs: monotonicNs(), originMs: wallMs() };
};

/** PROC_PID_INIT_INO of the kernel: the inode of the first PID namespace. */
const HOST_PID_NAMESPACE = 'pid:[4026531836]';

/** The kernel's events name threads by the host's numbers: in a namespace ours are others. */
const assertHostPids = async (): Promise<void> => {
  if ((await readlink('/proc/self/ns/pid').catch(() => HOST_PID_NAMESPACE)) === HOST_PID_NAMESPACE) return;
  throw new UnsupportedHostError(
    'this process is in a PID namespace of its own: threads have other numbers here',
    {
      cure: "Run it on the host, or in a container that shares the host's process ids (--pid=host).",
    },
  );
};

const refusal = (error: unknown): HoldfastError => {
  const failure = toHoldfastError(error);
  if (!(failure instanceof UnsupportedHostError)) return failure;
  return new UnsupportedHostError(failure.message, {
    cause: error,
    cure:
      'Run as root, or with CAP_PERFMON and kernel.perf_event_paranoid=-1; in a container, see that no ' +
      'seccomp profile forbids perf_event_open.',
    details: failure.details,
  });
};

/** CLOCK_MONOTONIC, the clock of performance.now() as well. */
export const monotonicNs = (): number => Number(process.hrtime.bigint());

/** As Date.now(), but with microseconds. */
const wallMs = (): number => performance.timeOrigin + performance.now();

/** Tries all of it on this process, and leaves nothing behind. @throws UnsupportedHostError */
export const probeSchedRecording = async (native: TraceNative): Promise<void> => {
  const { trace } = await startSchedRecording({
    ...{ native, threads: [process.pid], ringBytes: 4096, eventsMax: 1, keepLatest: false },
  });
  await trace.close();
};
