/** Disk servers of a VM that runs, found by their sockets: for whoever finishes a takeover that another began. */
import { isAlive } from '../vm/process.js';
import { DiskControl } from './disk-control.js';
import {
  type DiskServerRecord,
  diskServerFiles,
  readDiskServerRecord,
  writeDiskServerRecord,
} from './disk-files.js';
import { activateDiskServer } from './standby-disks.js';

export interface FoundDiskServer {
  readonly id: string;
  readonly imagePath: string;
  readonly imageBytes: number;
  /** It takes writes. */
  readonly isActive: boolean;
  /** It does so from now on; started again if it died. Idempotent. @throws DiskError */
  activate(): Promise<void>;
}

/** By its own word: whoever activated it may not have lived to write that down. */
const isActive = async (record: DiskServerRecord): Promise<boolean> => {
  const { socket, process } = record;
  if (!(await isAlive(process))) return false;
  await using control = await DiskControl.connect(diskServerFiles(socket).control);
  // Or it would be asked, and so lose its controller, each time.
  if (control.isActive) await writeDiskServerRecord({ ...record, mode: 'active' });
  return control.isActive;
};

/** Those whose QEMU lives. */
export const findDiskServers = async (sockets: readonly string[]): Promise<readonly FoundDiskServer[]> => {
  const found = sockets.map(async (socket): Promise<readonly FoundDiskServer[]> => {
    const record = await readDiskServerRecord(socket);
    if (record === undefined || record.vm === null || !(await isAlive(record.vm))) return [];
    const { id, imagePath, imageBytes, mode } = record;
    const activate = (): Promise<void> => activateDiskServer(socket);
    return [{ id, imagePath, imageBytes, isActive: mode === 'active' || (await isActive(record)), activate }];
  });
  return (await Promise.all(found)).flat();
};
