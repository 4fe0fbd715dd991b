/** Axes: from values to pixels, and where the ticks are. */

export interface AxisScale {
  readonly place: (value: number) => number;
  readonly ticks: readonly number[];
}

/** Round steps (1, 2, 2.5 or 5 times a power of ten) from 0 to at least `max`. */
const linearTicks = (max: number, count: number): number[] => {
  if (!(max > 0)) return [0, 1];
  const rough = max / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, index) => index * step);
};

/** 1, 2 and 5 times powers of ten around [min, max]; only the powers if that were too many. */
const logTicks = (min: number, max: number): number[] => {
  const ticks: number[] = [];
  const first = Math.floor(Math.log10(min));
  const last = Math.ceil(Math.log10(max));
  const factors = last - first > 3 ? [1] : [1, 2, 5];
  for (let power = first; power <= last; power += 1)
    for (const factor of factors) ticks.push(factor * 10 ** power);
  const from = Math.max(
    0,
    ticks.findLastIndex((tick) => tick <= min),
  );
  const to = ticks.findIndex((tick) => tick >= max);
  return ticks.slice(from, to < 0 ? undefined : to + 1);
};

/** A value axis over `values`, whose begin and end are ticks; from 0 if linear. */
export const valueScale = (
  values: readonly number[],
  [from, to]: readonly [number, number],
  options: { readonly scale?: 'linear' | 'log'; readonly max?: number; readonly count?: number },
): AxisScale => {
  const shown = values.filter(Number.isFinite);
  const positive = shown.filter((value) => value > 0);
  const logarithmic = options.scale === 'log' && positive.length > 0;
  const max = Math.max(options.max ?? 0, ...shown);
  const ticks = logarithmic
    ? logTicks(Math.min(...positive), Math.max(...positive))
    : linearTicks(max, options.count ?? 5);
  const [first, last] = [ticks[0]!, ticks.at(-1)!];
  const share = logarithmic
    ? (value: number) => Math.log(Math.max(value, first) / first) / Math.log(last / first || Number.NaN)
    : (value: number) => (value - first) / (last - first || 1);
  return { ticks, place: (value) => from + (to - from) * (Number.isNaN(share(value)) ? 0.5 : share(value)) };
};

/** An axis on which every value is a tick, such as the intervals that were measured. */
export const pointScale = (
  values: readonly number[],
  [from, to]: readonly [number, number],
  scale: 'linear' | 'log' = 'linear',
): AxisScale => {
  const ticks = [...new Set(values)].sort((a, b) => a - b);
  const move = scale === 'log' && ticks.every((tick) => tick > 0) ? Math.log : (value: number) => value;
  const [first, last] = [move(ticks[0] ?? 0), move(ticks.at(-1) ?? 1)];
  return {
    ticks,
    place: (value) =>
      last === first ? (from + to) / 2 : from + ((to - from) * (move(value) - first)) / (last - first),
  };
};
