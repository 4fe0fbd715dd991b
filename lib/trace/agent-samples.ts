/**
 * What the guest's own /proc says, some times a second, to which process had which
 * vCPU. Pure. Between two looks the vCPU goes to the thread that used most time of it;
 * the others do not show. Guest kernel: Documentation/filesystems/proc.rst.
 */
import type { GuestChange } from './guest-slices.js';

export interface TaskSample {
  readonly tid: number;
  readonly pid: number;
  readonly name: string;
  /** User and system time, in ticks of the guest's clock (10 ms). */
  readonly ticks: number;
  /** The vCPU that it is, or was last, on. */
  readonly vcpu: number;
}

/** All threads' stat files, each line after its path, as grep prints them. */
export const SAMPLE_COMMAND = "grep -s '' /proc/[0-9]*/task/[0-9]*/stat";

const UTIME = 10;
const STIME = 11;
const PROCESSOR = 35;

export const parseTaskStats = (text: string): TaskSample[] =>
  [...text.matchAll(/^\/proc\/(\d+)\/task\/(\d+)\/stat:\d+ \((.*)\) [A-Za-z] (.*)$/gm)].map(
    ([, pid, tid, name, rest]) => {
      const fields = rest!.split(' ').map(Number); // from the fourth on
      return {
        pid: Number(pid),
        tid: Number(tid),
        name: name!,
        ticks: (fields[UTIME] ?? 0) + (fields[STIME] ?? 0),
        vcpu: fields[PROCESSOR] ?? 0,
      };
    },
  );

const idle = { tid: 0, pid: 0, name: 'idle' } as const;

/**
 * Which thread each vCPU goes to from `fromUs`, the time of the look before, on.
 * A thread that began since then is judged by all of its time.
 */
export const changesBetween = (
  before: readonly TaskSample[],
  after: readonly TaskSample[],
  vcpus: number,
  fromUs: number,
): GuestChange[] => {
  const ticksBefore = new Map(before.map(({ tid, ticks }) => [tid, ticks]));
  const most = new Map<number, { readonly task: TaskSample; readonly used: number }>();
  for (const task of after) {
    const used = task.ticks - (ticksBefore.get(task.tid) ?? 0);
    if (used > (most.get(task.vcpu)?.used ?? 0)) most.set(task.vcpu, { task, used });
  }
  return Array.from({ length: vcpus }, (_, vcpu) => {
    const { tid, pid, name } = most.get(vcpu)?.task ?? idle;
    return { atUs: fromUs, vcpu, tid, pid, name };
  });
};
