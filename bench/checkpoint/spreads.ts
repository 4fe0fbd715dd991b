/** What many turns of the same come down to. */
import { percentile } from '../../lib/stats.js';

/** Of one turn, by name. */
export type Figures = Readonly<Record<string, number>>;

/** Median and maximum of each figure. */
export const spreads = (turns: readonly Figures[]): Figures =>
  Object.fromEntries(
    Object.keys(turns[0] ?? {}).flatMap((name) => {
      const values = turns.flatMap((turn) => turn[name] ?? []);
      return [
        [`${name}P50`, percentile(values, 50)],
        [`${name}Max`, percentile(values, 100)],
      ];
    }),
  );
