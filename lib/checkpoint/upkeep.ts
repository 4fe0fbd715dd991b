/**
 * What chain.ts decides, carried out: checkpoints beyond those that are kept are given up, merged into the next
 * one, removed. Each step may be cut off anywhere, and is taken up again by the next run.
 *
 *   merge  upper's pages into lower's file ─► that file linked beside upper's ─► upper's manifest names it
 *          └─ lower is retired: with upper over it, it reads as before       └─ atomically ─► lower removed
 */
import { link, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CancelledError } from '../errors.js';
import type { Logger } from '../log.js';
import type { CheckpointBinding, LayerFiles } from './binding.js';
import { nextUpkeep, type Upkeep } from './chain.js';
import { hasReaders } from './claims.js';
import {
  type Entry,
  linksOf,
  listCheckpoints,
  removeCheckpoint,
  removeStrayFiles,
  replaceManifest,
  retireCheckpoint,
  syncDirectory,
} from './directory.js';

const MERGED = 'ram.merged';
const MERGED_INDEX = 'ram.merged.index';

export interface UpkeepOptions {
  readonly root: string;
  readonly keep: number | undefined;
  readonly native: Pick<CheckpointBinding, 'mergeLayers'>;
  readonly log: Logger;
  /** Told before each step. */
  readonly onStep?: (step: Upkeep) => void;
  readonly signal?: AbortSignal | undefined;
}

export const layerOf = ({ dir, manifest: { ram } }: Entry): LayerFiles => ({
  ram: join(dir, ram.file),
  index: join(dir, ram.index),
  digest: ram.digest,
});

/**
 * Does what is due, and tidies up behind it. Only by the writer.
 * @returns false if something waits for readers to end
 */
export const keepUp = async (options: UpkeepOptions): Promise<boolean> => {
  const { root, keep, log, onStep, signal } = options;
  for (;;) {
    if (signal?.aborted) throw new CancelledError('the upkeep of checkpoints was cancelled');
    const listing = await listCheckpoints(root);
    const step = nextUpkeep(linksOf(listing), keep);
    if (step === undefined) {
      await tidy(root);
      return true;
    }
    const entry = (epoch: number): Entry => listing.entries.find((each) => each.epoch === epoch)!;
    if (step.kind === 'retire') {
      onStep?.(step);
      await retireCheckpoint(entry(step.epoch));
      continue;
    }
    if (await hasReaders(root)) return false;
    onStep?.(step);
    log.info({ ...step }, 'checkpoint upkeep');
    if (step.kind === 'remove') await removeCheckpoint(entry(step.epoch));
    else await merge(options, entry(step.lower), entry(step.upper));
  }
};

const merge = async ({ native }: UpkeepOptions, lower: Entry, upper: Entry): Promise<void> => {
  const ram = join(upper.dir, MERGED);
  const index = join(upper.dir, MERGED_INDEX);
  const { pages, digest } = await native.mergeLayers({
    lower: layerOf(lower),
    upper: layerOf(upper),
    indexPath: index,
  });
  await rm(ram, { force: true });
  await link(join(lower.dir, lower.manifest.ram.file), ram);
  await syncDirectory(upper.dir);
  await replaceManifest(upper, {
    ...upper.manifest,
    parent: null,
    ram: { file: MERGED, index: MERGED_INDEX, digest, pages, zeroPages: 0 },
  });
};

/** What lies around in checkpoints, of steps that were cut off or are complete; not while somebody reads. */
export const tidy = async (root: string): Promise<void> => {
  if (await hasReaders(root)) return;
  const { entries } = await listCheckpoints(root);
  for (const entry of entries) await removeStrayFiles(entry);
};
