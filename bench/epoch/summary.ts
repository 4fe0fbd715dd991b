/** The distributions of every part of the measured epochs. */
import { measured } from '../../lib/primary/epoch-report.js';
import { percentile } from '../../lib/stats.js';
import type { MeasuredEpoch } from '../pair.js';

export const summariseEpochs = (epochs: readonly MeasuredEpoch[]): Record<string, number> => {
  const metrics: Record<string, number> = { epochs: epochs.length };
  const put = (name: string, samples: readonly number[]): void => {
    metrics[`${name}P50`] = percentile(samples, 50);
    metrics[`${name}P99`] = percentile(samples, 99);
  };
  for (const part of measured)
    put(
      part,
      epochs.map((epoch) => epoch[part]),
    );
  put(
    'applyMs',
    epochs.flatMap((epoch) => (epoch.previousApplyMs === undefined ? [] : [epoch.previousApplyMs])),
  );
  metrics.primaryOwnBytesMax = Math.max(...epochs.map((epoch) => epoch.ownBytes));
  return metrics;
};
