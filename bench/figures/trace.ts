/** Tables of the suite `trace`. */
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

export const traceFigures: SuiteFigures = {
  title: 'What tracing costs the guest',
  about:
    'A 512 MB Linux guest with two vCPUs on TCG: a program that computes without pause, and redis under increments over 16 connections. Windows of two seconds take turns: untraced, traced (the scheduler’s events of both vCPU threads), and traced with the guest’s processes (its run queues read 1,000 times a second). Each traced window is compared with the untraced ones before and after it; the overhead is what is missing of their work, in the median of the turns. On two cores, which the guest, its clients and the trace share.',
  // A few percent, with noise of as much: a table says more than bars.
  charts: () => [],
  tables: (report) =>
    presentTables([
      tableOfAny(report, report.results, {
        title: 'Work that is missing while it is traced',
        note: 'Below zero: the traced windows happened to be the better ones. Lost events found the kernel’s buffer full; late looks came more than a millisecond late.',
        casesAsColumns: true,
      }),
    ]),
};
