/**
 * The names that only one of two QEMUs can have: sockets on which it listens, its pid file.
 *
 *   keep     each old name gets a second one (a link): the old QEMU's socket stays reachable by it
 *   take     the new QEMU's are renamed over the old ones, each at once
 *   giveBack the old ones are renamed back
 *   settle   the second names go
 *
 * A listening socket is found by its inode, whatever it is called; only its own QEMU unlinks it at its end, by the
 * name that it was bound by: so the old QEMU must be killed, for it would take away the new one's.
 */
import { link, rename, rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { MovedName } from './command-line.js';

const KEPT = '.old';

interface Name {
  readonly path: string;
  readonly temporary: string;
  readonly kept: string;
}

export class HandoffNames {
  readonly #names: readonly Name[];
  #taken = false;

  constructor(moves: readonly MovedName[], cwd: string) {
    this.#names = moves.map(({ path, temporary }) => {
      const absolute = resolve(cwd, path);
      return { path: absolute, temporary: resolve(cwd, temporary), kept: absolute + KEPT };
    });
  }

  async keep(): Promise<void> {
    await this.#each(async ({ path, kept }) => {
      await rm(kept, { force: true });
      await link(path, kept).catch(unlessAbsent); // somebody has removed a name that nobody uses
    });
  }

  async take(): Promise<void> {
    this.#taken = true;
    await this.#each(({ path, temporary }) => rename(temporary, path));
  }

  async giveBack(): Promise<void> {
    if (this.#taken) await this.#each(({ path, kept }) => rename(kept, path).catch(unlessAbsent));
    this.#taken = false;
  }

  /** Whatever of the second and of the temporary names is left. */
  async settle(): Promise<void> {
    await this.#each(async ({ temporary, kept }) => {
      await rm(temporary, { force: true });
      await rm(kept, { force: true });
    });
  }

  async #each(work: (name: Name) => Promise<void>): Promise<void> {
    await Promise.all(this.#names.map(work));
  }
}

const unlessAbsent = (error: NodeJS.ErrnoException): void => {
  if (error.code !== 'ENOENT') throw error;
};
