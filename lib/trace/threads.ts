/** QEMU's threads: which are vCPUs, what the others are called, and what /proc says of where they are. */
import { readdir, readFile } from 'node:fs/promises';
import type { ThreadIdentity } from './document.js';

/** One per thread: under TCG with thread=single all vCPUs share one. */
export const vcpuThreads = (
  cpus: readonly { readonly 'cpu-index': number; readonly 'thread-id': number }[],
): ThreadIdentity[] => {
  const byThread = new Map<number, number[]>();
  for (const { 'cpu-index': vcpu, 'thread-id': tid } of cpus) {
    byThread.set(tid, [...(byThread.get(tid) ?? []), vcpu]);
  }
  return [...byThread].map(([tid, vcpus]) => ({
    tid,
    vcpus,
    label: vcpus.length === 1 ? `vCPU ${vcpus[0]}` : `vCPUs ${vcpus.join(', ')}`,
  }));
};

/** What a reader must know where vCPUs share a thread. */
export const sharedThreadNotes = (threads: readonly ThreadIdentity[]): string[] =>
  threads
    .filter(({ vcpus }) => vcpus.length > 1)
    .map(
      ({ label, tid }) =>
        `${label} share thread ${tid} (TCG with thread=single): which of them ran is not seen from outside`,
    );

/** All threads of a process but those, with their names. */
export const otherThreads = async (
  pid: number,
  known: readonly ThreadIdentity[],
): Promise<ThreadIdentity[]> => {
  const vcpus = new Set(known.map(({ tid }) => tid));
  const tids = (await readdir(`/proc/${pid}/task`)).map(Number).filter((tid) => !vcpus.has(tid));
  return await Promise.all(
    tids.map(async (tid) => ({
      tid,
      label: (await threadName(tid)) ?? `thread ${tid}`,
      vcpus: [],
    })),
  );
};

/** Undefined if it has ended. */
export const threadName = async (tid: number): Promise<string | undefined> =>
  (await readFile(`/proc/${tid}/comm`, 'utf8').catch(() => undefined))?.trimEnd();

export interface ThreadTimes {
  /** The core that it is, or was last, on. */
  readonly core: number;
  /** On any core, since it began. */
  readonly ranNs: number;
}

/** Undefined if it has ended. Kernel: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat. */
export const threadTimes = async (pid: number, tid: number): Promise<ThreadTimes | undefined> => {
  try {
    const [stat, schedstat] = await Promise.all([
      readFile(`/proc/${pid}/task/${tid}/stat`, 'latin1'),
      readFile(`/proc/${pid}/task/${tid}/schedstat`, 'latin1'),
    ]);
    // The second field may hold anything: count from its end. `processor` is the 39th.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return { core: Number(fields[36]), ranNs: Number(schedstat.split(' ')[0]) };
  } catch {
    return undefined;
  }
};

/** `0-3,8` → 0, 1, 2, 3, 8 */
export const parseCoreList = (text: string): number[] =>
  text
    .trim()
    .split(',')
    .flatMap((part) => {
      const [first = 0, last = first] = part.split('-').map(Number);
      return Array.from({ length: last - first + 1 }, (_, index) => first + index);
    });

export const onlineCores = async (): Promise<number[]> =>
  parseCoreList(await readFile('/sys/devices/system/cpu/online', 'utf8'));
