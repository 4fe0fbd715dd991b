/**
 * Who works in a directory of checkpoints: one writer, any number of readers. The writer holds a lock, each reader
 * a file with its process's identity; one whose process has ended does not count, so nothing has to be cleaned up
 * after a SIGKILL.
 *
 * A merge changes files in place. Whoever reads says so first, and then looks what there is; whoever merges
 * first gives the lower checkpoint up, and then looks who reads. So one of the two always sees the other.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError, toHoldfastError } from '../errors.js';
import { native } from '../native.js';
import { identifyProcess, isAlive, type ProcessIdentity } from '../vm/process.js';

const CLAIMS = '.holders';
const WRITER = 'writer';

export interface Claim extends AsyncDisposable {
  release(): Promise<void>;
}

/**
 * The lock is what counts: the kernel gives it to one, and takes it back from a process that ends. What the file
 * says is for whoever is refused. It is never removed, for a lock on a file that has no name any more is no lock.
 * @throws ConfigError if another process writes there
 */
export const claimWriting = async (root: string): Promise<Claim> => {
  const dir = join(root, CLAIMS);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const path = join(dir, WRITER);
  const file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    if (!native.lockFile(file.fd)) {
      const holder = await holderOf(path);
      const who = holder === undefined ? 'another process' : `process ${holder.pid}`;
      throw new ConfigError(`${who} writes checkpoints to ${root} already`, {
        cure: 'End it (Ctrl-C, SIGTERM), or give this VM a directory of its own.',
      });
    }
    await file.truncate();
    await file.writeFile(JSON.stringify(await identifyProcess(process.pid)));
  } catch (error) {
    await file.close();
    throw error;
  }
  let closing: Promise<void> | undefined;
  return claimOf(() => (closing ??= file.close()));
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
  return claimOf(() => rm(path, { force: true }));
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

const claimOf = (release: () => Promise<void>): Claim => ({ release, [Symbol.asyncDispose]: release });

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
