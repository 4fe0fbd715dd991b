/** Scheduler events as the addon hands them over (native/trace/sched_event.h): 24 bytes each, little endian. */

export type SchedEvent =
  | {
      readonly kind: 'switch';
      /** Since the trace's begin, here and below. */
      readonly atUs: number;
      readonly core: number;
      readonly prev: number;
      readonly next: number;
      /** `prev` was pushed off the core: it could have gone on. */
      readonly preempted: boolean;
    }
  | {
      readonly kind: 'migrate';
      readonly atUs: number;
      readonly tid: number;
      readonly from: number;
      readonly to: number;
    }
  | { readonly kind: 'wakeup'; readonly atUs: number; readonly tid: number; readonly core: number }
  | { readonly kind: 'lost'; readonly atUs: number; readonly core: number; readonly events: number };

export const EVENT_BYTES = 24;
/** TASK_REPORT of linux/sched.h: a thread with none of these states did not go to sleep. */
const ASLEEP = 0xff;

/** Nanoseconds of CLOCK_MONOTONIC; exact for the first hundred days since boot, then to two. */
export const nanosecondsAt = (bytes: Buffer, at: number): number =>
  bytes.readUInt32LE(at + 4) * 2 ** 32 + bytes.readUInt32LE(at);

/** @param originNs the trace's begin on CLOCK_MONOTONIC */
export const decodeSchedEvents = (bytes: Buffer, originNs: number): SchedEvent[] => {
  const events: SchedEvent[] = [];
  for (let at = 0; at + EVENT_BYTES <= bytes.length; at += EVENT_BYTES) {
    const event = decode(bytes, at, (nanosecondsAt(bytes, at) - originNs) / 1e3);
    if (event !== undefined) events.push(event);
  }
  return events;
};

const decode = (bytes: Buffer, at: number, atUs: number): SchedEvent | undefined => {
  const kind = bytes.readUInt16LE(at + 8);
  const core = bytes.readUInt16LE(at + 10);
  const first = bytes.readInt32LE(at + 12);
  const second = bytes.readInt32LE(at + 16);
  const third = bytes.readUInt32LE(at + 20);
  switch (kind) {
    case 1:
      return { kind: 'switch', atUs, core, prev: first, next: second, preempted: (third & ASLEEP) === 0 };
    case 2:
      return { kind: 'migrate', atUs, tid: first, from: second, to: third };
    case 3:
      return { kind: 'wakeup', atUs, tid: first, core: third };
    case 4:
      return { kind: 'lost', atUs, core, events: third };
    default:
      return undefined;
  }
};
