/** Percentiles over a bounded window of samples. */

/** Nearest-rank percentile of unsorted samples; NaN if there are none. `p` in 0…100. */
export const percentile = (samples: readonly number[], p: number): number => {
  if (samples.length === 0) return Number.NaN;
  return rank(Float64Array.from(samples).sort(), p);
};

const rank = (sorted: Float64Array, p: number): number =>
  sorted[Math.max(1, Math.ceil((p / 100) * sorted.length)) - 1]!;

/** The latest `capacity` samples. */
export class SampleWindow {
  readonly #samples: number[] = [];
  readonly #capacity: number;
  #next = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  add(sample: number): void {
    if (this.#samples.length < this.#capacity) this.#samples.push(sample);
    else this.#samples[this.#next] = sample;
    this.#next = (this.#next + 1) % this.#capacity;
  }

  get values(): readonly number[] {
    return this.#samples;
  }

  /** Sorts once: it is called on the epoch loop's thread. */
  summary(): { readonly p50: number; readonly p99: number; readonly max: number } | undefined {
    if (this.#samples.length === 0) return undefined;
    const sorted = Float64Array.from(this.#samples).sort();
    return { p50: rank(sorted, 50), p99: rank(sorted, 99), max: rank(sorted, 100) };
  }
}
