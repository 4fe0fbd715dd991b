/**
 * When the next epoch begins. Pure: times come in as arguments, and the answer is
 * the moment at which the epoch is due, with the reason.
 *
 *   last pause began                                            latest
 *   ├── min ──┤▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒┤ max
 *   │ pause │ guest runs                                           'interval'
 *                    ▲ first frame held
 *                    ├─ wait ─┤ 'output'   wait + pause + ack ≤ delay budget
 *                                   ├ 'dirty'  copying would exceed the pause budget
 *
 * Three ways of pacing:
 *
 *   fixed     `intervalMs` is given: from one begin to the next, whatever happens
 *   load      the gate sees output: the picture above
 *   assumed   it doesn't: output may wait at any time, so the clock alone decides,
 *             by the delay budget if one is given
 *
 * Output that comes now and then triggers at once. Where it comes all the time,
 * an epoch per frame would leave the guest nothing but pauses: the next pause is put
 * off until pauses take their share of the time and no more, or until the delay
 * budget is used up. The share falls with the frames that an epoch gathers: who
 * waits for one reply is served soonest by a checkpoint, a stream by guest time.
 */
import type { LoadModel } from './load-model.js';
import type { EpochTrigger } from './machine.js';

export type PaceTrigger = Extract<EpochTrigger, 'output' | 'dirty' | 'interval'>;
export type PaceMode = 'fixed' | 'load' | 'assumed';

export interface PaceSettings {
  readonly intervalMs?: number | undefined;
  readonly minIntervalMs: number;
  readonly maxIntervalMs: number;
  readonly pauseBudgetMs: number;
  readonly delayBudgetMs?: number | undefined;
  /** The gate tells when output waits. */
  readonly seesOutput: boolean;
  /** What staging can hold. */
  readonly stagingPages: number;
}

export interface Deadline {
  readonly atMs: number;
  readonly trigger: PaceTrigger;
}

/** A slice of speculative capture that has ended. */
export interface SlicedDirt {
  readonly atMs: number;
  readonly pages: number;
  /** Left for the pause. */
  readonly heldBackPages: number;
}

/** Replies leave within this where nothing else is asked for: half of what a person's typing shows. */
export const DELAY_BUDGET_MS = 10;
/** Without sight of output and without a delay budget: what 25 ms cost is small for any guest. */
export const ASSUMED_INTERVAL_MS = 25;

/** The guest runs at least this share of the time, whatever waits (but for `maxIntervalMs`). */
const GUEST_SHARE_MIN = 0.5;
/** Time that pauses may take where one reply is waited for, and where output streams. */
const STOLEN_SHARE_REPLY = 0.5;
const STOLEN_SHARE_STREAM = 0.2;
/** The share falls by this much with each doubling of the frames per epoch: from one to the other at 8. */
const STOLEN_SHARE_STEP = 0.1;
/** Where even an empty pause exceeds the pause budget, more of them don't help: not more than this share. */
const STOLEN_SHARE_OVER_BUDGET = 0.25;
/** Aimed at, so that half of the pauses near the budget are not over it. */
const PAUSE_BUDGET_SHARE = 0.9;
/** The last part of staging is left for what is written while the epoch begins. */
const STAGING_SHARE = 0.9;

export class Pace {
  readonly #settings: PaceSettings;
  readonly #load: LoadModel;
  #beganMs = 0;
  #pauseMs = 0;
  #outputSinceMs: number | undefined;
  /** From the begin to the capture: what waits or is dirty by then is this epoch's, and no reason for another. */
  #capturing = false;
  /** At `atMs`: pages that the pause would copy, and pages in staging. Both grow by `pagesPerMs`. */
  #dirt = { atMs: 0, pausePages: 0, stagedPages: 0, pagesPerMs: 0 };

  constructor(settings: PaceSettings, load: LoadModel) {
    this.#settings = settings;
    this.#load = load;
  }

  get mode(): PaceMode {
    if (this.#settings.intervalMs !== undefined) return 'fixed';
    return this.#settings.seesOutput ? 'load' : 'assumed';
  }

  /** The delay that replies may have; undefined where none is kept. */
  get delayBudgetMs(): number | undefined {
    if (this.mode === 'fixed') return undefined;
    return this.#settings.delayBudgetMs ?? (this.mode === 'load' ? DELAY_BUDGET_MS : undefined);
  }

  /** When the first output of the running epoch was held; undefined if none waits. */
  get outputSinceMs(): number | undefined {
    return this.#outputSinceMs;
  }

  /** An epoch begins: what it takes before its pause does not lengthen the interval. */
  began(atMs: number): void {
    this.#beganMs = atMs;
    this.#pauseMs = atMs;
    this.#capturing = true;
  }

  /**
   * It was captured, its pause having begun then, and all that waited is explained by it. An epoch whose
   * capture fails is begun again by the clock alone: what failed will hardly succeed at once.
   */
  captured(pauseStartMs: number): void {
    this.#pauseMs = pauseStartMs;
    this.#outputSinceMs = undefined;
    this.#capturing = false;
    this.resumed(pauseStartMs);
  }

  /** The guest runs again, with nothing dirty. */
  resumed(atMs: number): void {
    this.#dirt = { atMs, pausePages: 0, stagedPages: 0, pagesPerMs: this.#load.pagesPerMs };
  }

  outputWaits(atMs: number): void {
    this.#outputSinceMs ??= atMs;
  }

  sliced({ atMs, pages, heldBackPages }: SlicedDirt): void {
    const dirt = this.#dirt;
    const sinceMs = atMs - dirt.atMs;
    this.#dirt = {
      atMs,
      pausePages: heldBackPages,
      stagedPages: dirt.stagedPages + pages,
      // A guest that has just begun to write more is believed at once; that it writes less, only with time.
      pagesPerMs: sinceMs > 0 ? Math.max(this.#load.pagesPerMs, pages / sinceMs) : dirt.pagesPerMs,
    };
  }

  /** When the next epoch is due, as far as is known now. Never later than `maxIntervalMs` after the last began. */
  deadline(): Deadline {
    const { intervalMs, maxIntervalMs } = this.#settings;
    if (intervalMs !== undefined) return { atMs: this.#beganMs + intervalMs, trigger: 'interval' };
    const latestMs = this.#beganMs + maxIntervalMs;
    let due: Deadline = { atMs: Math.min(latestMs, this.#assumedMs()), trigger: 'interval' };
    if (this.#capturing) return due;
    for (const [atMs, trigger] of [
      [this.#dirtyMs(), 'dirty'],
      [this.#outputMs(), 'output'],
    ] as const) {
      if (atMs < due.atMs) due = { atMs, trigger };
    }
    return due;
  }

  /** The shortest interval that leaves the guest its share. */
  get #earliestMs(): number {
    const guestsShareMs = this.#load.pauseMs / (1 - GUEST_SHARE_MIN);
    return this.#pauseMs + Math.max(this.#settings.minIntervalMs, guestsShareMs);
  }

  #outputMs(): number {
    const sinceMs = this.#outputSinceMs;
    if (sinceMs === undefined) return Number.POSITIVE_INFINITY;
    const shareMs = this.#pauseMs + this.#load.pauseMs / stolenShare(this.#load.heldFrames);
    const budgetMs = sinceMs + Math.max(0, (this.delayBudgetMs ?? 0) - this.#load.releaseDelayMs);
    return Math.max(this.#earliestMs, sinceMs, Math.min(shareMs, budgetMs));
  }

  #dirtyMs(): number {
    const { pauseBudgetMs, stagingPages } = this.#settings;
    const { atMs, pausePages, stagedPages, pagesPerMs } = this.#dirt;
    if (pagesPerMs <= 0) return Number.POSITIVE_INFINITY;
    const isOver = this.#load.basePauseMs >= pauseBudgetMs;
    const shareMs = isOver ? this.#pauseMs + this.#load.pauseMs / STOLEN_SHARE_OVER_BUDGET : 0;
    const pauseRoom = this.#load.pagesWithin(PAUSE_BUDGET_SHARE * pauseBudgetMs) - pausePages;
    const stagingRoom = STAGING_SHARE * stagingPages - stagedPages - pausePages;
    const pauseDueMs = Math.max(shareMs, atMs + Math.max(0, pauseRoom) / pagesPerMs);
    const stagingDueMs = atMs + Math.max(0, stagingRoom) / pagesPerMs;
    return Math.max(this.#earliestMs, Math.min(pauseDueMs, stagingDueMs));
  }

  /** Where output is not seen: the first frame may wait since the resume. */
  #assumedMs(): number {
    if (this.mode !== 'assumed') return Number.POSITIVE_INFINITY;
    const { minIntervalMs, delayBudgetMs } = this.#settings;
    if (delayBudgetMs === undefined) return this.#beganMs + Math.max(minIntervalMs, ASSUMED_INTERVAL_MS);
    const budgetMs = this.#pauseMs + this.#load.pauseMs + delayBudgetMs - this.#load.releaseDelayMs;
    return Math.max(this.#earliestMs, budgetMs);
  }
}

const stolenShare = (heldFrames: number): number =>
  Math.max(STOLEN_SHARE_STREAM, STOLEN_SHARE_REPLY - STOLEN_SHARE_STEP * Math.log2(Math.max(1, heldFrames)));
