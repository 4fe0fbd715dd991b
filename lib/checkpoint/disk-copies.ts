/** The copies of disks that lie in a checkpoint: checked, and copied to where a restored VM has them. */
import { readdir, readlink, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError, DamagedError, toHoldfastError } from '../errors.js';
import { native } from '../native.js';
import { type Replacement, replaceText } from '../vm/command-line.js';
import type { Entry } from './directory.js';
import { OVERLAY_SUFFIX } from './overlay-file.js';

/** Reads them all. @throws DamagedError */
export const checkDisks = async ({ dir, manifest }: Pick<Entry, 'dir' | 'manifest'>): Promise<void> => {
  for (const { file, bytes, digest } of manifest.disks) {
    const path = join(dir, file);
    const { size } = await stat(path).catch((error: unknown) => {
      throw toHoldfastError(error, 'a disk of the checkpoint');
    });
    if (size !== bytes) {
      throw new DamagedError(`${path} is damaged: it has ${size} bytes instead of ${bytes}`);
    }
    if ((await native.hashFile(path, bytes)) !== digest) {
      throw new DamagedError(`${path} is damaged: its checksum does not match`);
    }
  }
};

export interface PlaceDisksOptions {
  readonly replace?: readonly Replacement[] | undefined;
  readonly overwriteDisks?: boolean | undefined;
}

export interface PlacedDisks {
  readonly paths: readonly string[];
  /** Takes them away again: the VM did not start. */
  remove(): Promise<void>;
}

/**
 * Copies a checkpoint's disks, checked, to where the VM's command line has them.
 * @throws ConfigError if something is there already; DamagedError; NoSpaceError
 */
export const placeDisks = async (
  entry: Pick<Entry, 'dir' | 'epoch' | 'manifest'>,
  { replace = [], overwriteDisks = false }: PlaceDisksOptions,
): Promise<PlacedDisks> => {
  const { disks } = entry.manifest;
  const targets = disks.map(({ image }) => replaceText(image, replace));
  for (const target of targets) {
    if (await exists(target + OVERLAY_SUFFIX)) throw hasOverlay(target);
    if (!(await exists(target))) continue;
    if (overwriteDisks) {
      await assertUnused(target);
      continue;
    }
    throw new ConfigError(`the image ${target} is there already; checkpoint ${entry.epoch} has its own`, {
      cure: `--replace ${target}=/another/place puts the checkpoint's there; --overwrite-disks on replaces it, if no VM uses it.`,
    });
  }
  await checkDisks(entry);
  const done: string[] = [];
  const remove = async (): Promise<void> => {
    // What was overwritten is gone either way: an image of the checkpoint is better than none.
    if (overwriteDisks) return;
    for (const path of done) await rm(path, { force: true });
  };
  try {
    for (const [index, { file }] of disks.entries()) {
      const target = targets[index]!;
      const aside = `${target}.holdfast-restoring`;
      await rm(aside, { force: true });
      await native.copySparse({ from: join(entry.dir, file), to: aside });
      await rename(aside, target);
      done.push(target);
    }
  } catch (error) {
    await remove();
    throw toHoldfastError(error, 'a disk of the checkpoint');
  }
  return { paths: done, remove };
};

/** A VM that has it open would go on writing to a file without a name. @throws ConfigError */
const assertUnused = async (image: string): Promise<void> => {
  const { dev, ino } = await stat(image);
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [] as string[])) {
      const path = `/proc/${pid}/fd/${fd}`;
      if (!(await readlink(path).catch(() => '')).startsWith('/')) continue;
      const held = await stat(path).catch(() => undefined);
      if (held?.dev !== dev || held.ino !== ino) continue;
      throw new ConfigError(`the image ${image} is in use, by process ${pid}`, {
        cure: `End that VM first, or put the checkpoint's elsewhere: --replace ${image}=/another/place.`,
      });
    }
  }
};

/** Its writes, committed later, would damage what is put beneath it now. */
const hasOverlay = (image: string): ConfigError =>
  new ConfigError(`${image}${OVERLAY_SUFFIX} is there, with writes for another image than the checkpoint's`, {
    cure: `A VM is being checkpointed there, or ended meanwhile. If nobody needs what it wrote, remove it; or --replace ${image}=/another/place.`,
  });

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
