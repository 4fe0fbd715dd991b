/** Charts and tables of the suite `checkpoint`. */
import type { BenchResult } from '../report.js';
import { barChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const isPublished = ({ params }: BenchResult): boolean => params.source === 'published';

export const checkpointFigures: SuiteFigures = {
  title: 'Checkpoints to disk: hand-off and savevm',
  about:
    'The experiments of the Thai thesis on KVM checkpointing. A Linux guest on TCG with a disk computes (LINPACK) or works on its disk (bonnie++): alone, with one checkpoint by hand-off, which is the thesis’s method, with two of them in a row, and with one `savevm` of stock QEMU. The workload’s time is from its begin to its end, with the checkpoints in it; the phases are those of the last checkpoint. How long the VM stands still is the hand-off’s phase of migrating; of `savevm` it is from QEMU’s STOP to its RESUME event.',
  charts: (report) =>
    present([
      barChart(report, {
        title: 'For how long the VM stands still',
        axis: { label: 'ms' },
        where: (result) => !isPublished(result),
        series: { 'stands still': 'stoppedMs' },
      }),
    ]),
  tables: (report) =>
    presentTables([
      tableOfAny(
        report,
        report.results.filter((result) => !isPublished(result)),
        { title: 'Workloads and their checkpoints', casesAsColumns: false },
      ),
      tableOfAny(report, report.results.filter(isPublished), {
        title: 'The thesis’s averages',
        note: 'Of another machine: what can be compared is each phase as a share of the workload.',
        casesAsColumns: false,
      }),
    ]),
};
