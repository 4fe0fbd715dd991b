/** Reads all that checkpoints are made of, and compares it with their manifests. */
import { readFile } from 'node:fs/promises';
import { DamagedError, type HoldfastError, toHoldfastError } from '../errors.js';
import { native } from '../native.js';
import { claimReading } from './claims.js';
import { digestOf } from './device-state.js';
import { type Entry, type Listing, listCheckpoints } from './directory.js';
import { checkDisks } from './disk-copies.js';
import { devicePathOf, layerFilesOf, layersOf } from './select.js';

/** Damaged pages that are named; one is enough to refuse. */
const DAMAGED_PAGES_NAMED_MAX = 8;

export interface Verified {
  readonly epoch: number;
  readonly path: string;
  readonly isWhole: boolean;
  /** What is wrong; empty if it is whole. */
  readonly damage: readonly string[];
}

/**
 * Every checkpoint that is kept, or only one. Yields each as it is done.
 * @throws HoldfastError if the directory cannot be read
 */
export async function* verifyCheckpoints(root: string, only?: number): AsyncGenerator<Verified> {
  await using _claim = await claimReading(root);
  const listing = await listCheckpoints(root);
  const ofEntries = listing.entries
    .filter(({ isRetired }) => !isRetired)
    .map(({ epoch, dir }) => ({ epoch, dir }));
  const all = [...ofEntries, ...listing.broken].toSorted((a, b) => a.epoch - b.epoch);
  for (const { epoch, dir } of all) {
    if (only !== undefined && only !== epoch) continue;
    const damage = await damageOf(listing, epoch);
    yield { epoch, path: dir, isWhole: damage.length === 0, damage };
  }
}

const damageOf = async (listing: Listing, epoch: number): Promise<readonly string[]> => {
  const broken = listing.broken.find((each) => each.epoch === epoch);
  if (broken !== undefined) return [broken.error.message];
  const entry = listing.entries.find((each) => each.epoch === epoch)!;
  const parts = await Promise.all([
    damageOfRam(listing, entry),
    collect(() => checkDevice(entry)),
    collect(() => checkDisks(entry)),
  ]);
  return parts.flat();
};

const damageOfRam = async (listing: Listing, entry: Entry): Promise<readonly string[]> => {
  try {
    const layers = layerFilesOf(layersOf(listing, entry));
    const pages = await native.verifyLayers({ layers, limit: DAMAGED_PAGES_NAMED_MAX });
    const { pageSize } = entry.manifest.vm;
    return pages.map(
      ({ layer, page }) => `${layers[layer]?.ram}: page ${page} (byte ${page * pageSize}) is damaged`,
    );
  } catch (error) {
    return [toHoldfastError(error).message];
  }
};

const collect = async (check: () => Promise<unknown>): Promise<readonly string[]> => {
  try {
    await check();
    return [];
  } catch (error) {
    return [toHoldfastError(error).message];
  }
};

/** @throws DamagedError; @returns the stream */
export const checkDevice = async (entry: Entry): Promise<Buffer> => {
  const path = devicePathOf(entry);
  const { bytes, sha256 } = entry.manifest.device;
  let stream: Buffer;
  try {
    stream = await readFile(path);
  } catch (error) {
    throw toHoldfastError(error, 'the device state') satisfies HoldfastError;
  }
  if (stream.length !== bytes) {
    throw new DamagedError(`${path} is damaged: it has ${stream.length} bytes instead of ${bytes}`);
  }
  if (digestOf(stream) !== sha256) throw new DamagedError(`${path} is damaged: its checksum does not match`);
  return stream;
};
