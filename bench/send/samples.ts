/** From the transfers of a case to its row in the report. */
import { percentile } from '../../lib/stats.js';

/** Named with their unit last, as they will be shown with P50 or P99 behind it. */
export type Sample = Readonly<Record<string, number>>;

/** Also shown at the 99th percentile: what somebody waits for, and what it costs. */
const tailed = new Set(['sendMs', 'ackMs', 'senderCpuMsPerMb']);

export const summarise = (samples: readonly Sample[]): Record<string, number> => {
  const metrics: Record<string, number> = { transfers: samples.length };
  for (const name of Object.keys(samples[0] ?? {})) {
    const values = samples.map((sample) => sample[name] ?? Number.NaN);
    metrics[`${name}P50`] = percentile(values, 50);
    if (tailed.has(name)) metrics[`${name}P99`] = percentile(values, 99);
  }
  return metrics;
};
