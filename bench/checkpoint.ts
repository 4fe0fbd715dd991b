/**
 * Suite `checkpoint`: the thesis's experiments. A guest computes (LINPACK) or works on its disk (bonnie++), alone
 * and while checkpoints are taken of it: captured, by hand-off, the thesis's own method, phase by phase, and by
 * `savevm` of stock QEMU. Then the pauses by themselves, turn after turn, and what a checkpoint takes from the guest.
 *
 * Linux guests on TCG. What counts is each phase as a share of the run that nobody disturbs, and how long the VM
 * stands still by each method in the same run; the thesis's averages, of another machine, stand beside them.
 */
import { measureLoss } from './checkpoint/loss.js';
import { measurePauses } from './checkpoint/pauses.js';
import { checkpointPlan } from './checkpoint/plan.js';
import { checkpointRatios } from './checkpoint/ratios.js';
import { thesisResults } from './checkpoint/thesis.js';
import { measureTurns } from './checkpoint/turns.js';
import type { RunSuite } from './report.js';

export const runCheckpointSuite: RunSuite = async (smoke, progress, wanted) => {
  const plan = checkpointPlan(smoke, wanted);
  if (plan === undefined) return { results: [], ratios: {} };
  const results = [
    ...(await measurePauses(plan, progress)),
    ...(await measureLoss(plan, progress)),
    ...(await measureTurns(plan, progress)),
  ];
  const published = plan.workloads.length === 0 ? [] : thesisResults;
  return { results: [...results, ...published], ratios: checkpointRatios(results) };
};
