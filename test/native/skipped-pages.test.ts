/** Pages that the guest writes again before a base round sends them: left out of it, and never lost. */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { type BaseRoundResult, native, type SenderStrategy } from '../../lib/native.js';
import { Pair, type PairOptions } from './primary-pair.js';
import { pageBytes, SmallQemu, until } from './primary-qemu.js';
import { SlowLink } from './slow-link.js';

const RAM_PAGES = (64 * 2 ** 20) / pageBytes;
/** Carried before the link stalls. */
const STALL_BYTES = 2 ** 20;
/** Beyond all that the kernel's buffers take while the link stalls. */
const LATE_PAGE = RAM_PAGES - 2_000;
/** Longer than a round sends without looking (RoundPace::kLookAfterMs), and than looks are then allowed to take. */
const STALL_MS = 200;

let qemu: SmallQemu;
beforeAll(async () => {
  qemu = await SmallQemu.start();
  await qemu.qmp('stop');
  qemu.writePages(Array(RAM_PAGES).keys(), 1);
});
afterAll(async () => {
  await qemu.kill();
});
afterEach(() => {
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

interface SlowPair extends AsyncDisposable {
  readonly pair: Pair;
  readonly link: SlowLink;
}

const slowPair = async (options: PairOptions, bytes: number): Promise<SlowPair> => {
  let link: SlowLink | undefined;
  const pair = new Pair(qemu, {
    ...options,
    through: async (port) => {
      link = await SlowLink.to(port, bytes);
      return link.port;
    },
  });
  await pair.engine.attach();
  await pair.dial();
  return {
    pair,
    link: link!,
    [Symbol.asyncDispose]: async () => {
      await pair.close();
      await link![Symbol.asyncDispose]();
    },
  };
};

/** The first round, of which `pages` are written again before it gets to them. */
const interruptedRound = async (
  { pair, link }: SlowPair,
  pages: readonly number[],
): Promise<BaseRoundResult> => {
  const under = pair.engine.baseRound({ first: true });
  await until('the link to stall', () => link.stalled);
  await sleep(STALL_MS);
  qemu.writePages(pages, 7);
  link.goOn();
  return await under;
};

const late = [LATE_PAGE, LATE_PAGE + 1, LATE_PAGE + 700];

const ways: readonly (readonly [SenderStrategy, number])[] = [
  ['copy', 1],
  ['sendfile', 1],
  ['splice', 3],
  ['uring', 2],
];

test.each(ways)(
  '01 by %s over %i streams: left out of the round, and sent by the next',
  async (strategy, streams) => {
    await using slow = await slowPair({ strategy, streams }, STALL_BYTES);
    const { pair } = slow;
    const first = await interruptedRound(slow, late);
    expect(first).toMatchObject({ skippedPages: late.length, dirtyPages: late.length });
    expect(first.pages + first.zeroPages + first.skippedPages).toBe(RAM_PAGES);
    expect(first.lookMs).toBeGreaterThan(0);
    expect(first.lookMs).toBeLessThan(first.sendMs);
    expect(await pair.differences()).toEqual(late);
    const second = await pair.engine.baseRound({ first: false });
    expect(second).toMatchObject({ pages: late.length, skippedPages: 0, dirtyPages: 0 });
    await pair.epoch(1, 'direct');
    await pair.applied(1);
    expect(await pair.differences()).toEqual([]);
  },
);

test.each(['direct', 'staged'] as const)(
  '02 left out of the last round: in the %s epoch after it',
  async (mode) => {
    await using slow = await slowPair({}, STALL_BYTES);
    const { pair } = slow;
    expect(await interruptedRound(slow, late)).toMatchObject({ skippedPages: late.length });
    expect(await pair.epoch(1, mode)).toMatchObject({ dirtyPages: late.length, pages: late.length });
    await pair.applied(1);
    expect(await pair.differences()).toEqual([]);
  },
);

test('03 pages that are written all the time, in every round: the last content arrives', async () => {
  await using slow = await slowPair({ streams: 2 }, STALL_BYTES);
  const { pair, link } = slow;
  link.goOn(200_000);
  let seed = 10;
  const writing = setInterval(() => {
    const first = (seed * 7_919) % RAM_PAGES;
    qemu.writePages(
      Array.from({ length: 300 }, (_, index) => (first + index * 53) % RAM_PAGES),
      ++seed,
    );
  }, 5);
  const rounds: BaseRoundResult[] = [];
  try {
    for (let round = 0; round < 4; round++) rounds.push(await pair.engine.baseRound({ first: round === 0 }));
  } finally {
    clearInterval(writing);
  }
  for (const { skippedPages, dirtyPages } of rounds) expect(skippedPages).toBeLessThanOrEqual(dirtyPages);
  expect(rounds[0]!.skippedPages).toBeGreaterThan(300);
  expect(await pair.epoch(1, 'direct')).toMatchObject({ dirtyPages: expect.any(Number) });
  await pair.applied(1);
  expect(await pair.differences()).toEqual([]);
});
