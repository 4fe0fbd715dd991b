/**
 * Whether RAM has room for a second time, beside itself, before anything is made there.
 *
 * Both files may grow to the whole of RAM: Q's has holes where the guest has not been yet, and so has P's as long as
 * it runs. A page that finds no room in a tmpfs is a SIGBUS for the QEMU that touches it, so that much is asked for.
 */
import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { NoSpaceError } from '../errors.js';

/** st_blocks counts in these, whatever the file system's own are. */
const STAT_BLOCK_BYTES = 512;

export interface RamRoom {
  readonly dir: string;
  readonly ramBytes: number;
  /** What the file has of it that is there already. */
  readonly heldBytes: number;
  /** Infinite where the file system has no limit. */
  readonly freeBytes: number;
}

export const roomFor = async (ramPath: string, ramTo: string, ramBytes: number): Promise<RamRoom> => {
  const dir = dirname(ramTo);
  const [{ blocks: held }, { blocks, bavail, bsize }] = await Promise.all([stat(ramPath), statfs(dir)]);
  return {
    dir,
    ramBytes,
    heldBytes: held * STAT_BLOCK_BYTES,
    freeBytes: blocks === 0 ? Number.POSITIVE_INFINITY : bavail * bsize, // a tmpfs mounted with size=0
  };
};

/** @throws NoSpaceError */
export const assertRoom = ({ dir, ramBytes, heldBytes, freeBytes }: RamRoom): void => {
  const neededBytes = ramBytes + Math.max(0, ramBytes - heldBytes);
  if (freeBytes >= neededBytes) return;
  throw new NoSpaceError(
    `the new QEMU needs the VM's RAM a second time: ${neededBytes} bytes in ${dir}, which has ${freeBytes}; nothing was changed`,
    {
      cure: 'Make room there (a tmpfs is enlarged by mount -o remount,size=…), or use --method capture.',
      details: { dir, neededBytes, freeBytes },
    },
  );
};
