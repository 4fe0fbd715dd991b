/** Drives that can be moved to a disk server while the VM runs. Pure. */
import { resolve } from 'node:path';
import type { Drive, VmDescription } from './describe.js';
import { type FileDisk, findDisks } from './disks.js';
import { imagePathOf } from './drives.js';

export interface MovableDrive {
  readonly drive: Drive;
  /** The same one on the command line, from which the standby is built. */
  readonly disk: FileDisk;
  readonly imagePath: string;
}

/** Of the node that the device has. Another one, a filter, would be lost. */
const MOVABLE_FORMATS: ReadonlySet<string> = new Set(['raw', 'file', 'host_device']);

/** Raw images and block devices that QEMU has open itself and that the command line names. */
export const movableDrives = ({
  argv,
  cwd,
  drives,
}: Pick<VmDescription, 'argv' | 'cwd' | 'drives'>): readonly MovableDrive[] => {
  const named = new Map(findDisks(argv).files.map((disk) => [resolve(cwd, disk.image), disk]));
  return drives.flatMap((drive): readonly MovableDrive[] => {
    const path = imagePathOf(drive.file);
    if (drive.readOnly || drive.server !== undefined || path === undefined) return [];
    if (!MOVABLE_FORMATS.has(drive.format) || drive.nodeName === undefined) return [];
    const imagePath = resolve(cwd, path);
    const disk = named.get(imagePath);
    return disk === undefined ? [] : [{ drive, disk, imagePath }];
  });
};
