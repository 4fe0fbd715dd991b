/**
 * What a disk server keeps, and so how it is found: by a primary (also one that is restarted, and one on
 * the host of a failover), and by whoever starts it again. In the run directory, on a tmpfs, beside its socket:
 *
 *   vda.sock         of nbdkit: QEMU's client connects here
 *   vda.sock.disk    the record: which process, which image, which VM
 *   vda.sock.ctl     its control socket
 *   vda.sock.ring    the log
 *   vda.sock.log     what nbdkit says
 *
 * and on stable storage, for it outlives a reboot, one directory per image:
 *
 *   /srv/vm/vda.img.holdfast/          of a regular file: beside it, on the same file system
 *   /var/lib/holdfast/disks/…          of a block device
 */
import { mkdir, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { DiskError, isFullErrno, NoSpaceError } from '../errors.js';
import { isAlive } from '../vm/process.js';

export const RING_BYTES_DEFAULT = 64 << 20;
/** sockaddr_un.sun_path without its NUL, and without the ending of the control socket. */
export const DISK_SOCKET_PATH_BYTES_MAX = 107 - '.ctl'.length;

const identity = z.strictObject({ pid: z.number().int().positive(), startTicks: z.string() });

const diskServerSpec = z.strictObject({
  /** Of the disk, the same on both hosts. */
  id: z.string(),
  imagePath: z.string(),
  imageBytes: z.number().int().positive(),
  /** Directory of map and journal. */
  metaDir: z.string(),
  /** On which it listens for QEMU. */
  socket: z.string(),
  ringBytes: z.number().int().positive(),
  /** standby: reads are answered, writes wait until it is activated. */
  mode: z.enum(['active', 'standby']),
  /** Program to run, a path or a name on PATH. */
  nbdkit: z.string(),
  /** QEMU's process: the server ends with it. Null: not known yet. */
  vm: identity.nullable(),
});
export type DiskServerSpec = z.infer<typeof diskServerSpec>;

const diskServerRecord = diskServerSpec.extend({ process: identity });
export type DiskServerRecord = z.infer<typeof diskServerRecord>;

export interface DiskServerFiles {
  readonly record: string;
  readonly control: string;
  readonly ring: string;
  readonly log: string;
  /** Held by whoever is starting a server on this socket. */
  readonly claim: string;
}

export const diskServerFiles = (socket: string): DiskServerFiles => ({
  record: `${socket}.disk`,
  control: `${socket}.ctl`,
  ring: `${socket}.ring`,
  log: `${socket}.log`,
  claim: `${socket}.claim`,
});

export const mapPathOf = (metaDir: string): string => join(metaDir, 'map');

export const readDiskServerRecord = async (socket: string): Promise<DiskServerRecord | undefined> => {
  const text = await readFile(diskServerFiles(socket).record, 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return diskServerRecord.parse(JSON.parse(text));
  } catch {
    return undefined; // of another version: as good as absent
  }
};

export const writeDiskServerRecord = async (record: DiskServerRecord): Promise<void> => {
  const path = diskServerFiles(record.socket).record;
  const temporary = `${path}.${process.pid}`;
  await writeFile(temporary, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  await rename(temporary, path); // a reader sees the old record or the new one
};

/** The record of the server that serves this socket now. */
export const runningDiskServer = async (socket: string): Promise<DiskServerRecord | undefined> => {
  const record = await readDiskServerRecord(socket);
  return record !== undefined && (await isAlive(record.process)) ? record : undefined;
};

/** All but the log, which says why. Of a server that has ended: the ring is memory that nobody else frees. */
export const removeDiskServerFiles = async (socket: string): Promise<void> => {
  const { record, control, ring, claim } = diskServerFiles(socket);
  await Promise.all([socket, record, control, ring, claim].map((path) => rm(path, { force: true })));
};

/** A path as one name: no two paths have the same. */
const escapePath = (path: string): string => encodeURIComponent(path).replaceAll('.', '%2E');

/**
 * Directory of what is known about an image (map, journal); made if it is not there. An image has one,
 * whatever links lead to it.
 * @param diskDir setting `diskDir`, for block devices
 * @throws DiskError if the path leads to neither a file nor a block device, or the directory can't be made;
 *   NoSpaceError
 */
export const diskMetaDir = async (diskDir: string, imagePath: string): Promise<string> => {
  const path = await realpath(imagePath).catch(() => imagePath); // a replica that is still to be made
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined && !found.isFile() && !found.isBlockDevice()) {
    throw new DiskError(`${imagePath} is neither a regular file nor a block device`, {
      cure: 'Name the image of a disk, or what --replace makes of it.',
    });
  }
  const dir = found?.isBlockDevice() ? join(diskDir, 'disks', escapePath(path)) : `${path}.holdfast`;
  try {
    await mkdir(dir, { recursive: true, mode: 0o700 });
  } catch (cause) {
    const message = `the directory ${dir} for what is known of a disk: ${(cause as Error).message}`;
    if (isFullErrno((cause as NodeJS.ErrnoException).code)) {
      throw new NoSpaceError(message, { cause, cure: 'Make room in its file system.' });
    }
    throw new DiskError(message, {
      cause,
      cure: 'Make the directory that the image is to lie in, or give another by --replace.',
    });
  }
  return dir;
};
