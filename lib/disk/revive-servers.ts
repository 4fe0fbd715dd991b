/**
 * Disk servers that died while nobody looked after their VM are started again, before QEMU is asked anything: a
 * `stop` of its waits for its disks, and all of its monitor with it, so that it could not even be asked which
 * disks it has. Found by the servers' records, beside the monitor's socket or in the VM's directory of moved disks.
 */
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { isAlive } from '../vm/process.js';
import { diskServerFiles, readDiskServerRecord, runningDiskServer } from './disk-files.js';
import { ensureDiskServer } from './disk-process.js';
import { movedDisksDirs } from './moved-disks-dir.js';

/** Failures are logged: whoever needs the server says what is wrong with it. */
export const reviveDiskServers = async (qmpPath: string, runDir: string, log: Logger): Promise<void> => {
  const dirs = [dirname(qmpPath), ...(await movedDisksDirs(runDir))];
  const found = await Promise.all(dirs.map(socketsIn));
  await Promise.all(found.flat().map((socket) => revive(socket, log)));
};

const ENDING = diskServerFiles('').record;

const socketsIn = async (dir: string): Promise<readonly string[]> => {
  const names = await readdir(dir).catch(() => [] as string[]);
  return names
    .filter((name) => name.endsWith(ENDING))
    .map((name) => join(dir, name.slice(0, -ENDING.length)));
};

const revive = async (socket: string, log: Logger): Promise<void> => {
  const record = await readDiskServerRecord(socket);
  if (record === undefined || record.vm === null || !(await isAlive(record.vm))) return;
  if ((await runningDiskServer(socket)) !== undefined) return;
  const names = { disk: record.id, image: record.imagePath, log: diskServerFiles(socket).log };
  log.warn(names, 'the VM waits for a disk server that has ended: starting another');
  try {
    const { process: _process, ...spec } = record;
    await ensureDiskServer(spec);
  } catch (error) {
    log.error({ ...names, err: toHoldfastError(error).message }, 'no disk server');
  }
};
