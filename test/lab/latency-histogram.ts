/** Percentiles of any number of durations in bounded memory: buckets that are 1 % wide. */

const growth = 1.01;
const smallestMs = 0.001;
const buckets = 2400; // up to 0.001 ms × 1.01^2400, about 6.5 hours

/** A histogram as it travels between processes: the buckets that are not empty. */
export interface LatencyBuckets {
  readonly counts: readonly (readonly [place: number, count: number])[];
  readonly maxMs: number;
}

export class LatencyHistogram {
  readonly #counts = new Uint32Array(buckets);
  #count = 0;
  #maxMs = 0;

  add(durationMs: number): void {
    const place = Math.floor(Math.log(Math.max(durationMs, smallestMs) / smallestMs) / Math.log(growth));
    this.#counts[Math.min(place, buckets - 1)]! += 1;
    this.#count += 1;
    this.#maxMs = Math.max(this.#maxMs, durationMs);
  }

  /** Adds what another histogram holds. */
  merge({ counts, maxMs }: LatencyBuckets): void {
    for (const [place, count] of counts) {
      this.#counts[place]! += count;
      this.#count += count;
    }
    this.#maxMs = Math.max(this.#maxMs, maxMs);
  }

  get buckets(): LatencyBuckets {
    const counts = [...this.#counts].flatMap((count, place) =>
      count === 0 ? [] : [[place, count] as const],
    );
    return { counts, maxMs: this.#maxMs };
  }

  /** How many durations it holds. */
  get count(): number {
    return this.#count;
  }

  get maxMs(): number {
    return this.#maxMs;
  }

  /** `share` between 0 and 1; at most 1 % too high. 0 if nothing was added. */
  percentileMs(share: number): number {
    const rank = Math.ceil(share * this.#count);
    let seen = 0;
    for (let place = 0; place < buckets && rank > 0; place += 1) {
      seen += this.#counts[place]!;
      if (seen >= rank) return Math.min(smallestMs * growth ** (place + 1), this.#maxMs);
    }
    return 0;
  }
}
