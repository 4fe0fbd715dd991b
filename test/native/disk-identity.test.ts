/**
 * At a commit the backup's images are, byte for byte, what the primary's were at the boundary: two disks,
 * three NBD clients that write, zero, trim and flush at random, also over each other, also while the epoch
 * before is still on its way. Seeded, so that a failure repeats.
 */

import { open } from 'node:fs/promises';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { randomSource } from '../campaign/random.js';
import { DiskPair, diskBytes, NbdWriter } from './disk-pair.js';
import { SmallQemu } from './primary-qemu.js';

const EPOCHS = 200;
const SECTOR_BYTES = 512;
const REQUEST_BYTES_MAX = 96 * 1024;
const BATCH_MAX = 12;

let qemu: SmallQemu;
let pair: DiskPair;
let writers: NbdWriter[];
beforeAll(async () => {
  qemu = await SmallQemu.start();
  await qemu.qmp('stop');
});
afterAll(async () => {
  await qemu.kill();
});
beforeEach(async () => {
  pair = await DiskPair.start(qemu);
  const [first, second] = pair.servers;
  // Two connections to one of the disks.
  writers = [first!, first!, second!].map((server) => new NbdWriter(server));
});
afterEach(async () => {
  for (const writer of writers) await writer.end();
  await pair.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

class Requests {
  readonly #random: () => number;
  #pattern = 0;

  constructor(seed: number) {
    this.#random = randomSource(seed);
  }

  /** Commands of qemu-io's: several under way at a time, few enough offsets that they meet. */
  batch(): string[] {
    return Array.from({ length: this.#below(BATCH_MAX + 1) }, () => this.#one());
  }

  #one(): string {
    const length = SECTOR_BYTES * (1 + this.#below(REQUEST_BYTES_MAX / SECTOR_BYTES));
    const offset = SECTOR_BYTES * this.#below((diskBytes - length) / SECTOR_BYTES + 1);
    const range = `${offset} ${length}`;
    this.#pattern = (this.#pattern % 255) + 1;
    const kind = this.#below(12);
    if (kind === 0) return `discard -q ${range}`;
    if (kind === 1) return `aio_write -q -z ${range}`;
    if (kind === 2) return `aio_write -q -z -u ${range}`;
    if (kind === 3) return 'flush';
    return `aio_write -q ${kind === 4 ? '-f ' : ''}-P ${this.#pattern} ${range}`;
  }

  #below(bound: number): number {
    return Math.floor(this.#random() * bound);
  }
}

const writeAll = async (requests: Requests): Promise<void> => {
  await Promise.all(writers.map((writer) => writer.run(requests.batch())));
};

test(`${EPOCHS} epochs: each replica is its disk at the boundary`, { timeout: 180_000 }, async () => {
  const requests = new Requests(11);
  await writeAll(requests);
  await pair.connect();
  let diskBytesLogged = 0;
  for (let epoch = 1; epoch <= EPOCHS; epoch += 1) {
    await writeAll(requests);
    pair.snapshot();
    diskBytesLogged += (await pair.capture(epoch)).diskBytes;
    // What is written from here on is the next epoch's, whenever it reaches the backup.
    await Promise.all([pair.send(epoch), writeAll(requests)]);
    await pair.applied(epoch);
    expect(await pair.differences(), `epoch ${epoch}`).toEqual([]);
  }
  // Writers that did little would prove nothing.
  expect(diskBytesLogged).toBeGreaterThan(EPOCHS * REQUEST_BYTES_MAX);
  for (const { copiedBytes, loggedBytes, ringBytes } of pair.engine.diskStats()) {
    expect(copiedBytes).toBe(0);
    // The rings went round several times.
    expect(loggedBytes).toBeGreaterThan(4 * ringBytes);
  }
});

test('the check can fail: a write that no log has is found', { timeout: 60_000 }, async () => {
  await pair.connect();
  const [writer] = writers;
  const [server] = pair.servers;
  await writer!.run(['write -q -P 1 1M 4k']);
  const image = await open(server!.imagePath, 'r+');
  await image.write(Buffer.from([2]), 0, 1, 2 << 20);
  await image.close();
  pair.snapshot();
  await pair.capture(1);
  await pair.send(1);
  await pair.applied(1);
  expect(await pair.differences()).toEqual([`${server!.id}:${(2 << 20) / 4096}`]);
});
