/**
 * Whose processor time it is, where both hosts share a machine: each process belongs to the host in whose
 * namespace it lives, and what the kernel does in nobody's name (writing back, say) is told apart.
 */
import { existsSync, readFileSync } from 'node:fs';
import type { Lab } from '../../test/lab/lab.js';
import { execToEnd } from '../../test/lab/process.js';

/** Of /proc, whatever the kernel's own HZ is. */
const TICKS_PER_SECOND = 100;

/** Processors' worth of work, on average: 1.5 of 2. */
export interface CoresUsed {
  /** QEMU, its disk servers and the primary. */
  readonly primaryHostCores: number;
  /** The backup, with receiving, journal and image. */
  readonly backupHostCores: number;
  /** The kernel's own threads, and the bench. */
  readonly otherCores: number;
}

const ticksOf = (pids: readonly number[]): number =>
  pids.reduce((sum, pid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      // After the name, which may contain anything: state is field 3; utime and stime are 14 and 15.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return sum + Number(fields[11]) + Number(fields[12]);
    } catch {
      return sum; // it has just ended
    }
  }, 0);

/** All but idle and waiting for a disk. */
const busyTicks = (): number => {
  const fields = readFileSync('/proc/stat', 'utf8').split('\n')[0]!.trim().split(/\s+/).slice(1).map(Number);
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields;
  return user + nice + system + irq + softirq;
};

interface Ticks {
  readonly atMs: number;
  readonly primary: number;
  readonly backup: number;
  readonly busy: number;
}

const ticksNow = (lab: Lab): Ticks => ({
  atMs: performance.now(),
  primary: ticksOf(lab.host('a').pids),
  backup: ticksOf(lab.host('b').pids),
  busy: busyTicks(),
});

/** From now on until the result is asked for. */
export const meterCores = (lab: Lab): (() => CoresUsed) => {
  const before = ticksNow(lab);
  return () => {
    const after = ticksNow(lab);
    const cores = (of: 'primary' | 'backup' | 'busy'): number =>
      (after[of] - before[of]) / TICKS_PER_SECOND / ((after.atMs - before.atMs) / 1000);
    const [primaryHostCores, backupHostCores] = [cores('primary'), cores('backup')];
    const otherCores = Math.max(0, cores('busy') - primaryHostCores - backupHostCores);
    return { primaryHostCores, backupHostCores, otherCores };
  };
};

/**
 * Everything that runs on these hosts, and what it will start, on the given processors.
 * @param processors as taskset lists them: `0`, `0-1`
 */
export const pinHost = async (lab: Lab, host: 'a' | 'b', processors: string): Promise<void> => {
  for (const pid of lab.host(host).pids) {
    const args = ['--all-tasks', '--cpu-list', '--pid', processors, String(pid)];
    const { code, stderr } = await execToEnd('taskset', args, { check: false });
    // It may have ended meanwhile. A figure of hosts that are not apart must not look like one.
    if (code !== 0 && existsSync(`/proc/${pid}`)) throw new Error(`taskset ${args.join(' ')}: ${stderr}`);
  }
};
