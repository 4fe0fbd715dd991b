/** Which guest process ran on which vCPU, out of what the sampler saw change (native/trace/guest_sampler.h). */
import { EVENT_BYTES, nanosecondsAt } from './sched-events.js';

export interface GuestChange {
  readonly atUs: number;
  readonly vcpu: number;
  readonly tid: number;
  readonly pid: number;
  readonly name: string;
}

export interface GuestSlice {
  readonly vcpu: number;
  readonly fromUs: number;
  readonly toUs: number;
  /** 0: the vCPU was idle. */
  readonly tid: number;
  readonly pid: number;
  /** The thread's own, up to 15 bytes: whatever the guest says. */
  readonly name: string;
}

export const decodeGuestChanges = (
  bytes: Buffer,
  names: readonly string[],
  originNs: number,
): GuestChange[] => {
  const changes: GuestChange[] = [];
  for (let at = 0; at + EVENT_BYTES <= bytes.length; at += EVENT_BYTES) {
    changes.push({
      atUs: (nanosecondsAt(bytes, at) - originNs) / 1e3,
      vcpu: bytes.readUInt16LE(at + 8),
      tid: bytes.readInt32LE(at + 12),
      pid: bytes.readInt32LE(at + 16),
      name: names[bytes.readUInt32LE(at + 20)] ?? '?',
    });
  }
  return changes;
};

/**
 * From one change of a vCPU to the next, the last to `endUs`; by time. A change that
 * changes nothing is none, and what was seen before the trace began, begins with it.
 */
export const guestSlices = (changes: readonly GuestChange[], endUs: number): GuestSlice[] => {
  const slices: GuestSlice[] = [];
  const open = new Map<number, GuestChange>();
  const end = ({ vcpu, tid, pid, name, atUs }: GuestChange, atEndUs: number): void => {
    const fromUs = Math.max(0, atUs);
    const toUs = Math.min(atEndUs, endUs);
    if (toUs > fromUs) slices.push({ vcpu, fromUs, toUs, tid, pid, name });
  };
  for (const change of [...changes].sort((a, b) => a.atUs - b.atUs)) {
    const before = open.get(change.vcpu);
    if (before?.tid === change.tid && before.name === change.name) continue;
    if (before !== undefined) end(before, change.atUs);
    open.set(change.vcpu, change);
  }
  for (const change of open.values()) end(change, endUs);
  return slices.sort((a, b) => a.fromUs - b.fromUs);
};
