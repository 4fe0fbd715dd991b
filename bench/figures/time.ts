/** Tables of the suite `time`. */
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

export const timeFigures: SuiteFigures = {
  title: 'The guest’s clock',
  about:
    'A 512 MB Linux guest on TCG, without NTP, tells its time (redis TIME) over one connection; the host’s monotonic clock is compared with it. Unprotected, then with a checkpoint every 20 ms, then after a failover. Of each window the question that arrived soonest counts, so delays of the network and held output don’t show; a slope over the whole stretch does.',
  // Four numbers of very different size: a table says more than bars.
  charts: () => [],
  tables: (report) =>
    presentTables([
      tableOfAny(report, report.results, {
        title: 'The guest’s clock against the host’s',
        note: 'Drift in ppm; negative: the guest’s clock is slow. A clock that stands still while the guest is paused is slow by the share of the pauses. Step: by how much the clock jumped at the failover; the guest goes on from its last checkpoint, so it can’t know of the time since.',
        casesAsColumns: true,
      }),
    ]),
};
