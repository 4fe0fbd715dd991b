/**
 * Which epochs' events are kept: the latest, and of the earlier ones those with the
 * longest pauses. Bounded by events. Pure.
 */

export interface Segment<Payload> {
  readonly fromUs: number;
  readonly toUs: number;
  readonly pauseMs: number;
  readonly events: number;
  readonly payload: Payload;
}

export interface SegmentLimits {
  /** Of the latest epochs together. */
  readonly eventsMax: number;
  /** Of the earlier ones, so many epochs. */
  readonly slowestMax: number;
}

export class EpochSegments<Payload> {
  readonly #limits: SegmentLimits;
  #latest: Segment<Payload>[] = [];
  /** Longest pause first. */
  readonly #slowest: Segment<Payload>[] = [];
  #latestEvents = 0;
  #added = 0;
  /** Of `#latest`, already given away: shifting each time would copy the rest. */
  #gone = 0;

  constructor(limits: SegmentLimits) {
    this.#limits = limits;
  }

  /** All that were ever added. */
  get added(): number {
    return this.#added;
  }

  add(segment: Segment<Payload>): void {
    this.#added += 1;
    this.#latest.push(segment);
    this.#latestEvents += segment.events;
    while (this.#latestEvents > this.#limits.eventsMax && this.#latest.length - this.#gone > 1) {
      const oldest = this.#latest[this.#gone]!;
      this.#gone += 1;
      this.#latestEvents -= oldest.events;
      this.#remember(oldest);
    }
    if (this.#gone > this.#latest.length / 2) {
      this.#latest = this.#latest.slice(this.#gone);
      this.#gone = 0;
    }
  }

  /** By time. */
  kept(): Segment<Payload>[] {
    return [...this.#slowest, ...this.#latest.slice(this.#gone)].sort((a, b) => a.fromUs - b.fromUs);
  }

  #remember(segment: Segment<Payload>): void {
    const at = this.#slowest.findIndex(({ pauseMs }) => pauseMs < segment.pauseMs);
    this.#slowest.splice(at === -1 ? this.#slowest.length : at, 0, segment);
    if (this.#slowest.length > this.#limits.slowestMax) this.#slowest.pop();
  }
}
