/** Where the sockets of a moved VM's disk servers are: a directory per QEMU process, in the run directory. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isAlive, type ProcessIdentity } from '../vm/process.js';
import { endDiskServer } from './disk-process.js';

export const movedDisksDir = (runDir: string, { pid, startTicks }: ProcessIdentity): string =>
  join(runDir, `disks-${pid}-${startTicks}`);

const NAME = /^disks-(\d+)-(\d+)$/;

/** Of all VMs, also those that have ended. */
export const movedDisksDirs = async (runDir: string): Promise<readonly string[]> => {
  const names = await readdir(runDir).catch(() => [] as string[]);
  return names.filter((name) => NAME.test(name)).map((name) => join(runDir, name));
};

/** Removes what VMs left that have ended: their servers have, by themselves. */
export const removeLeftDisksDirs = async (runDir: string): Promise<void> => {
  for (const name of await readdir(runDir).catch(() => [] as string[])) {
    const [, pid, startTicks] = NAME.exec(name) ?? [];
    if (pid === undefined || startTicks === undefined) continue;
    if (await isAlive({ pid: Number(pid), startTicks })) continue;
    const dir = join(runDir, name);
    const sockets = (await readdir(dir)).filter((file) => file.endsWith('.sock'));
    await Promise.all(sockets.map((file) => endDiskServer(join(dir, file))));
    await rm(dir, { recursive: true, force: true });
  }
};
