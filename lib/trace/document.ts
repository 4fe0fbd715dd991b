/** A whole trace, as it is summarised and written. */
import type { SchedTraceStats } from './binding.js';
import type { GuestSlice } from './guest-slices.js';
import type { TraceMark } from './marks.js';
import type { ThreadHistory } from './thread-history.js';

/** A thread of QEMU. */
export interface ThreadIdentity {
  readonly tid: number;
  /** `vCPU 0`; of QEMU's other threads their names. */
  readonly label: string;
  /** All vCPUs share one thread under TCG with thread=single; none: another of QEMU's threads. */
  readonly vcpus: readonly number[];
}

export interface GuestRecord {
  readonly source: 'run queues' | 'guest agent';
  /** Linux version …, as the guest's kernel introduces itself. */
  readonly kernel: string;
  readonly intervalUs: number;
  readonly looks: number;
  readonly late: number;
  readonly unread: number;
  readonly discarded: number;
  readonly slices: readonly GuestSlice[];
}

export interface TraceDocument {
  /** What is traced, for people: the VM's name, or its process. */
  readonly title: string;
  readonly pid: number;
  /** ISO 8601, of the moment that is 0 in all times. */
  readonly beganAt: string;
  readonly durationUs: number;
  /** Of it, what was recorded and kept. */
  readonly coveredUs: number;
  readonly cores: readonly number[];
  readonly threads: readonly (ThreadIdentity & ThreadHistory)[];
  readonly marks: readonly TraceMark[];
  readonly guest?: GuestRecord | undefined;
  readonly recorded: Pick<SchedTraceStats, 'events' | 'lost' | 'discarded' | 'wakeups'>;
  /** Names of threads that pushed a vCPU off its core, as far as they still live at the end. */
  readonly threadNames: ReadonlyMap<number, string>;
  /** What a reader must know of this trace. */
  readonly notes: readonly string[];
}

/** For people; by its number if it had ended before its name was read. */
export const threadNameOf = (names: TraceDocument['threadNames'], tid: number): string =>
  names.get(tid) ?? `thread ${tid}`;
