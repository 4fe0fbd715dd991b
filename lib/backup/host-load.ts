/** What this host has left for one more VM. */
import { readFile, statfs } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { reservedHugePages } from '../doctor/huge-pages.js';
import { HUGETLBFS_MAGIC } from '../file-systems.js';

/** Long enough for the kernel's ticks of 10 ms to tell a tenth of a CPU; short enough to wait for. */
const SAMPLE_MS = 200;

export interface HostLoad {
  /** For a VM's RAM. */
  readonly freeBytes: number;
  readonly cpus: number;
  /** CPUs' worth of idle time, such as 2.5. */
  readonly idleCpus: number;
}

/** @param ramDir where a VM's RAM is kept */
export const hostLoad = async (ramDir: string): Promise<HostLoad> => {
  const before = parseCpuTimes(await readFile('/proc/stat', 'utf8'));
  await delay(SAMPLE_MS);
  const [after, freeBytes] = await Promise.all([readFile('/proc/stat', 'utf8'), freeRam(ramDir)]);
  return { freeBytes, ...idleBetween(before, parseCpuTimes(after)) };
};

/** A tmpfs promises what its limit allows; the memory has to be there as well. */
export const freeRam = async (ramDir: string): Promise<number> => {
  const { type, bavail, bsize } = await statfs(ramDir);
  if (type === HUGETLBFS_MAGIC) return (await reservedHugePages(bsize)).freeBytes;
  return Math.min(bavail * bsize, parseAvailableBytes(await readFile('/proc/meminfo', 'utf8')));
};

/** MemAvailable of /proc/meminfo. Pure. */
export const parseAvailableBytes = (meminfo: string): number =>
  Number(/^MemAvailable:\s+(\d+) kB$/m.exec(meminfo)?.[1] ?? 0) * 1024;

export interface CpuTimes {
  readonly cpus: number;
  /** Ticks of all CPUs together since the boot. */
  readonly idle: number;
  readonly total: number;
}

/**
 * /proc/stat: `cpu user nice system idle iowait irq softirq steal guest …`, and a line for each CPU. A CPU that
 * waits for a disk is free for a VM. What a guest took is counted as user already. Pure.
 */
export const parseCpuTimes = (stat: string): CpuTimes => {
  const all = /^cpu +(.*)$/m.exec(stat)?.[1] ?? '';
  const times = all.split(' ').map(Number).slice(0, 8);
  return {
    cpus: stat.match(/^cpu\d/gm)?.length ?? 0,
    idle: (times[3] ?? 0) + (times[4] ?? 0),
    total: times.reduce((sum, each) => sum + each, 0),
  };
};

/** Pure. Where no time has passed nothing counts as idle. */
export const idleBetween = (before: CpuTimes, after: CpuTimes): { cpus: number; idleCpus: number } => {
  const ticks = after.total - before.total;
  const share = ticks <= 0 ? 0 : Math.min(1, Math.max(0, (after.idle - before.idle) / ticks));
  return { cpus: after.cpus, idleCpus: share * after.cpus };
};
