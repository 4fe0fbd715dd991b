/** What the suite's figures say together. */
import { type BenchResult, metricOf } from '../report.js';

export const checkpointRatios = (results: readonly BenchResult[]): Record<string, number> => {
  const mean = (method: string, metric: string): number => {
    const values = results
      .filter(({ params }) => params.method === method)
      .flatMap(({ metrics }) => metrics[metric] ?? []);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const of = (name: string, metric: string): number => metricOf(results, name, metric);
  const savevmMs = mean('savevm', 'stoppedMs');
  return {
    checkpointStopSavevmVsCapture:
      savevmMs / (mean('capture-one', 'stoppedMs') + mean('capture-one', 'prefixMs')),
    checkpointPauseSavevmVsCapture: savevmMs / mean('capture-one', 'stoppedMs'),
    checkpointStopSavevmVsHandoff:
      savevmMs / (mean('handoff-one', 'stoppedMs') + mean('handoff-one', 'prefixMs')),
    checkpointIncrementPauseMs: of('pause-increment', 'pauseMsP50'),
    checkpointFullPauseMs: of('pause-full', 'pauseMsP50'),
    checkpointByHandoffPauseMs: of('pause-checkpoint-by-handoff', 'pauseMsP50'),
    checkpointHandoffDowntimeMs: of('pause-handoff', 'pauseMsP50'),
    checkpointRestoreRunsAfterMs: of('restore', 'runsAfterMsP50'),
    checkpointFullLostPercent: of('loss-full', 'lostPercentP50'),
    checkpointIncrementLostPercent: of('loss-increment', 'lostPercentP50'),
    checkpointCaptureWorkloadVsAlone: mean('capture-one', 'workloadVsAlone'),
    checkpointHandoffWorkloadVsAlone: mean('handoff-one', 'workloadVsAlone'),
    checkpointSavevmWorkloadVsAlone: mean('savevm', 'workloadVsAlone'),
  };
};
