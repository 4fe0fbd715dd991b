/**
 * Who works in a directory of checkpoints: one writer, any number of readers. Each is a file with a process's
 * identity; one whose process has ended does not count, so nothing has to be cleaned up after a SIGKILL.
 *
 * A merge changes files in place. Whoever reads says so first, and then looks what there is; whoever merges
 * first gives the lower checkpoint up, and then looks who reads. So one of the two always sees the other.
 */
import { randomUUID } from 'node:crypto';
import { link, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError, toHoldfastError } from '../errors.js';
import { identifyProcess, isAlive, type ProcessIdentity } from '../vm/process.js';

const CLAIMS = '.holders';
const WRITER = 'writer';

export interface Claim extends AsyncDisposable {
  release(): Promise<void>;
}

/** @throws ConfigError if another process writes there */
export const claimWriting = async (root: string): Promise<Claim> => {
  const dir = join(root, CLAIMS);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const path = join(dir, WRITER);
  const mine = await writeIdentity(join(dir, `.${randomUUID()}`));
  try {
    for (;;) {
      try {
        await link(mine, path); // whole, and only if there is none
        return claimOf(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const holder = await holderOf(path);
      if (holder !== undefined) {
        throw new ConfigError(`process ${holder.pid} writes checkpoints to ${root} already`, {
          cure: 'End it (Ctrl-C, SIGTERM), or give this VM a directory of its own.',
        });
      }
      await rm(path, { force: true });
    }
  } finally {
    await rm(mine, { force: true });
  }
};

export const claimReading = async (root: string): Promise<Claim> => {
  const dir = join(root, CLAIMS);
  const id = randomUUID();
  const path = join(dir, `reader-${id}`);
  try {
    // Not with its parents: what is only read must not come into being.
    await mkdir(dir, { mode: 0o700 }).catch(unlessThere);
    await rename(await writeIdentity(join(dir, `.${id}`)), path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new ConfigError(`there is no directory ${root}`, { cause: error });
    // On a medium that cannot be written nobody merges either.
    if (code !== 'EROFS') throw toHoldfastError(error, root);
  }
  return claimOf(path);
};

/** Whether a living process reads there. */
export const hasReaders = async (root: string): Promise<boolean> => {
  const dir = join(root, CLAIMS);
  const names = await readdir(dir).catch(() => [] as string[]);
  for (const name of names.filter((each) => each.startsWith('reader-'))) {
    if ((await holderOf(join(dir, name))) !== undefined) return true;
    await rm(join(dir, name), { force: true });
  }
  return false;
};

const unlessThere = (error: NodeJS.ErrnoException): void => {
  if (error.code !== 'EEXIST') throw error;
};

const writeIdentity = async (path: string): Promise<string> => {
  await writeFile(path, JSON.stringify(await identifyProcess(process.pid)), { mode: 0o600 });
  return path;
};

const claimOf = (path: string): Claim => {
  const release = (): Promise<void> => rm(path, { force: true });
  return { release, [Symbol.asyncDispose]: release };
};

/** Undefined: gone. */
const holderOf = async (path: string): Promise<ProcessIdentity | undefined> => {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    const identity = JSON.parse(text) as ProcessIdentity;
    return (await isAlive(identity)) ? identity : undefined;
  } catch {
    return undefined;
  }
};
