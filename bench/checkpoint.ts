/**
 * Suite `checkpoint`: the thesis's experiments. A guest computes (LINPACK) or works on its disk (bonnie++), alone
 * and while checkpoints are taken of it: by hand-off, the thesis's own method, phase by phase, and by `savevm` of
 * stock QEMU.
 *
 * Linux guests on TCG. What counts is each phase as a share of the run that nobody disturbs, and how long the VM
 * stands still by either method in the same run; the thesis's averages, of another machine, stand beside them.
 */
import { checkpointPlan } from './checkpoint/plan.js';
import { thesisResults } from './checkpoint/thesis.js';
import { measureTurns } from './checkpoint/turns.js';
import type { BenchResult, RunSuite } from './report.js';

export const runCheckpointSuite: RunSuite = async (smoke, progress, wanted) => {
  const plan = checkpointPlan(smoke, wanted);
  if (plan === undefined) return { results: [], ratios: {} };
  const results = await measureTurns(plan, progress);
  return { results: [...results, ...thesisResults], ratios: ratiosOf(results) };
};

const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const mean = (method: string, metric: string): number => {
    const values = results
      .filter(({ params }) => params.method === method)
      .flatMap(({ metrics }) => metrics[metric] ?? []);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  return {
    checkpointStopSavevmVsHandoff: mean('savevm', 'stoppedMs') / mean('handoff-one', 'stoppedMs'),
    checkpointHandoffWorkloadVsAlone: mean('handoff-one', 'workloadVsAlone'),
    checkpointSavevmWorkloadVsAlone: mean('savevm', 'workloadVsAlone'),
  };
};
