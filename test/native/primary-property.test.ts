/**
 * The engine over a real QEMU whose memory the test writes: after every commit the replica is guest RAM,
 * whatever was staged and sent ahead, given up, refused and lost before it. Seeded, so that a failure repeats.
 */

import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { native, type SenderStrategy } from '../../lib/native.js';
import { Pair } from './primary-pair.js';
import { pageBytes, SmallQemu } from './primary-qemu.js';

const STEPS = 120;
const PAGES = 600; // few, so that they meet again
const strategies: readonly SenderStrategy[] = ['copy', 'splice', 'vmsplice', 'zerocopy', 'uring', 'sendfile'];

let qemu: SmallQemu;
beforeAll(async () => {
  qemu = await SmallQemu.start();
  await qemu.qmp('stop');
});
afterAll(async () => {
  await qemu.kill();
});
afterEach(() => {
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

/** Marsaglia's xorshift: whole numbers below `bound`. */
const randomOf = (seed: number) => {
  let state = seed;
  return (bound: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % bound;
  };
};

/** What a random walk does to one pair; every step leaves it able to go on. */
class Walk {
  readonly #pair: Pair;
  readonly #random: (bound: number) => number;
  #epoch = 1;
  #seed = 0;
  commits = 0;
  aheadPages = 0;
  supersededBytes = 0;

  constructor(pair: Pair, random: (bound: number) => number) {
    this.#pair = pair;
    this.#random = random;
  }

  write(): void {
    const pages = Array.from({ length: this.#random(60) }, () => this.#random(PAGES));
    if (this.#random(4) === 0) qemu.clearPages(pages);
    else qemu.writePages(pages, ++this.#seed);
  }

  async slice(): Promise<void> {
    await this.#pair.engine.prestage({
      epoch: this.#epoch,
      send: this.#random(3) > 0,
      strategy: this.#strategy(),
      bytesMax: this.#random(3) === 0 ? this.#random(20) * pageBytes : undefined,
    });
  }

  async commit(): Promise<void> {
    const mode = this.#random(4) === 0 ? 'direct' : 'staged';
    const done = await this.#pair.epoch(this.#epoch, mode, this.#strategy());
    expect(done.pages + done.zeroPages).toBe(done.dirtyPages + done.supersededBytes / pageBytes);
    await this.#pair.applied(this.#epoch);
    expect(await this.#pair.differences()).toEqual([]);
    this.#epoch++;
    this.commits++;
    this.aheadPages += done.aheadPages;
    this.supersededBytes += done.supersededBytes;
  }

  /** Given up, captured or not, as another epoch or to be sent anew under its number. */
  async giveUp(): Promise<void> {
    if (this.#random(2) === 0) await this.#pair.engine.capture({ epoch: this.#epoch, mode: 'staged' });
    await this.#pair.engine.abort(this.#epoch);
    this.#epoch += this.#random(2);
  }

  async failToSend(): Promise<void> {
    await this.#pair.engine.capture({ epoch: this.#epoch, mode: 'staged' });
    const device = { path: `${this.#pair.devicePath}-missing`, skipBytes: 0 };
    await expect(this.#pair.engine.send({ epoch: this.#epoch, device })).rejects.toMatchObject({
      syscall: 'open',
    });
  }

  /** The connection is lost, now and then with an epoch captured; the next session begins with a base. */
  async lose(): Promise<void> {
    const { engine, receiver } = this.#pair;
    const captured = this.#random(2) === 0;
    if (captured) await engine.capture({ epoch: this.#epoch, mode: 'staged' });
    if (this.#random(2) === 0) await engine.disconnect();
    await receiver.closeSession();
    if (captured) {
      await expect(this.#pair.send(this.#epoch)).rejects.toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
    }
    this.write();
    await this.#pair.connect();
  }

  #strategy(): SenderStrategy {
    return strategies[this.#random(strategies.length)]!;
  }
}

test.each([1, 2, 3, 4])('a random walk, seed %i: each commit is guest RAM', async (seed) => {
  const random = randomOf(seed * 7919);
  const pair = new Pair(qemu, { streams: 1 + (seed % 3), stagingBytesMax: 200 * pageBytes });
  try {
    await pair.engine.attach();
    await pair.connect();
    const walk = new Walk(pair, random);
    for (let step = 0; step < STEPS; step++) {
      walk.write();
      const next = random(20);
      if (next < 11) await walk.slice();
      else if (next < 17) await walk.commit();
      else if (next < 18) await walk.giveUp();
      else if (next < 19) await walk.failToSend();
      else if (random(4) === 0) await walk.lose();
    }
    await walk.commit();
    // A walk without any of these would prove nothing.
    expect(walk.commits).toBeGreaterThan(STEPS / 10);
    expect(walk.aheadPages).toBeGreaterThan(STEPS);
    expect(walk.supersededBytes).toBeGreaterThan(20 * pageBytes);
  } finally {
    await pair.close();
  }
});
