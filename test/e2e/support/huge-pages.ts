/** File systems of a test's own, below the lab's tmpfs directory: huge pages of either kind. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Lab } from '../../lab/lab.js';
import { execToEnd } from '../../lab/process.js';

const reservedPath = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';
const readReserved = (): number => Number(readFileSync(reservedPath, 'utf8'));
const writeReserved = (pages: number): void => writeFileSync(reservedPath, String(pages));

export const hugePageBytes = 2 << 20;

/** A tmpfs whose files are on transparent huge pages. */
export class HugeTmpfs implements AsyncDisposable {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async mount(lab: Lab): Promise<HugeTmpfs> {
    const dir = join(lab.sharedMemoryDir, 'thp');
    mkdirSync(dir);
    await execToEnd('mount', ['-t', 'tmpfs', '-o', 'huge=always', 'holdfast-test', dir]);
    return new HugeTmpfs(dir);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await execToEnd('umount', ['--lazy', this.dir], { check: false });
  }
}

/** A hugetlbfs, and huge pages reserved for it. */
export class HugePages implements AsyncDisposable {
  readonly dir: string;
  readonly #reservedBefore: number;
  readonly #giveBack = (): void => writeReserved(this.#reservedBefore);

  private constructor(dir: string, reservedBefore: number) {
    this.dir = dir;
    this.#reservedBefore = reservedBefore;
    process.once('exit', this.#giveBack);
  }

  /** @returns undefined where memory has no room for so many. */
  static async reserve(lab: Lab, bytes: number): Promise<HugePages | undefined> {
    const before = readReserved();
    const wanted = before + Math.ceil(bytes / hugePageBytes);
    writeReserved(wanted);
    if (readReserved() < wanted) {
      writeReserved(before);
      return undefined;
    }
    const pages = new HugePages(join(lab.sharedMemoryDir, 'huge'), before);
    mkdirSync(pages.dir);
    try {
      await execToEnd('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'holdfast-test', pages.dir]);
    } catch (error) {
      await pages[Symbol.asyncDispose]();
      throw error;
    }
    return pages;
  }

  /** Who still holds files there must have ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    await execToEnd('umount', ['--lazy', this.dir], { check: false });
    this.#giveBack();
    process.removeListener('exit', this.#giveBack);
  }
}
