/** Which checkpoint is meant, and the files that it is made of. */
import { join } from 'node:path';
import { ConfigError, DamagedError, type HoldfastError } from '../errors.js';
import type { LayerFiles } from './binding.js';
import { chainOf } from './chain.js';
import { type Entry, type Listing, linksOf } from './directory.js';
import { layerOf } from './upkeep.js';

/** A checkpoint with all that it stands on. */
export interface SelectedCheckpoint {
  readonly entry: Entry;
  /** Bottom first. */
  readonly layers: readonly Entry[];
}

/**
 * The checkpoint `at`, or the newest.
 * @throws ConfigError if there is none; DamagedError that names what is damaged: an older one is not taken instead
 */
export const selectCheckpoint = (listing: Listing, root: string, at?: number): SelectedCheckpoint => {
  const kept = listing.entries.filter(({ isRetired }) => !isRetired);
  const newestBroken = listing.broken.at(-1);
  const epoch = at ?? Math.max(kept.at(-1)?.epoch ?? 0, newestBroken?.epoch ?? 0);
  const broken = listing.broken.find((each) => each.epoch === epoch);
  if (broken !== undefined) throw damagedCheckpoint(epoch, broken.error, kept);
  const entry = kept.find((each) => each.epoch === epoch);
  if (entry === undefined) {
    const there = kept.map((each) => each.epoch).join(', ');
    throw new ConfigError(
      kept.length === 0
        ? `there is no checkpoint in ${root}`
        : `there is no checkpoint ${epoch} in ${root}: there are ${there}`,
      { cure: '`holdfast checkpoints DIR` lists what there is.' },
    );
  }
  return { entry, layers: layersOf(listing, entry) };
};

/** @throws DamagedError if one of them is missing */
export const layersOf = (listing: Listing, entry: Entry): readonly Entry[] => {
  const chain = chainOf(new Map(linksOf(listing).map((link) => [link.epoch, link])), entry.epoch);
  if ('layers' in chain) {
    return chain.layers.map((epoch) => listing.entries.find((each) => each.epoch === epoch)!);
  }
  const reason = listing.broken.find(({ epoch }) => epoch === chain.missing)?.error.message;
  throw new DamagedError(
    `checkpoint ${entry.epoch} cannot be restored: it stands on ${chain.missing}, which ${
      reason === undefined ? 'is not there' : `cannot be read (${reason})`
    }`,
    {
      cure: 'Restore another one: `holdfast verify` tells which are whole.',
      details: { epoch: entry.epoch, path: entry.dir },
    },
  );
};

export const layerFilesOf = (layers: readonly Entry[]): readonly LayerFiles[] => layers.map(layerOf);

export const devicePathOf = ({ dir, manifest: { device } }: Entry): string => join(dir, device.file);

export const damagedCheckpoint = (
  epoch: number,
  error: HoldfastError,
  others: readonly Entry[],
): DamagedError => {
  const before = others.findLast((each) => each.epoch !== epoch)?.epoch;
  const cure =
    before === undefined
      ? 'There is no other one.'
      : `\`holdfast verify\` tells which are whole; --at ${before} restores another one.`;
  return new DamagedError(`checkpoint ${epoch} is refused: ${error.message}`, {
    cause: error,
    cure,
    details: { ...error.details, epoch },
  });
};
