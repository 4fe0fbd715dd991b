/**
 * A directory of checkpoints, as files: what is there, and how something new gets there or goes, so that
 * whatever is cut off in between leaves each checkpoint whole or absent.
 *
 *   .writing-000004/   being written; renamed when its manifest is in it and all is on stable storage
 *   epoch-000003/      a checkpoint
 *   .holders/          who reads or writes here (claims.ts)
 */
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError, type HoldfastError, toHoldfastError } from '../errors.js';
import type { Link } from './chain.js';
import {
  MANIFEST_MAGIC,
  MANIFEST_VERSION,
  type Manifest,
  parseManifest,
  renderManifest,
} from './manifest.js';

const MANIFEST = 'manifest.json';
const RETIRED = 'retired.json';
const EPOCH_NAME = /^epoch-(\d{6,})$/;
const WRITING_NAME = /^\.writing-\d{6,}$/;

export interface Entry {
  readonly epoch: number;
  readonly dir: string;
  readonly isRetired: boolean;
  readonly manifest: Manifest;
}

export interface Listing {
  /** Ascending. */
  readonly entries: readonly Entry[];
  /** What has a checkpoint's name and no manifest that can be read. */
  readonly broken: readonly { readonly epoch: number; readonly dir: string; readonly error: HoldfastError }[];
}

export const linksOf = ({ entries }: Listing): Link[] =>
  entries.map(({ epoch, isRetired, manifest }) => ({ epoch, isRetired, parent: manifest.parent }));

const padded = (epoch: number): string => String(epoch).padStart(6, '0');

export const epochDir = (root: string, epoch: number): string => join(root, `epoch-${padded(epoch)}`);
export const writingDir = (root: string, epoch: number): string => join(root, `.writing-${padded(epoch)}`);

/** @throws HoldfastError if the directory cannot be read at all */
export const listCheckpoints = async (root: string): Promise<Listing> => {
  const entries: Entry[] = [];
  const broken: Listing['broken'][number][] = [];
  let names: string[];
  try {
    names = await readdir(root);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new ConfigError(`there is no directory ${root}`, { cause: error });
    }
    throw toHoldfastError(error, 'the directory of checkpoints');
  }
  for (const name of names.toSorted()) {
    const epoch = Number(EPOCH_NAME.exec(name)?.[1] ?? Number.NaN);
    if (Number.isNaN(epoch)) continue;
    const dir = join(root, name);
    try {
      entries.push({ epoch, dir, ...(await readManifest(dir)) });
    } catch (error) {
      broken.push({ epoch, dir, error: toHoldfastError(error) });
    }
  }
  return { entries, broken };
};

const readManifest = async (dir: string): Promise<Pick<Entry, 'isRetired' | 'manifest'>> => {
  const live = join(dir, MANIFEST);
  const text = await readFile(live, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text !== undefined) return { isRetired: false, manifest: parseManifest(text, live) };
  const retired = join(dir, RETIRED);
  return { isRetired: true, manifest: parseManifest(await readFile(retired, 'utf8'), retired) };
};

/** Puts a file there whole or not at all, on stable storage. */
export const writeFileSafely = async (path: string, content: string | Uint8Array): Promise<void> => {
  const aside = `${path}.new`;
  const file = await open(aside, 'w', 0o600);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(aside, path);
  await syncDirectory(join(path, '..'));
};

export const syncDirectory = async (path: string): Promise<void> => {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
};

/** A fresh, empty directory for a checkpoint to be written in. */
export const beginCheckpoint = async (root: string, epoch: number): Promise<string> => {
  const dir = writingDir(root, epoch);
  await rm(dir, { recursive: true, force: true });
  await mkdir(dir, { mode: 0o700 });
  return dir;
};

/** All other files are in `writingDir` and on stable storage: from here on it is a checkpoint. */
export const publishCheckpoint = async (
  root: string,
  content: Omit<Manifest, 'magic' | 'version'>,
): Promise<void> => {
  const dir = writingDir(root, content.epoch);
  const manifest = { magic: MANIFEST_MAGIC, version: MANIFEST_VERSION, ...content } as const;
  await writeFileSafely(join(dir, MANIFEST), renderManifest(manifest));
  await rename(dir, epochDir(root, content.epoch));
  await syncDirectory(root);
};

/** In place of the one that is there, atomically. */
export const replaceManifest = async (entry: Entry, manifest: Manifest): Promise<void> => {
  await writeFileSafely(join(entry.dir, entry.isRetired ? RETIRED : MANIFEST), renderManifest(manifest));
};

/** It is no checkpoint any more; others may stand on its RAM. */
export const retireCheckpoint = async (entry: Entry): Promise<void> => {
  await rename(join(entry.dir, MANIFEST), join(entry.dir, RETIRED));
  await syncDirectory(entry.dir);
};

/** One that is no checkpoint, or on which none stands: what is left of a removal that was cut off is none either. */
export const removeCheckpoint = async (entry: Entry): Promise<void> => {
  // Without its manifest first: half of it must not look like a damaged checkpoint.
  const doomed = join(entry.dir, '..', `.writing-${padded(entry.epoch)}`);
  await rm(doomed, { recursive: true, force: true });
  await rename(entry.dir, doomed);
  await rm(doomed, { recursive: true, force: true });
};

/** Files of an entry that its manifest does not name: of a merge that was cut off, or completed. */
export const removeStrayFiles = async (entry: Entry): Promise<void> => {
  const { ram, device, disks } = entry.manifest;
  const named = new Set([
    ...[MANIFEST, RETIRED, ram.file, ram.index],
    ...(entry.isRetired ? [] : [device.file, ...disks.map(({ file }) => file)]),
  ]);
  for (const name of await readdir(entry.dir)) {
    if (!named.has(name)) await rm(join(entry.dir, name), { recursive: true, force: true });
  }
};

/** What a run that was cut off was writing, or removing. */
export const removeUnfinished = async (root: string): Promise<number> => {
  const names = (await readdir(root)).filter((name) => WRITING_NAME.test(name));
  for (const name of names) await rm(join(root, name), { recursive: true, force: true });
  return names.length;
};

/** No number is used twice, also where what had it cannot be read. */
export const nextEpoch = ({ entries, broken }: Listing): number =>
  Math.max(0, ...entries.map(({ epoch }) => epoch), ...broken.map(({ epoch }) => epoch)) + 1;
