/**
 * Random transfers by every strategy, with random interruptions, against a
 * model of the receiver's file: what was acknowledged is there, once and in
 * order; what was not leaves no trace; and nothing is left behind.
 */

import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { unavailableSenders } from '../../lib/send/sender-availability.js';
import { senderStrategies } from '../../lib/send/sender-choice.js';
import type { Received } from '../../lib/transfer/receiver.js';
import type { PageRange } from '../../lib/transfer/runs.js';
import { footprint, nothingPinned, pageBytes, Region, TransferPair } from './transfer-lab.js';

const unavailable = unavailableSenders(native.probeSenders());
const strategies = senderStrategies.filter((strategy) => !unavailable.has(strategy));

const regionPages = 96;
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

interface Step {
  readonly runs: readonly PageRange[];
  /** 0: all zero. */
  readonly fill: number;
  readonly metadata: Uint8Array;
}

/** Alternating gaps and runs. */
const runsArbitrary = fc
  .array(fc.tuple(fc.nat(12), fc.integer({ min: 1, max: 40 })), { maxLength: 12 })
  .map((lengths) => {
    const runs: PageRange[] = [];
    let firstPage = 0;
    for (const [gap, wanted] of lengths) {
      firstPage += gap;
      const pages = Math.min(wanted, regionPages - firstPage);
      if (pages <= 0) break;
      runs.push({ firstPage, pages });
      firstPage += pages;
    }
    return runs;
  });

const stepArbitrary: fc.Arbitrary<Step> = fc.record({
  runs: runsArbitrary,
  fill: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 255 })),
  metadata: fc.uint8Array({ maxLength: 64 }),
});

const setupArbitrary = fc.record({
  strategy: fc.constantFrom('auto' as const, ...strategies),
  staged: fc.boolean(),
  streams: fc.constantFrom(1, 1, 2, 3),
  verify: fc.boolean(),
  pageSize: fc.constantFrom(4096, 4096, 16384),
});

type Setup = typeof setupArbitrary extends fc.Arbitrary<infer T> ? T : never;

/** The receiver's file after each transfer. */
class Model {
  readonly after: Buffer[];
  readonly #region: Region;

  constructor(region: Region) {
    this.#region = region;
    this.after = [Buffer.alloc(region.bytes)];
  }

  /** Changes the region and says what the file must be once `runs` have arrived. */
  write(step: Step, pageSize: number): readonly PageRange[] {
    const scale = pageSize / pageBytes;
    const runs = step.runs.flatMap(({ firstPage, pages }) => {
      const first = Math.ceil(firstPage / scale);
      const count = Math.floor((firstPage + pages) / scale) - first;
      return count > 0 ? [{ firstPage: first, pages: count }] : [];
    });
    const next = Buffer.from(this.after.at(-1)!);
    for (const { firstPage, pages } of runs) {
      const range = { firstPage: firstPage * scale, pages: pages * scale };
      const content =
        step.fill === 0 ? new Uint8Array() : Uint8Array.of(step.fill, this.after.length, 1, 2, 3, 4, 5);
      this.#region.write(range, content);
      next.set(
        readFileSync(this.#region.path).subarray(firstPage * pageSize, (firstPage + pages) * pageSize),
        firstPage * pageSize,
      );
    }
    this.after.push(next);
    return runs;
  }
}

const open = async (
  region: Region,
  { pageSize, verify, ...sender }: Setup,
  aheadMax = 0,
): Promise<TransferPair> =>
  await TransferPair.open(region, {
    sender: { ...sender, pageSize, verify },
    receiver: { pageSize, verify, aheadMax },
  });

test('every transfer arrives once, in order, whole; the file shows it until the next is taken', async () => {
  const before = footprint();
  await fc.assert(
    fc.asyncProperty(
      setupArbitrary,
      fc.array(stepArbitrary, { minLength: 1, maxLength: 8 }),
      fc.array(fc.nat(3), { minLength: 8, maxLength: 8 }),
      async (setup, steps, delaysMs) => {
        using region = new Region(regionPages);
        await using pair = await open(region, setup);
        const model = new Model(region);
        const consumed = (async () => {
          let id = 0;
          for await (const received of pair.receiver) {
            id += 1;
            expect(received.id).toBe(id);
            await received.applied;
            expect(Buffer.compare(readFileSync(region.replicaPath), model.after[id]!)).toBe(0);
            expect(Buffer.compare(received.metadata, steps[id - 1]!.metadata)).toBe(0);
            if (id === steps.length) return;
            await pause(delaysMs[id - 1]!);
          }
        })();
        for (const step of steps) {
          const runs = model.write(step, setup.pageSize);
          const transfer = pair.sender.send(runs, { metadata: step.metadata });
          await transfer.staged; // direct: once all has arrived
          const result = transfer;
          if (!setup.staged) {
            const pages = runs.reduce((sum, run) => sum + run.pages, 0);
            expect((await result).pages + (await result).zeroPages).toBe(pages);
          }
        }
        await consumed;
      },
    ),
    { numRuns: 60 },
  );
  expect(footprint()).toEqual(before);
  await nothingPinned();
});

test('interrupted anywhere: what is acknowledged is whole, what is not leaves no trace', async () => {
  const before = footprint();
  await fc.assert(
    fc.asyncProperty(
      setupArbitrary,
      fc.array(stepArbitrary, { minLength: 1, maxLength: 6 }),
      fc.constantFrom('abort sender', 'close receiver', 'abort receiver'),
      fc.nat(6),
      fc.double({ min: 0, max: 3, noNaN: true }),
      async (setup, steps, interruption, afterSends, delayMs) => {
        using region = new Region(regionPages);
        const abort = new AbortController();
        const signal = abort.signal;
        const { pageSize, verify, ...senderSetup } = setup;
        await using pair = await TransferPair.open(region, {
          sender: { ...senderSetup, pageSize, verify, ...(interruption === 'abort sender' && { signal }) },
          receiver: { pageSize, verify, aheadMax: 256, ...(interruption === 'abort receiver' && { signal }) },
        });
        const interrupt = (): void => {
          if (interruption === 'close receiver') void pair.receiver.close();
          else abort.abort();
        };
        const model = new Model(region);
        const seen: Received[] = [];
        const consumed = (async () => {
          for await (const received of pair.receiver) seen.push(received);
        })().catch((error: { code: string }) => expect(error.code).toBe('HOLDFAST_E_CANCELLED'));

        const acknowledged: number[] = [];
        let failure: { code: string } | undefined;
        for (const [index, step] of steps.entries()) {
          if (index === afterSends) setTimeout(interrupt, delayMs);
          try {
            const sent = await pair.sender.send(model.write(step, pageSize), { metadata: step.metadata });
            acknowledged.push(sent.id);
          } catch (error) {
            failure = error as { code: string };
            break;
          }
        }
        expect(acknowledged).toEqual(acknowledged.map((_, index) => index + 1));
        if (failure !== undefined) {
          const codes = ['HOLDFAST_E_CANCELLED', 'HOLDFAST_E_PEER_LOST'];
          expect(codes).toContain(failure.code);
          // And so it stays.
          await expect(pair.sender.send([])).rejects.toMatchObject({
            code: expect.stringMatching(/CANCELLED|PEER_LOST/),
          });
        }
        if (interruption !== 'abort sender') {
          await pair.receiver.close();
          await consumed;
          return;
        }
        // The last one may have been complete, and only its acknowledgement unread.
        await pair.sender.close();
        await untilSettled(() => seen.length >= acknowledged.length);
        await Promise.all(seen.map(({ applied }) => applied));
        expect(seen.map(({ id }) => id).slice(0, acknowledged.length)).toEqual(acknowledged);
        expect(seen.length - acknowledged.length).toBeLessThanOrEqual(failure === undefined ? 0 : 1);
        const content = readFileSync(region.replicaPath);
        expect(Buffer.compare(content, model.after[seen.length]!)).toBe(0);
        await pair.receiver.close();
        await consumed;
      },
    ),
    { numRuns: 80 },
  );
  expect(footprint()).toEqual(before);
  await nothingPinned();
});

/** Polls until it holds and a moment more, in which one transfer too many would show. */
const untilSettled = async (condition: () => boolean): Promise<void> => {
  const deadline = Date.now() + 5_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('not in 5 s');
    await pause(1);
  }
  await pause(2);
};
