/**
 * Carries out what speculation.ts chooses: slices of the coming epoch, one at a
 * time, while the guest runs and the epoch before has been released.
 */
import type { PrestageResult, PrimaryEngine, SenderStrategy } from '../native.js';
import type { Pace } from './pace.js';
import type { SlicePlan, SpeculationChooser } from './speculation.js';

/** All slices of one epoch. */
export interface SliceTotals {
  readonly slices: number;
  readonly pages: number;
  readonly scanMs: number;
  readonly copyMs: number;
  readonly sendMs: number;
}

export interface SlicesOptions {
  readonly engine: Pick<PrimaryEngine, 'prestage'>;
  readonly chooser: Pick<SpeculationChooser, 'next'>;
  readonly pace: Pick<Pace, 'deadline' | 'outputSinceMs' | 'sliced'>;
  /** Pages that the guest is expected to dirty per millisecond. */
  readonly pagesPerMs: () => number;
  readonly pageSize: number;
  /** How a slice of so many pages, side by side in staging, is sent. */
  readonly strategy: (pages: number) => SenderStrategy;
  /** More is known of the running epoch: when it is due may have changed. */
  readonly onSlice: () => void;
  readonly onFailure: (error: unknown, epoch: number) => void;
}

const NOTHING: SliceTotals = { slices: 0, pages: 0, scanMs: 0, copyMs: 0, sendMs: 0 };

export class Slices {
  readonly #options: SlicesOptions;
  /** The epoch that slices are taken of; undefined while none may be. */
  #epoch: number | undefined;
  #scannedMs = 0;
  #totals = NOTHING;
  #timer: NodeJS.Timeout | undefined;
  #underWay: Promise<void> | undefined;

  constructor(options: SlicesOptions) {
    this.#options = options;
  }

  /** The guest runs since then, with nothing dirty and nothing staged. */
  reset(resumedMs: number): void {
    this.#scannedMs = resumedMs;
    this.#totals = NOTHING;
  }

  /** Slices of this epoch may be taken from now on. */
  start(epoch: number): void {
    this.#epoch = epoch;
    this.replan();
  }

  /** Begins no slice any more. Settles when the one under way has ended. */
  async stop(): Promise<void> {
    this.#epoch = undefined;
    clearTimeout(this.#timer);
    await this.#underWay;
  }

  /** When the epoch is due may have changed. */
  replan(): void {
    clearTimeout(this.#timer);
    if (this.#epoch === undefined || this.#underWay !== undefined) return;
    const epoch = this.#epoch;
    const plan = this.#next();
    if (plan === undefined) return;
    const waitMs = Math.max(0, plan.atMs - performance.now());
    this.#timer = setTimeout(() => {
      this.#underWay = this.#run(epoch, plan).then((slice) => {
        this.#underWay = undefined;
        if (slice === undefined) return;
        this.#options.pace.sliced({ atMs: this.#scannedMs, ...slice });
        this.#options.onSlice();
        this.replan();
      });
    }, Math.floor(waitMs));
  }

  /** The last ones, right before the pause. Nothing else may be under way. */
  async finish(epoch: number): Promise<void> {
    const dueMs = performance.now();
    for (;;) {
      const plan = this.#next(dueMs);
      if (plan === undefined || (await this.#run(epoch, { ...plan, send: false })) === undefined) return;
    }
  }

  get totals(): SliceTotals {
    return this.#totals;
  }

  #next(dueMs = this.#options.pace.deadline().atMs): SlicePlan | undefined {
    return this.#options.chooser.next({
      dueMs,
      scannedMs: this.#scannedMs,
      stagedPages: this.#totals.pages,
      outputWaits: this.#options.pace.outputSinceMs !== undefined,
    });
  }

  /** undefined: it failed, and that was told. */
  async #run(epoch: number, { send, bytesMax }: SlicePlan): Promise<PrestageResult | undefined> {
    const { engine, pageSize, strategy, onFailure } = this.#options;
    let slice: PrestageResult;
    try {
      slice = await engine.prestage({
        epoch,
        send,
        bytesMax,
        ...(send ? { strategy: strategy(bytesMax / pageSize) } : {}),
      });
    } catch (error) {
      onFailure(error, epoch);
      return undefined;
    }
    this.#scannedMs = this.#scannedUntil(performance.now(), slice.pages, bytesMax);
    const totals = this.#totals;
    this.#totals = {
      slices: totals.slices + 1,
      pages: totals.pages + slice.pages,
      scanMs: totals.scanMs + slice.scanMs,
      copyMs: totals.copyMs + slice.copyMs,
      sendMs: totals.sendMs + slice.sendMs,
    };
    return slice;
  }

  /** A slice that its limit ended has left something: as if it had looked so much earlier. */
  #scannedUntil(nowMs: number, pages: number, bytesMax: number): number {
    const { pageSize, pagesPerMs } = this.#options;
    const isFull = pages * pageSize >= bytesMax;
    return isFull ? Math.min(nowMs, this.#scannedMs + pages / Math.max(pagesPerMs(), 1)) : nowMs;
  }
}
