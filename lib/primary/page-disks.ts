/**
 * Disks that both hosts have, and the pages that need not travel because they are on one of them
 * (docs/migration.md, "Pages that a disk has").
 */
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { PAGE_DISKS_MAX, type PageDisk } from '../control/messages.js';
import { imageBytes } from '../disk/inspect-image.js';
import { toHoldfastError, UnsupportedVmError } from '../errors.js';
import type { Logger } from '../log.js';
import type { DiskIndexProgress, DiskPageCounts, PrimaryEngine } from '../native.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';

/** 32 GiB of data at the least; beyond, a migration with fewer references is better than one that takes memory. */
const INDEX_TABLE_BYTES_MAX = 256 << 20;
/** While the images are read nothing travels: at most half the time that RAM would take at 1 Gbit/s. */
const BYTES_PER_INDEX_MS = 250_000;
const INDEX_WAIT_MS_MIN = 2_000;

export const indexWaitMs = (ramBytes: number): number =>
  Math.max(INDEX_WAIT_MS_MIN, Math.round(ramBytes / BYTES_PER_INDEX_MS));

/** Of a round, or of an epoch: pages that were sent as references to a disk. */
export interface DiskPages {
  readonly referenced: number;
  /** Found by the other side where the reference said, with the content that it said. */
  readonly verified: number;
  /** The disk had something else there. */
  readonly mismatched: number;
  /** The disk could not be read there, or not in time. */
  readonly unread: number;
  /** The latter two: these came in full after all. */
  readonly resent: number;
  /** That did not travel, less what the references took. Below 0 if they were in vain. */
  readonly savedBytes: number;
}

export const diskPagesOf = (
  { referenced, different, unread, referenceBytes }: DiskPageCounts,
  pageBytes: number,
): DiskPages => {
  const resent = different + unread;
  const verified = referenced - resent;
  const savedBytes = verified * pageBytes - referenceBytes;
  return { referenced, verified, mismatched: different, unread, resent, savedBytes };
};

/** Sums; undefined of none. */
export const sumDiskPages = (all: readonly (DiskPages | undefined)[]): DiskPages | undefined =>
  all.reduce(
    (sum, each) => (sum === undefined || each === undefined ? (sum ?? each) : add(sum, each)),
    undefined,
  );

const add = (a: DiskPages, b: DiskPages): DiskPages => ({
  referenced: a.referenced + b.referenced,
  verified: a.verified + b.verified,
  mismatched: a.mismatched + b.mismatched,
  unread: a.unread + b.unread,
  resent: a.resent + b.resent,
  savedBytes: a.savedBytes + b.savedBytes,
});

/**
 * The VM's disks that the backup may have as well: those that are replicated, and what is attached read-only,
 * for that must exist on both hosts anyway. What is there is the backup's to say.
 */
export const pageDisksOf = async (
  { drives, cwd }: Pick<VmDescription, 'drives' | 'cwd'>,
  replicated: readonly PageDisk[],
): Promise<readonly PageDisk[]> => {
  const named = drives.flatMap(({ readOnly, file }) => {
    const path = readOnly ? imagePathOf(file) : undefined;
    return path === undefined ? [] : [resolve(cwd, path)];
  });
  const fixed = await Promise.all([...new Set(named)].map(pageDisk));
  return [...replicated, ...fixed.flat()].slice(0, PAGE_DISKS_MAX);
};

const pageDisk = async (imagePath: string): Promise<PageDisk[]> => {
  const found = await stat(imagePath).catch(() => undefined); // QEMU has it open; its name may be gone
  const bytes = found === undefined ? 0 : await imageBytes(found);
  return bytes === 0 ? [] : [{ imagePath, imageBytes: bytes }];
};

/** How far the index is when the first round begins. */
export interface DisksIndexed extends DiskIndexProgress {
  readonly images: readonly string[];
}

/**
 * Begins to index the disks that both have.
 * @param has by index in `disks`, which of them the backup said to have
 * @throws UnsupportedVmError if there are none; what the addon says: nothing is referred to then
 */
export const beginIndex = async (
  engine: Pick<PrimaryEngine, 'indexDisks'>,
  disks: readonly PageDisk[],
  has: readonly number[],
): Promise<readonly string[]> => {
  const common = disks.flatMap(({ imagePath, imageBytes }, number) =>
    has.includes(number) ? [{ number, path: imagePath, bytes: imageBytes }] : [],
  );
  if (common.length === 0) {
    throw new UnsupportedVmError('there is no disk that both hosts have: all pages are sent', {
      cure: 'Without --skip-disk-pages it is the same migration.',
    });
  }
  await engine.indexDisks({ disks: common, tableBytesMax: INDEX_TABLE_BYTES_MAX });
  return common.map(({ path }) => path);
};

/** @returns undefined where it failed, which the log has: all pages are sent then */
export const awaitIndex = async (
  engine: Pick<PrimaryEngine, 'awaitIndex'>,
  ramBytes: number,
  log: Logger,
): Promise<DiskIndexProgress | undefined> => {
  try {
    const progress = await engine.awaitIndex({ timeoutMs: indexWaitMs(ramBytes) });
    log.info({ ...progress }, 'disks indexed');
    return progress;
  } catch (error) {
    log.warn({ err: toHoldfastError(error).message }, 'the disks are not indexed');
    return undefined;
  }
};
