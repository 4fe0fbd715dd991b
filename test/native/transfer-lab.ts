/** A region in shared memory, both ends of the library, and what must be left behind: nothing. */

import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../lib/native.js';
import {
  type OpenReceiverOptions,
  openReceiver,
  type PageReceiver,
  type Received,
} from '../../lib/transfer/receiver.js';
import type { PageRange } from '../../lib/transfer/runs.js';
import { type OpenSenderOptions, openSender, type PageSender } from '../../lib/transfer/sender.js';

export const pageBytes = 4096;

/** A directory on tmpfs with a region file in it. */
export class Region implements Disposable {
  readonly directory = mkdtempSync('/dev/shm/holdfast-transfer-');
  readonly path = join(this.directory, 'region');
  readonly replicaPath = join(this.directory, 'replica');
  readonly bytes: number;
  readonly #fd: number;

  constructor(readonly pages: number) {
    this.bytes = pages * pageBytes;
    this.#fd = openSync(this.path, 'wx+');
    writeSync(this.#fd, new Uint8Array(this.bytes));
  }

  /** Fills the pages with `content`, repeated; an empty one makes them zero. */
  write({ firstPage, pages }: PageRange, content: Uint8Array): void {
    const bytes = Buffer.alloc(pages * pageBytes);
    if (content.length > 0) bytes.fill(content);
    writeSync(this.#fd, bytes, 0, bytes.length, firstPage * pageBytes);
  }

  /** Every page different, none zero. */
  randomize(range: PageRange): void {
    this.write(range, randomBytes(range.pages * pageBytes));
  }

  async differences(): Promise<readonly number[]> {
    return await native.compareFiles(this.path, this.replicaPath, this.bytes, pageBytes, 10);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export interface TransferPairOptions {
  readonly sender?: Partial<OpenSenderOptions>;
  readonly receiver?: Partial<OpenReceiverOptions>;
}

/** Both ends, connected over loopback. */
export class TransferPair implements AsyncDisposable {
  private constructor(
    readonly sender: PageSender,
    readonly receiver: PageReceiver,
  ) {}

  static async open(region: Region, options: TransferPairOptions = {}): Promise<TransferPair> {
    const receiver = await openReceiver({
      listen: { host: '127.0.0.1' },
      file: region.replicaPath,
      regionBytes: region.bytes,
      ...options.receiver,
    });
    try {
      const { port, token } = receiver;
      const sender = await openSender({
        to: { host: '127.0.0.1', port, token },
        file: region.path,
        regionBytes: region.bytes,
        ...options.sender,
      });
      return new TransferPair(sender, receiver);
    } catch (error) {
      await receiver.close();
      throw error;
    }
  }

  /** The next transfer, once it is in the file. */
  async received(): Promise<Received> {
    for await (const received of this.receiver) {
      await received.applied;
      return received;
    }
    throw new Error('the receiver ended');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.sender.close();
    await this.receiver.close();
  }
}

export interface Footprint {
  readonly native: ReturnType<typeof native.debugCounters>;
  readonly descriptors: number;
  readonly threads: number;
}

/** Descriptors and threads of this process. */
export const footprint = (): Footprint => ({
  native: native.debugCounters(),
  descriptors: readdirSync('/proc/self/fd').length,
  threads: readdirSync('/proc/self/task').length,
});

/** Pinned memory of this process, which the kernel gives back a moment after a ring was closed. */
export const nothingPinned = async (): Promise<void> => {
  const pinnedKiB = (): number =>
    Number(/VmPin:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
  const deadline = Date.now() + 5_000;
  while (pinnedKiB() !== 0) {
    if (Date.now() > deadline) throw new Error(`${pinnedKiB()} KiB are still pinned`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
