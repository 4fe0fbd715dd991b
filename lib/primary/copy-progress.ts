/** How far the copy of the disks is, and how long it will take: pure, from samples of what is done. */

export interface CopyProgress {
  readonly doneBytes: number;
  /** May still grow: the running guest allocates. */
  readonly totalBytes: number;
  /** Of the last seconds; undefined until there is something to measure. */
  readonly bytesPerSecond: number | undefined;
  readonly secondsLeft: number | undefined;
}

/** A rate is of so long: short enough to follow the link, long enough not to jump. */
const WINDOW_MS = 10_000;
/** Shorter ones say nothing yet. */
const WINDOW_MIN_MS = 500;

interface Sample {
  readonly atMs: number;
  readonly doneBytes: number;
}

export class CopyMeter {
  #samples: Sample[] = [];
  #progress: CopyProgress | undefined;

  /** Undefined before the first sample. */
  get progress(): CopyProgress | undefined {
    return this.#progress;
  }

  sample(atMs: number, doneBytes: number, totalBytes: number): CopyProgress {
    this.#samples.push({ atMs, doneBytes });
    // One sample from before the window stays: the rate is of a whole window.
    while (this.#samples.length > 2 && this.#samples[1]!.atMs <= atMs - WINDOW_MS) this.#samples.shift();
    const first = this.#samples[0]!;
    const ms = atMs - first.atMs;
    const bytesPerSecond = ms < WINDOW_MIN_MS ? undefined : ((doneBytes - first.doneBytes) * 1_000) / ms;
    const leftBytes = Math.max(0, totalBytes - doneBytes);
    this.#progress = {
      doneBytes,
      totalBytes,
      bytesPerSecond,
      secondsLeft:
        bytesPerSecond === undefined || bytesPerSecond === 0 ? undefined : leftBytes / bytesPerSecond,
    };
    return this.#progress;
  }
}
