/**
 * The averages of the Thai thesis on KVM checkpointing that Holdfast started from, in seconds. Its machine is
 * another one: what can be compared is each phase as a share of the workload.
 */
import type { BenchResult } from '../report.js';

const row = (
  name: string,
  allS: number,
  workloadS: number,
  saveStateS: number,
  copyFileS: number | undefined,
  commitS: number,
  migrateS: number,
): BenchResult => ({
  name: `thesis-${name}`,
  params: { source: 'published' },
  metrics: {
    allS,
    workloadS,
    saveStateS,
    ...(copyFileS === undefined ? {} : { copyFileS }),
    commitS,
    migrateS,
    // Of the workload as it was measured there, with the checkpoint in it: alone it is not told.
    allOfWorkloadShare: allS / workloadS,
    saveStateOfWorkloadShare: saveStateS / workloadS,
    ...(copyFileS === undefined ? {} : { copyFileOfWorkloadShare: copyFileS / workloadS }),
    commitOfWorkloadShare: commitS / workloadS,
    migrateOfWorkloadShare: migrateS / workloadS,
  },
});

export const thesisResults: readonly BenchResult[] = [
  row('linpack-3000', 38.3, 65.5, 28.6, undefined, 0.08, 9.2),
  row('bonnie-read', 90.9, 72.2, 79.6, undefined, 0.69, 9.3),
  row('bonnie-write', 185.3, 66.5, 82.6, undefined, 92.2, 9.8),
  row('linpack-500-first-of-two', 36.2, 12.3, 26.4, 0.89, 0.07, 9.2),
  row('linpack-500-second-of-two', 38.5, 12.9, 28.5, 1.98, 0.05, 9.5),
  row('bonnie-read-first-of-two', 90.2, 70.4, 78.9, 1.83, 0.16, 9.8),
  row('bonnie-read-second-of-two', 153.6, 126.5, 140.6, 4.38, 0.18, 9.6),
  row('bonnie-write-first-of-two', 175.5, 70.6, 81.8, 4.63, 82.4, 9.9),
  row('bonnie-write-second-of-two', 237.0, 193.7, 187.3, 82.2, 33.3, 9.4),
];
