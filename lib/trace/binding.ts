/** The addon's part of tracing, typed; errors are as in lib/native.ts. */

/** Where the fields of the scheduler's tracepoints lie in an event; tracefs.ts reads it from the kernel. */
export interface Tracepoints {
  readonly switch: {
    readonly id: number;
    readonly prevPid: number;
    readonly prevState: number;
    readonly nextPid: number;
  };
  readonly migrate: {
    readonly id: number;
    readonly pid: number;
    readonly origCpu: number;
    readonly destCpu: number;
  };
  readonly wakeup: { readonly id: number; readonly pid: number; readonly targetCpu: number };
}

export interface SchedTraceOptions {
  /** Thread ids; events of others are not recorded. */
  readonly threads: readonly number[];
  readonly cores: readonly number[];
  readonly tracepoints: Tracepoints;
  /** The kernel's ring of each core: a power of two, at least 4096. */
  readonly ringBytes: number;
  /** Events that are kept until take(). */
  readonly eventsMax: number;
  /** At that limit: true drops the oldest, false the newest. */
  readonly keepLatest: boolean;
}

export interface SchedTraceStats {
  /** Read from the rings so far; take() reads what is in them. */
  readonly events: number;
  /** Found a ring full: the kernel's count. */
  readonly lost: number;
  /** Found `eventsMax` kept already, or were pushed out. */
  readonly discarded: number;
  /** Of the recording thread: it sleeps until a ring is half full. */
  readonly wakeups: number;
  readonly full: boolean;
}

/** Scheduler events of some threads (native/trace/sched_recorder.h). */
export interface SchedTrace {
  /** Rejects with HOLDFAST_E_UNSUPPORTED where perf events are not allowed. */
  start(): Promise<void>;
  /** All since the last call, by time, in the layout of sched-events.ts; empty before start(). */
  take(): Buffer;
  stats(): SchedTraceStats;
  /** Recording ends; take() gives what is left. Idempotent. */
  close(): Promise<void>;
}

/** Guest-physical addresses that are RAM, and where they lie in it. */
export interface PhysicalRange {
  readonly start: number;
  readonly bytes: number;
  /** Offset in the VM's RAM. */
  readonly ramOffset: number;
}

/** Addresses in the guest's kernel, as its /proc/kallsyms has them. */
export interface GuestSymbols {
  readonly _text: bigint;
  readonly linux_banner: bigint;
  readonly __per_cpu_offset: bigint;
  readonly runqueues: bigint;
  readonly __start_BTF: bigint;
  readonly __stop_BTF: bigint;
  readonly page_offset_base?: bigint | undefined;
}

export interface GuestTraceOptions {
  /** Process id of QEMU. */
  readonly pid: number;
  /** The mapping of the guest's RAM. */
  readonly ram: { readonly hostAddress: bigint; readonly sizeBytes: number; readonly fileOffset: number };
  readonly ranges: readonly PhysicalRange[];
  readonly symbols: GuestSymbols;
  readonly vcpus: number;
  /** Between two looks. */
  readonly intervalUs: number;
  readonly eventsMax: number;
}

export interface GuestTraceStats {
  readonly looks: number;
  /** Came more than an interval late; what was due in between was left out. */
  readonly late: number;
  /** Run queues that changed while they were read, each time. */
  readonly unread: number;
  readonly discarded: number;
}

/** Which process runs on which vCPU, looked up in the guest's RAM (native/trace/guest_sampler.h). */
export interface GuestTrace {
  /**
   * Settles with the kernel's banner. Rejects with HOLDFAST_E_UNSUPPORTED if the symbols do not fit what is
   * in RAM.
   */
  start(): Promise<string>;
  /** Changes since the last call, in the layout of guest-events.ts; the names are all since the start. */
  take(): { readonly events: Buffer; readonly names: readonly string[] };
  stats(): GuestTraceStats;
  close(): Promise<void>;
}

export interface TraceBinding {
  /** A small file of tracefs, by its path within it, also where that is not mounted. */
  readTracefs(path: string): string;
  readonly SchedTrace: new (options: SchedTraceOptions) => SchedTrace;
  readonly GuestTrace: new (options: GuestTraceOptions) => GuestTrace;
}
