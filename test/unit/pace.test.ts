import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LoadModel } from '../../lib/primary/load-model.js';
import { ASSUMED_INTERVAL_MS, DELAY_BUDGET_MS, Pace, type PaceSettings } from '../../lib/primary/pace.js';

const usual: PaceSettings = {
  minIntervalMs: 2,
  maxIntervalMs: 100,
  pauseBudgetMs: 5,
  seesOutput: true,
  stagingPages: 65_536,
};

/** A guest and a link that are always the same. */
interface Load {
  /** Of the pause: stop, device state and cont; scan. */
  readonly baseMs: number;
  readonly scanMs: number;
  readonly copyMsPerPage: number;
  readonly pagesPerMs: number;
  readonly ackMs: number;
  /** How long after the resume the first output comes; undefined: none. */
  readonly outputAfterMs: number | undefined;
  /** It comes only when the epoch before has been released: somebody waits for replies. */
  readonly repliesOnly: boolean;
  /** Frames per millisecond thereafter. */
  readonly framesPerMs: number;
}

const idle: Load = {
  baseMs: 2,
  scanMs: 0.4,
  copyMsPerPage: 0.0007,
  pagesPerMs: 0.5,
  ackMs: 0.8,
  outputAfterMs: undefined,
  repliesOnly: false,
  framesPerMs: 0,
};

interface Epoch {
  readonly intervalMs: number;
  readonly pauseMs: number;
  readonly trigger: string;
  readonly delayMs: number | undefined;
}

/** So many epochs under this load. */
const play = (settings: PaceSettings, load: Load, count: number): Epoch[] => {
  const model = new LoadModel();
  const pace = new Pace(settings, model);
  const epochs: Epoch[] = [];
  let nowMs = 0;
  let resumedMs = 0;
  let outputMs: number | undefined;
  let trigger = 'first';
  let beganMs = 0;
  for (let epoch = 0; epoch < count; epoch += 1) {
    const intervalMs = nowMs - beganMs;
    beganMs = nowMs;
    pace.began(beganMs);
    const ranMs = beganMs - resumedMs;
    const pages = load.pagesPerMs * ranMs;
    const copyMs = pages * load.copyMsPerPage;
    const pauseMs = 0.7 + Math.max(load.baseMs - 0.7, load.scanMs + copyMs);
    pace.captured(beganMs);
    resumedMs = beganMs + pauseMs;
    pace.resumed(resumedMs);
    const releasedMs = resumedMs + load.ackMs;
    const framesMs = outputMs === undefined ? 0 : beganMs - outputMs;
    model.observe({
      pauseMs,
      deviceMs: load.baseMs - 0.7,
      scanMs: load.scanMs,
      copyMs,
      pausePages: pages,
      dirtyPages: pages,
      ranMs,
      releaseDelayMs: releasedMs - beganMs,
      sentPages: pages,
      sendMs: load.ackMs / 2,
      ackMs: load.ackMs,
      heldFrames: outputMs === undefined ? 0 : 1 + load.framesPerMs * framesMs,
    });
    epochs.push({
      intervalMs,
      pauseMs,
      trigger,
      delayMs: outputMs === undefined ? undefined : releasedMs - outputMs,
    });
    const comesMs =
      load.outputAfterMs === undefined
        ? Number.POSITIVE_INFINITY
        : (load.repliesOnly ? releasedMs : resumedMs) + load.outputAfterMs;
    let due = pace.deadline();
    expect(due.atMs).toBeLessThanOrEqual(beganMs + settings.maxIntervalMs);
    outputMs = undefined;
    if (comesMs < Math.max(due.atMs, releasedMs)) {
      outputMs = comesMs;
      pace.outputWaits(comesMs);
      due = pace.deadline();
    }
    trigger = due.trigger;
    nowMs = Math.max(due.atMs, releasedMs);
  }
  return epochs;
};

const settle = (settings: PaceSettings, load: Load): Epoch[] => play(settings, load, 80).slice(40);

const loads = fc.record({
  baseMs: fc.double({ min: 1, max: 8, noNaN: true }),
  scanMs: fc.double({ min: 0.05, max: 4, noNaN: true }),
  copyMsPerPage: fc.double({ min: 0.0002, max: 0.002, noNaN: true }),
  pagesPerMs: fc.double({ min: 0, max: 400, noNaN: true }),
  ackMs: fc.double({ min: 0.2, max: 30, noNaN: true }),
  outputAfterMs: fc.option(fc.double({ min: 0.01, max: 300, noNaN: true }), { nil: undefined }),
  repliesOnly: fc.boolean(),
  framesPerMs: fc.double({ min: 0, max: 50, noNaN: true }),
});

const settingsOf = fc
  .record({
    minIntervalMs: fc.double({ min: 1, max: 20, noNaN: true }),
    rangeMs: fc.double({ min: 0, max: 500, noNaN: true }),
    pauseBudgetMs: fc.double({ min: 0.5, max: 50, noNaN: true }),
    delayBudgetMs: fc.option(fc.double({ min: 1, max: 100, noNaN: true }), { nil: undefined }),
    seesOutput: fc.boolean(),
    stagingPages: fc.integer({ min: 256, max: 200_000 }),
  })
  .map(({ rangeMs, ...settings }) => ({ ...settings, maxIntervalMs: settings.minIntervalMs + rangeMs }));

describe('the pace, whatever the load', () => {
  it('stays within its bounds, and always ends', () => {
    fc.assert(
      fc.property(settingsOf, loads, (settings, load) => {
        const epochs = play(settings, load, 40);
        for (const [index, { pauseMs }] of epochs.slice(0, -1).entries()) {
          const { intervalMs } = epochs[index + 1]!;
          expect(intervalMs).toBeGreaterThanOrEqual(settings.minIntervalMs - 1e-6);
          // An epoch that is not acknowledged yet puts the next one off.
          const latestMs = Math.max(settings.maxIntervalMs, pauseMs + load.ackMs);
          expect(intervalMs).toBeLessThanOrEqual(latestMs + 1e-6);
        }
      }),
    );
  });

  it('does not oscillate: a steady load is followed steadily', () => {
    fc.assert(
      fc.property(settingsOf, loads, (settings, load) => {
        const lengths = settle(settings, load).map(({ intervalMs }) => intervalMs);
        expect(Math.max(...lengths)).toBeLessThanOrEqual(1.5 * Math.min(...lengths) + 1e-9);
      }),
      { numRuns: 300 },
    );
  });

  it('lets output wait beyond its budget only where bounds, the pause or the guest’s share forbid it', () => {
    fc.assert(
      fc.property(settingsOf, loads, (settings, load) => {
        fc.pre(settings.seesOutput);
        const budgetMs = settings.delayBudgetMs ?? DELAY_BUDGET_MS;
        for (const { delayMs, intervalMs, pauseMs } of settle(settings, load)) {
          if (delayMs === undefined || delayMs <= budgetMs + 0.5) continue;
          const earliestMs = Math.max(settings.minIntervalMs, 2 * pauseMs, pauseMs + load.ackMs);
          // As soon as could be, or at once: what is over the budget is the pause and the acknowledgement.
          const asSoonAsCouldBe = intervalMs <= 1.1 * earliestMs + 0.5;
          const atOnce = delayMs <= pauseMs + load.ackMs + 0.5;
          expect(asSoonAsCouldBe || atOnce).toBe(true);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('leaves the guest half of the time at least, unless the longest interval is too short for that', () => {
    fc.assert(
      fc.property(settingsOf, loads, (settings, load) => {
        const epochs = settle(settings, load);
        for (const [index, { pauseMs }] of epochs.slice(0, -1).entries()) {
          const { intervalMs } = epochs[index + 1]!;
          const wanted = Math.min(2 * pauseMs, settings.maxIntervalMs);
          const assumed = !settings.seesOutput && settings.delayBudgetMs === undefined;
          if (!assumed) expect(intervalMs).toBeGreaterThanOrEqual(0.9 * wanted - 1e-9);
        }
      }),
    );
  });

  it('never puts an epoch off for more dirt, or for earlier output', () => {
    const pages = fc.integer({ min: 0, max: 50_000 });
    const lateMs = fc.double({ min: 3, max: 90, noNaN: true });
    fc.assert(
      fc.property(settingsOf, pages, pages, pages, lateMs, lateMs, (settings, a, b, held, early, late) => {
        const dueMs = (dirty: number, heldBack: number, outputMs: number): number => {
          const pace = new Pace(settings, new LoadModel());
          pace.began(0);
          pace.captured(0);
          pace.resumed(2);
          pace.sliced({ atMs: 3, pages: dirty, heldBackPages: heldBack });
          pace.outputWaits(outputMs);
          return pace.deadline().atMs;
        };
        const [few, many] = [Math.min(a, b), Math.max(a, b)];
        expect(dueMs(many, 0, late)).toBeLessThanOrEqual(dueMs(few, 0, late));
        expect(dueMs(few, held, late)).toBeLessThanOrEqual(dueMs(few, 0, late));
        expect(dueMs(few, 0, Math.min(early, late))).toBeLessThanOrEqual(
          dueMs(few, 0, Math.max(early, late)),
        );
      }),
    );
  });

  it('never ends an epoch later than a guest that dirtied less in the epochs before', () => {
    fc.assert(
      fc.property(loads, fc.double({ min: 1, max: 10, noNaN: true }), (load, factor) => {
        const dueMs = (pagesPerMs: number): number => {
          const model = new LoadModel();
          for (let n = 0; n < 20; n += 1) {
            model.observe({
              pauseMs: 3,
              deviceMs: 1.5,
              scanMs: load.scanMs,
              copyMs: load.copyMsPerPage * 1_000,
              pausePages: 1_000,
              dirtyPages: pagesPerMs * 20,
              ranMs: 20,
              releaseDelayMs: 5,
              sentPages: 1_000,
              sendMs: 1,
              ackMs: 2,
              heldFrames: 0,
            });
          }
          const pace = new Pace(usual, model);
          pace.began(0);
          pace.captured(0);
          pace.resumed(3);
          return pace.deadline().atMs;
        };
        expect(dueMs(factor * load.pagesPerMs)).toBeLessThanOrEqual(dueMs(load.pagesPerMs));
      }),
    );
  });
});

describe('the pace of', () => {
  const median = (epochs: readonly Epoch[], of: (epoch: Epoch) => number): number =>
    epochs.map(of).sort((a, b) => a - b)[epochs.length >> 1]!;

  it('an idle guest: rare checkpoints, also where an empty pause is over the budget', () => {
    const large = { ...idle, scanMs: 6 };
    expect(settle(usual, large).every(({ intervalMs }) => intervalMs === 100)).toBe(true);
    const epochs = settle(usual, idle);
    expect(epochs.every(({ trigger, intervalMs }) => trigger === 'interval' && intervalMs === 100)).toBe(
      true,
    );
  });

  it('a guest that answers now and then: at once', () => {
    const epochs = settle(usual, { ...idle, outputAfterMs: 30 });
    expect(epochs.every(({ trigger }) => trigger === 'output')).toBe(true);
    expect(median(epochs, ({ delayMs }) => delayMs!)).toBeCloseTo(2.8, 1); // pause and acknowledgement
  });

  it('one client that waits for each reply: soon', () => {
    const epochs = settle(usual, { ...idle, outputAfterMs: 0.5, repliesOnly: true });
    expect(median(epochs, ({ delayMs }) => delayMs!)).toBeLessThan(5);
  });

  it('a stream: batched, so that the guest keeps its time, within the delay budget', () => {
    const epochs = settle(usual, { ...idle, outputAfterMs: 0.05, framesPerMs: 20 });
    expect(median(epochs, ({ intervalMs, pauseMs }) => pauseMs / intervalMs)).toBeLessThan(0.22);
    expect(median(epochs, ({ delayMs }) => delayMs!)).toBeLessThanOrEqual(10.1);
  });

  it('a stream, where the delay budget is short: the budget comes first', () => {
    const load = { ...idle, outputAfterMs: 0.05, framesPerMs: 20 };
    const epochs = settle({ ...usual, delayBudgetMs: 6 }, load);
    expect(median(epochs, ({ delayMs }) => delayMs!)).toBeLessThanOrEqual(6.1);
  });

  it('a guest that writes much: pauses within their budget', () => {
    const epochs = settle(usual, { ...idle, pagesPerMs: 150 });
    expect(epochs.every(({ trigger }) => trigger === 'dirty')).toBe(true);
    expect(median(epochs, ({ pauseMs }) => pauseMs)).toBeGreaterThan(4);
    expect(Math.max(...epochs.map(({ pauseMs }) => pauseMs))).toBeLessThanOrEqual(5);
  });

  it('a guest whose empty pause is over the budget: no more pauses than a quarter of its time', () => {
    const epochs = settle({ ...usual, pauseBudgetMs: 1 }, { ...idle, pagesPerMs: 150 });
    expect(median(epochs, ({ intervalMs, pauseMs }) => pauseMs / intervalMs)).toBeLessThanOrEqual(0.26);
  });

  it('a guest that would fill staging: before it is full', () => {
    const epochs = settle({ ...usual, pauseBudgetMs: 50, stagingPages: 2_000 }, { ...idle, pagesPerMs: 100 });
    expect(epochs.every(({ trigger }) => trigger === 'dirty')).toBe(true);
    expect(median(epochs, ({ intervalMs }) => intervalMs)).toBeLessThan(22);
  });

  it('a guest behind a gate that does not see output: by the clock, or by the delay budget', () => {
    const blind = { ...usual, seesOutput: false };
    expect(settle(blind, idle).every(({ intervalMs }) => intervalMs === ASSUMED_INTERVAL_MS)).toBe(true);
    const within = settle({ ...blind, delayBudgetMs: 15 }, idle);
    // Output that comes right after the resume waits for the rest of the interval, the pause and the ack.
    expect(median(within, ({ intervalMs, pauseMs }) => intervalMs - pauseMs + 2.8)).toBeCloseTo(15, 1);
  });

  it('a fixed interval: as it says', () => {
    const fixed = { ...usual, intervalMs: 40 };
    for (const load of [idle, { ...idle, outputAfterMs: 1 }, { ...idle, pagesPerMs: 300 }]) {
      const epochs = settle(fixed, load);
      expect(epochs.every(({ intervalMs, trigger }) => intervalMs === 40 && trigger === 'interval')).toBe(
        true,
      );
    }
  });
});

describe('what waits', () => {
  const begun = (): Pace => {
    const pace = new Pace(usual, new LoadModel());
    pace.began(0);
    return pace;
  };

  it('while the epoch is captured is part of it, and asks for no other', () => {
    const pace = begun();
    pace.outputWaits(0.5);
    expect(pace.deadline()).toEqual({ atMs: 100, trigger: 'interval' });
    pace.captured(1);
    expect(pace.outputSinceMs).toBeUndefined();
    expect(pace.deadline()).toEqual({ atMs: 100, trigger: 'interval' });
  });

  it('since the resume does; from the first frame on', () => {
    const pace = begun();
    pace.captured(0);
    pace.resumed(2);
    pace.outputWaits(30);
    pace.outputWaits(40);
    expect(pace.outputSinceMs).toBe(30);
    expect(pace.deadline()).toEqual({ atMs: 30, trigger: 'output' });
  });

  it('is kept by a capture that failed, which is begun again by the clock', () => {
    const pace = begun();
    pace.captured(0);
    pace.resumed(2);
    pace.outputWaits(30);
    pace.began(30);
    expect(pace.deadline()).toEqual({ atMs: 130, trigger: 'interval' });
    expect(pace.outputSinceMs).toBe(30);
  });
});
