/** Charts and tables of the suite `migrate`. */
import type { BenchResult } from '../report.js';
import { barChart, pivotBarChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const of =
  (workload: string) =>
  ({ params }: BenchResult): boolean =>
    params.workload === workload;

/** `writer-fixed-relaxed-qemu` → `fixed-relaxed`. */
const policyOf = ({ name }: BenchResult): string => name.split('-').slice(1, -1).join('-');
const engineOf = ({ params }: BenchResult): string => String(params.engine);

export const migrateFigures: SuiteFigures = {
  title: 'Live migration: policies and engines',
  about:
    'A Linux guest on TCG (of an odd size of RAM, since QEMU before 9.0 damages TCG guests of a round one), moved to and fro between two hosts that share this machine, case after case in turns. Holdfast’s engine and QEMU’s own are steered by the same policies. The total is from asking until the VM runs over there; for Holdfast it contains the checks and the start of the QEMU over there, which waits already when QEMU’s engine begins. The downtime is by the source’s clock, from its stop until it is known that the VM runs over there; the client’s gap is by a client that asks for an echo every 5 ms, and contains what the network needs to learn of the move. Bytes are those that left the host over the link, the same measure for both. Times and bytes are of the moves that arrived, unless said otherwise. After each workload its memory, or what it was told, is checked.',
  charts: (report) =>
    present([
      pivotBarChart(report, {
        title: 'A guest that writes memory faster than the link carries',
        axis: { label: 'total, ms (median)' },
        where: of('writer'),
        group: policyOf,
        series: engineOf,
        metric: 'totalMsP50',
      }),
      pivotBarChart(report, {
        title: 'The same: for how long it stands still',
        axis: { label: 'downtime, ms (median)' },
        where: of('writer'),
        group: policyOf,
        series: engineOf,
        metric: 'downtimeMsP50',
      }),
      pivotBarChart(report, {
        title: 'redis under load',
        axis: { label: 'downtime, ms (median)' },
        where: of('redis'),
        group: policyOf,
        series: engineOf,
        metric: 'downtimeMsP50',
      }),
      barChart(report, {
        title: 'An idle guest',
        axis: { label: 'ms' },
        where: of('idle'),
        series: { downtime: 'downtimeMsP50', 'client’s gap': 'clientGapMsP50' },
      }),
    ]),
  tables: (report) => {
    const table = (title: string, workload: string, note: string, casesAsColumns = false) =>
      tableOfAny(report, report.results.filter(of(workload)), { title, note, casesAsColumns });
    return presentTables([
      table('An idle guest', 'idle', 'Of the downtime, what it was made of, in order.', true),
      table(
        'redis under load',
        'redis',
        'Four connections that increment counters, none of which may be lost.',
      ),
      table(
        'A guest that writes memory faster than the link',
        'writer',
        'memwriter stamps pages of its working set in random order. `fixed` with the default downtime never arrives; relaxed, it is allowed a tenth more than what its rounds had come down to when it was given up.',
      ),
      table(
        'A guest whose memory is full of a file',
        'cache',
        'It has read the file from a disk of which both hosts have a replica.',
        true,
      ),
    ]);
  },
};
