/**
 * An image whose disk misbehaves: nbdkit serves the bytes through its own filters, nbdfuse makes a file of it.
 * Whoever opens the file meets the filters below himself, as he would meet a bad disk.
 *
 *   disk server ─ pwrite, fdatasync ─► nbdfuse's file ─► nbdkit: error, delay, cache … ─► bytesPath
 */
import { mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { execToEnd, LabProcess } from '../lab/process.js';
import { waitFor } from '../lab/wait.js';

export interface FilteredImageOptions {
  readonly bytes: number;
  /** From above to below. */
  readonly filters: readonly string[];
  /** Theirs. @param trigger file while which exists the error filter fails requests */
  readonly settings: (trigger: string) => readonly string[];
}

export class FilteredImage implements AsyncDisposable {
  readonly path: string;
  /** The same without filters. */
  readonly bytesPath: string;
  readonly #directory: string;
  #server: LabProcess | undefined;

  private constructor(directory: string) {
    this.#directory = directory;
    this.path = join(directory, 'image');
    this.bytesPath = join(directory, 'bytes');
  }

  /** @returns undefined where the kernel has no file systems of user space */
  static async make({ bytes, filters, settings }: FilteredImageOptions): Promise<FilteredImage | undefined> {
    const image = new FilteredImage(mkdtempSync('/dev/shm/holdfast-image-'));
    for (const path of [image.path, image.bytesPath]) writeFileSync(path, '');
    truncateSync(image.bytesPath, bytes);
    const nbdkit = ['nbdkit', '--single', '--exit-with-parent', ...filters.map((name) => `--filter=${name}`)];
    const server = await LabProcess.start('nbdfuse', [
      ...[image.path, '--command', ...nbdkit, 'file', image.bytesPath],
      ...settings(image.#trigger),
    ]);
    image.#server = server;
    await waitFor('the image to be mounted', () => !server.running || statSync(image.path).size === bytes);
    if (server.running) return image;
    await image[Symbol.asyncDispose]();
    return undefined;
  }

  fail(): void {
    writeFileSync(this.#trigger, '');
  }
  heal(): void {
    rmSync(this.#trigger);
  }

  get #trigger(): string {
    return join(this.#directory, 'trigger');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await execToEnd('umount', ['--lazy', this.path], { check: false });
    await this.#server?.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
