/** The suite `checkpoint`: what is compared with what. */
import { expect, test } from 'vitest';
import { checkpointRatios } from '../../bench/checkpoint/ratios.js';
import type { BenchResult } from '../../bench/report.js';

const underWorkload = (workload: string, method: string, metrics: BenchResult['metrics']): BenchResult => ({
  name: `${workload}-${method}`,
  params: { workload, method },
  metrics,
});

test('savevm is compared workload by workload: the slowest one does not decide alone', () => {
  const results = [
    ...[10_000, 500, 300].flatMap((savevmMs, index) => [
      underWorkload(`w${index}`, 'savevm', { stoppedMs: savevmMs }),
      underWorkload(`w${index}`, 'capture-one', { stoppedMs: 5, prefixMs: 5 }),
    ]),
    underWorkload('w2', 'handoff-one', { stoppedMs: 20, prefixMs: 10 }),
  ];
  expect(checkpointRatios(results)).toMatchObject({
    checkpointStopSavevmVsCapture: 50,
    checkpointStopSavevmVsCaptureLeast: 30,
    checkpointPauseSavevmVsCapture: 100,
    checkpointStopSavevmVsHandoff: 10,
  });
});

test('a full checkpoint is judged by all that the guest stands still for it', () => {
  const pauses = { pauseMsP50: 20, prefixMsP50: 15, allStopsMsP50: 35 };
  const results = ['pause-full', 'pause-checkpoint-by-handoff'].map((name) => ({
    name,
    params: {},
    metrics: pauses,
  }));
  expect(checkpointRatios(results)).toMatchObject({
    checkpointFullPauseMs: 35,
    checkpointByHandoffPauseMs: 35,
  });
});
