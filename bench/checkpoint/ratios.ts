/** What the suite's figures say together. */
import { percentile } from '../../lib/stats.js';
import { type BenchResult, metricOf } from '../report.js';

/** Of a hand-off: the guest stands still for both. */
const ALL_STOPS = ['stoppedMs', 'prefixMs'];

export const checkpointRatios = (results: readonly BenchResult[]): Record<string, number> => {
  const mean = (method: string, metric: string): number => {
    const values = results
      .filter(({ params }) => params.method === method)
      .flatMap(({ metrics }) => metrics[metric] ?? []);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const of = (name: string, metric: string): number => metricOf(results, name, metric);
  /** savevm ÷ method, workload by workload: that with the longest savevm must not decide alone. */
  const savevmVs = (method: string, metrics: readonly string[]): number[] =>
    results
      .filter(({ params }) => params.method === 'savevm')
      .map(({ name }) => {
        const other = name.replace(/savevm$/, method);
        const stoodStillMs = metrics.reduce((sum, metric) => sum + of(other, metric), 0);
        return of(name, 'stoppedMs') / stoodStillMs;
      })
      .filter(Number.isFinite);
  const vsCapture = savevmVs('capture-one', ['stoppedMs']);
  return {
    checkpointStopSavevmVsCapture: percentile(vsCapture, 50),
    checkpointStopSavevmVsCaptureLeast: Math.min(...vsCapture),
    checkpointStopSavevmVsHandoff: percentile(savevmVs('handoff-one', ALL_STOPS), 50),
    checkpointIncrementPauseMs: of('pause-increment', 'pauseMsP50'),
    checkpointFullPauseMs: of('pause-full', 'pauseMsP50'),
    checkpointByHandoffPauseMs: of('pause-checkpoint-by-handoff', 'allStopsMsP50'),
    checkpointHandoffDowntimeMs: of('pause-handoff', 'pauseMsP50'),
    checkpointRestoreRunsAfterMs: of('restore', 'runsAfterMsP50'),
    checkpointFullLostPercent: of('loss-full', 'lostPercentP50'),
    checkpointIncrementLostPercent: of('loss-increment', 'lostPercentP50'),
    checkpointCaptureWorkloadVsAlone: mean('capture-one', 'workloadVsAlone'),
    checkpointHandoffWorkloadVsAlone: mean('handoff-one', 'workloadVsAlone'),
    checkpointSavevmWorkloadVsAlone: mean('savevm', 'workloadVsAlone'),
  };
};
