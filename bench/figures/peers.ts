/** Charts and tables of the suite `peers`. */
import { barChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const isCheckpoint = (name: string): boolean => name.startsWith('checkpoint-');

export const peersFigures: SuiteFigures = {
  title: 'Peers: QEMU’s COLO and migrate',
  about:
    'Holdfast beside what stock QEMU offers, in turns, in one run. The guest is a flat multiboot guest: for the checkpoints it runs under /dev/kvm, which COLO needs and under which a Linux guest does not boot here; for the whole of RAM it is halted, so that what is timed is how the bytes move and not how fast the guest writes.',
  charts: (report) =>
    present([
      barChart(report, {
        title: 'Pause per checkpoint, the same guest',
        note: 'From QEMU’s STOP to its RESUME event, for both. COLO stops the guest while the checkpoint travels; Holdfast only while it is captured.',
        axis: { label: 'pause, ms' },
        where: ({ name }) => isCheckpoint(name),
        series: { median: 'pauseMsP50', p90: 'pauseMsP90', p99: 'pauseMsP99' },
      }),
      barChart(report, {
        title: 'All of RAM to another host',
        note: 'QEMU’s migrate in several set-ups, and Holdfast’s base sync of the same RAM.',
        axis: { label: 'throughput of page bytes, GB/s (median)' },
        where: ({ name }) => !isCheckpoint(name),
        series: { throughput: 'pageBytesGbPerS' },
      }),
    ]),
  tables: (report) =>
    presentTables([
      tableOfAny(
        report,
        report.results.filter(({ name }) => isCheckpoint(name)),
        { title: 'Checkpoints', casesAsColumns: true },
      ),
      tableOfAny(
        report,
        report.results.filter(({ name }) => !isCheckpoint(name)),
        { title: 'All of RAM', casesAsColumns: false },
      ),
    ]),
};
