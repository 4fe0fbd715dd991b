/**
 * What a new session has to send of each disk, pure. Both hosts keep a map of
 * the blocks that may differ from the other's (docs/disk.md); it is worth
 * something only where both are maps of the same two images: the sync id, made
 * anew at each session's first commit, says so. Where there is any doubt, all is
 * sent.
 */
import type { PeerDisk } from '../native.js';

export interface DiskPlan {
  readonly id: string;
  /** all: data and holes of the whole image; changed: the blocks that either map has marked. */
  readonly what: 'all' | 'changed';
  /** Why not less; for the log and the narration. */
  readonly reason: string;
  /** Of `changed`: what the two maps have marked, at most (they may overlap). */
  readonly changedBytesMax: number | undefined;
}

const NEVER_SYNCED = /^0*$/;

export const planDisks = (disks: readonly PeerDisk[]): readonly DiskPlan[] => disks.map(planDisk);

export const planDisk = (disk: PeerDisk): DiskPlan => {
  const reason = whyAll(disk);
  if (reason !== undefined) return { id: disk.id, what: 'all', reason, changedBytesMax: undefined };
  return {
    id: disk.id,
    what: 'changed',
    reason: 'both hosts know what has changed since they were alike',
    changedBytesMax: disk.localMarkedBytes + disk.markedBytes,
  };
};

const whyAll = (disk: PeerDisk): string | undefined => {
  if (disk.fresh) return 'the image on the backup is new';
  if (NEVER_SYNCED.test(disk.syncId)) return 'the image on the backup was never a whole copy';
  if (NEVER_SYNCED.test(disk.localSyncId)) return 'this image was never copied to a backup';
  if (disk.syncId !== disk.localSyncId) return 'the two images are not copies of each other';
  if (!disk.localTrusted) return 'this host went down while the disk was in use';
  if (!disk.trusted) return "the backup's host went down while the disk was in use";
  return undefined;
};
