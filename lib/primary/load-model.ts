/**
 * What the last epochs cost and how much they dirtied, as running estimates: the
 * common ground of pace.ts and speculation.ts. Pure.
 *
 *   pause = overhead + max(device state, scan + pages × copy per page)
 *
 * All are medians over a few epochs: one slow `stop`, or one burst of writes, says
 * nothing about the next epoch, and a median forgets it without a trace.
 */

/** One epoch, from its resume to its release. */
export interface ObservedEpoch {
  readonly pauseMs: number;
  /** Device state and, behind it, the output boundary. */
  readonly deviceMs: number;
  readonly scanMs: number;
  /** What grows with the pages: copying, or in direct mode the transfer. */
  readonly copyMs: number;
  /** Copied (or sent) within the pause. */
  readonly pausePages: number;
  readonly dirtyPages: number;
  /** How long the guest ran. */
  readonly ranMs: number;
  /** From the begin of the pause to the release. */
  readonly releaseDelayMs: number;
  /** Sent after the pause: neither ahead, nor zero. */
  readonly sentPages: number;
  readonly sendMs: number;
  readonly ackMs: number;
  /** Frames that were held when the epoch ended; undefined where the gate doesn't say. */
  readonly heldFrames: number | undefined;
}

/** Enough for a median that one outlier in three does not move; few enough to follow a new load. */
const WINDOW_EPOCHS = 15;
/** Below this a copy's time is mostly that of starting it. */
const COPY_PAGES_MIN = 64;

/** Until something was measured: those of a small guest on a slow machine (docs/benchmarks.md). */
const FIRST = {
  overheadMs: 0.8,
  deviceMs: 1.5,
  scanMs: 0.4,
  copyMsPerPage: 0.000_8,
  sendMsPerPage: 0.001,
  ackMsPerPage: 0.002,
};
/** Copying that lengthens a pause by less than this share is no reason for another pause. */
const LENGTHENED_SHARE = 0.2;

export class LoadModel {
  readonly #overheadMs = new RunningMedian(FIRST.overheadMs);
  readonly #deviceMs = new RunningMedian(FIRST.deviceMs);
  readonly #scanMs = new RunningMedian(FIRST.scanMs);
  readonly #copyMsPerPage = new RunningMedian(FIRST.copyMsPerPage);
  readonly #sendMsPerPage = new RunningMedian(FIRST.sendMsPerPage);
  readonly #ackMsPerPage = new RunningMedian(FIRST.ackMsPerPage);
  readonly #pauseMs = new RunningMedian(FIRST.overheadMs + FIRST.deviceMs);
  readonly #releaseDelayMs = new RunningMedian(FIRST.overheadMs + FIRST.deviceMs + 1);
  readonly #pagesPerMs = new RunningMedian(0);
  readonly #heldFrames = new RunningMedian(1);

  observe(epoch: ObservedEpoch): void {
    this.#pauseMs.add(epoch.pauseMs);
    this.#overheadMs.add(Math.max(0, epoch.pauseMs - Math.max(epoch.deviceMs, epoch.scanMs + epoch.copyMs)));
    this.#deviceMs.add(epoch.deviceMs);
    this.#scanMs.add(epoch.scanMs);
    if (epoch.pausePages >= COPY_PAGES_MIN) this.#copyMsPerPage.add(epoch.copyMs / epoch.pausePages);
    if (epoch.sentPages >= COPY_PAGES_MIN) {
      this.#sendMsPerPage.add(epoch.sendMs / epoch.sentPages);
      this.#ackMsPerPage.add(epoch.ackMs / epoch.sentPages);
    }
    if (epoch.ranMs > 0) this.#pagesPerMs.add(epoch.dirtyPages / epoch.ranMs);
    this.#releaseDelayMs.add(epoch.releaseDelayMs);
    if (epoch.heldFrames !== undefined) this.#heldFrames.add(epoch.heldFrames);
  }

  /** What a pause takes as a rule. */
  get pauseMs(): number {
    return this.#pauseMs.value;
  }

  /** What a pause takes however few pages there are. */
  get basePauseMs(): number {
    return this.pauseMsOf(0);
  }

  /** From the begin of a pause until what was held leaves. */
  get releaseDelayMs(): number {
    return this.#releaseDelayMs.value;
  }

  /** Pages that the guest dirties per millisecond in which it runs. */
  get pagesPerMs(): number {
    return this.#pagesPerMs.value;
  }

  get heldFrames(): number {
    return this.#heldFrames.value;
  }

  get scanMs(): number {
    return this.#scanMs.value;
  }

  get copyMsPerPage(): number {
    return this.#copyMsPerPage.value;
  }

  /** Handed to the kernel. */
  get sendMsPerPage(): number {
    return this.#sendMsPerPage.value;
  }

  get ackMsPerPage(): number {
    return this.#ackMsPerPage.value;
  }

  /** The pause with so many pages to copy in it. */
  pauseMsOf(pages: number): number {
    const copying = this.#scanMs.value + pages * this.#copyMsPerPage.value;
    return this.#overheadMs.value + Math.max(this.#deviceMs.value, copying);
  }

  /**
   * Pages with which the pause stays within `pauseMs`; at least those that are copied beside the device
   * state, or hardly lengthen a pause that is over it anyway.
   */
  pagesWithin(pauseMs: number): number {
    const withinMs = pauseMs - this.#overheadMs.value - this.#scanMs.value;
    const besideMs = this.#deviceMs.value - this.#scanMs.value;
    const copyMs = Math.max(withinMs, besideMs, LENGTHENED_SHARE * this.basePauseMs);
    return copyMs / Math.max(this.#copyMsPerPage.value, Number.MIN_VALUE);
  }
}

class RunningMedian {
  /** In the order of their coming. */
  readonly #samples: number[] = [];
  readonly #sorted: number[] = [];
  #value: number;

  constructor(first: number) {
    this.#value = first;
  }

  get value(): number {
    return this.#value;
  }

  /** Kept sorted: it is called several times per epoch, on the epoch loop's thread. */
  add(sample: number): void {
    const sorted = this.#sorted;
    if (this.#samples.length === WINDOW_EPOCHS) sorted.splice(sorted.indexOf(this.#samples.shift()!), 1);
    this.#samples.push(sample);
    let index = sorted.length;
    while (index > 0 && sorted[index - 1]! > sample) index -= 1;
    sorted.splice(index, 0, sample);
    this.#value = sorted[(sorted.length - 1) >> 1]!;
  }
}
