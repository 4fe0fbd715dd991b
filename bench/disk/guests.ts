/** The suite's guests: the same VM with the same two disks, through QEMU's file driver or through disk servers. */
import { createDisk, diskPath } from '../../test/lab/disk.js';
import type { GuestOptions } from '../../test/lab/guest.js';
import type { Lab } from '../../test/lab/lab.js';
import { type BenchGuest, startGuest, startRelayedGuest } from '../pair.js';
import type { ProbeSize } from './probes.js';

const RAM_MB = 192;
const MIB_SPARE = 64;

export interface DiskGuest extends BenchGuest {
  readonly lab: Lab;
}

const guestOptions = (images: readonly string[]): Omit<GuestOptions, 'serialPath'> => ({
  workload: 'idle',
  ramMb: RAM_MB,
  disks: images.map((path) => ({ path })),
});

/** Boots it with empty disks, large enough for the probes. */
export const bootGuest = async (lab: Lab, kind: 'raw' | 'server', size: ProbeSize): Promise<DiskGuest> => {
  const images = [
    await createDisk(diskPath(lab, 'a', 0), size.spanMiB),
    await createDisk(diskPath(lab, 'a', 1), 2 * size.bonnieMiB + MIB_SPARE),
  ];
  const options = guestOptions(images);
  const guest = kind === 'raw' ? await startGuest(lab, options) : await startRelayedGuest(lab, options);
  return { ...guest, lab };
};

/** For the backup: its images are those of host b. */
export const replicaSettings = ({ lab }: DiskGuest, disks = 2) => ({
  replace: Array.from({ length: disks }, (_, index) => ({
    from: diskPath(lab, 'a', index),
    to: diskPath(lab, 'b', index),
  })),
});
