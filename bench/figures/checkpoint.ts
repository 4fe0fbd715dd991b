/** Charts and tables of the suite `checkpoint`. */
import type { BenchResult } from '../report.js';
import { barChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';
import { isPhase, phaseTables } from './thesis-phases.js';

const isUnderWorkload = ({ params }: BenchResult): boolean => 'workload' in params;
const isPause = ({ name }: BenchResult): boolean => name.startsWith('pause-') || name === 'restore';
const isLoss = ({ name }: BenchResult): boolean => name.startsWith('loss-');

const withoutPhases = ({ metrics, ...result }: BenchResult): BenchResult => ({
  ...result,
  metrics: Object.fromEntries(Object.entries(metrics).filter(([name]) => !isPhase(name))),
});

export const checkpointFigures: SuiteFigures = {
  title: 'Checkpoints to disk: capture, hand-off and savevm',
  about:
    'The experiments of the Thai thesis on KVM checkpointing. A Linux guest on TCG with a disk computes (LINPACK) or works on its disk (bonnie++): alone, with one checkpoint or two in a row by capture, by hand-off, which is the thesis’s method, and with one `savevm` of stock QEMU. Its disk is a qcow2, as `savevm` needs, and all the others’ are raw, also alone: what its workload takes longer contains what qcow2 costs. LINPACK of order 3000, of which an emulated CPU takes five minutes for a round, is ended after 20 s: its checkpoints are timed, its own time is not; `--only linpack-3000-whole-*` brings it to its end, three rounds, in an hour or more. The workload’s time is from its begin to its end, with the checkpoints in it. How long the VM stands still is by capture its pause, by hand-off the phase of migrating, of `savevm` from QEMU’s STOP to its RESUME event; a hand-off has a short stop of its own before, for QEMU’s ROMs. The phases of a capture: saving state is all rounds of memory and the devices; nothing migrates.',
  charts: (report) =>
    present([
      barChart(report, {
        title: 'For how long the VM stands still',
        axis: { label: 'ms' },
        where: (result) => isUnderWorkload(result) && 'stoppedMs' in result.metrics,
        series: { 'stands still': 'stoppedMs' },
      }),
      barChart(report, {
        title: 'Turn after turn: a guest that writes 20 MB over and over',
        axis: { label: 'pause, ms' },
        where: ({ metrics }) => 'pauseMsP50' in metrics,
        series: { median: 'pauseMsP50', longest: 'pauseMsMax' },
      }),
    ]),
  tables: (report) => {
    const table = (
      title: string,
      where: (result: BenchResult) => boolean,
      note: string,
      casesAsColumns = false,
    ) => {
      const results = report.results.filter(where).map(withoutPhases);
      return tableOfAny(report, results, { title, note, casesAsColumns });
    };
    return presentTables([
      table(
        'Pauses, and restoring',
        isPause,
        'Increments hold what was written since the one before; pause pages are those that were left for the pause. A hand-off without a checkpoint shares memory, one with a checkpoint copies it ahead. The guest has no disk. Restoring is timed inside `holdfast restore`, from its begin: starting the command itself is not in it.',
        true,
      ),
      table(
        'What a checkpoint takes from a computing guest',
        isLoss,
        'Work lost while it is written, against the windows before and after it; attaching and detaching are not in it. The guest has no disk: no image is copied, no overlay committed.',
        true,
      ),
      table('Workloads and their checkpoints', isUnderWorkload, 'The phases of the checkpoints follow.'),
      ...phaseTables(report),
    ]);
  },
};
