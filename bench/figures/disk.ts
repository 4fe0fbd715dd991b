/** Charts and tables of the suite `disk`. */
import type { BenchResult } from '../report.js';
import { barChart, pivotBarChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const isBonnie = ({ name }: BenchResult): boolean => name.startsWith('bonnie-');
const isFsync = ({ name }: BenchResult): boolean => name.startsWith('fsync-');
const isCopy = ({ params }: BenchResult): boolean => params.tool !== undefined;
const isLoad = (result: BenchResult): boolean =>
  result.params.probe !== undefined && !isBonnie(result) && !isFsync(result);
const isBlock =
  (kib: number) =>
  (result: BenchResult): boolean =>
    isLoad(result) && result.params.blockKiB === kib;

/** `random-read-4k-server` → `server`. */
const setUpOf = ({ name }: BenchResult): string => name.slice(name.lastIndexOf('-') + 1);
const probeOf = ({ params }: BenchResult): string => String(params.probe);

export const diskFigures: SuiteFigures = {
  title: 'Disks: what replication leaves of them',
  about:
    'A Linux guest on TCG with two disks, in turns: through QEMU’s own raw file driver (raw), through disk servers (server), and through disk servers while it is protected with an epoch every 20 ms (protected). On the bare device diskload reads and writes past the guest’s page cache, four operations at a time, and one at a time with an fsync after each; bonnie++ has ext4. A share in percent is what remains of the same figure, of raw for server and of server for protected. Both hosts share this machine: the replica’s journal and image take their part of its two cores and of its disk, which they would not on a host of their own.',
  charts: (report) =>
    present([
      pivotBarChart(report, {
        title: 'Throughput of 1 MiB operations',
        axis: { label: 'MB/s (median of the turns)' },
        where: isBlock(1024),
        group: probeOf,
        series: setUpOf,
        metric: 'rateMbPerS',
      }),
      pivotBarChart(report, {
        title: 'Throughput of 4 KiB operations',
        axis: { label: 'operations per second (median of the turns)' },
        where: isBlock(4),
        group: probeOf,
        series: setUpOf,
        metric: 'operationsPerS',
      }),
      barChart(report, {
        title: 'What a database waits for its disk',
        note: 'fsync after each 4 KiB write. It is answered when the local image is safe; the backup is not waited for, output is held instead.',
        axis: { label: 'fsync, ms' },
        where: isFsync,
        series: { median: 'fsyncMsP50', p99: 'fsyncMsP99' },
      }),
      barChart(report, {
        title: 'bonnie++',
        axis: { label: 'MB/s (median of the turns)' },
        where: isBonnie,
        series: { write: 'writeMbPerS', rewrite: 'rewriteMbPerS', read: 'readMbPerS' },
      }),
      barChart(report, {
        title: 'A whole disk to another host',
        note: 'Holdfast’s base copy beside nbdcopy and qemu-img convert, which write to nbdkit over TCP.',
        axis: { label: 'throughput of data, MB/s (median)' },
        where: isCopy,
        series: { throughput: 'dataMbPerSP50' },
      }),
    ]),
  tables: (report) => {
    const table = (title: string, of: (result: BenchResult) => boolean, casesAsColumns = false) =>
      tableOfAny(report, report.results.filter(of), { title, casesAsColumns });
    return presentTables([
      table('1 MiB operations', isBlock(1024)),
      table('4 KiB operations', isBlock(4)),
      table('fsync', isFsync, true),
      table('bonnie++', isBonnie, true),
      table('Copies of each written byte', ({ name }) => name === 'copies', true),
      table('A whole disk to another host', isCopy),
    ]);
  },
};
