/**
 * How a guest's clock goes against the host's, from asking it the time. Pure.
 *
 * The guest reads its clock a little after it was asked, so a sample's offset is
 * too high by what the question took on its way, and never too low: of each
 * window the lowest counts. Answers may be held for as long as they like.
 */

/** Both in milliseconds; only differences mean something. */
export interface ClockSample {
  /** The host's clock when the question left. */
  readonly askedMs: number;
  /** The guest's clock when it answered. */
  readonly guestMs: number;
}

export interface ClockPoint {
  readonly hostMs: number;
  /** Guest's clock minus the host's. */
  readonly offsetMs: number;
}

/** The best sample of each window of the host's time. */
export const bestOfWindows = (samples: readonly ClockSample[], windowMs: number): ClockPoint[] => {
  const best = new Map<number, ClockPoint>();
  for (const { askedMs, guestMs } of samples) {
    const window = Math.floor(askedMs / windowMs);
    const point = { hostMs: askedMs, offsetMs: guestMs - askedMs };
    const known = best.get(window);
    if (known === undefined || point.offsetMs < known.offsetMs) best.set(window, point);
  }
  return [...best.values()].sort((one, other) => one.hostMs - other.hostMs);
};

/**
 * Slope in parts per million; negative: the guest's clock is slow. Each point of the first half is
 * compared with its partner in the second, and the median counts: single bad windows don't.
 * NaN of less than two points.
 */
export const driftPpm = (points: readonly ClockPoint[]): number => {
  const half = Math.ceil(points.length / 2);
  const slopes = points.slice(half).map((late, index) => {
    const early = points[index]!;
    return (late.offsetMs - early.offsetMs) / (late.hostMs - early.hostMs);
  });
  return median(slopes) * 1e6;
};

/** By how much the clock jumped between two stretches, their own drift left out. */
export const stepMs = (before: readonly ClockPoint[], after: readonly ClockPoint[]): number => {
  const [last, first] = [before.at(-1), after[0]];
  return last === undefined || first === undefined ? Number.NaN : first.offsetMs - last.offsetMs;
};

const median = (values: readonly number[]): number => {
  const sorted = values.toSorted((one, other) => one - other);
  const middle = sorted.length / 2;
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
};
