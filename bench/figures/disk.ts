/** Charts and tables of the suite `disk`. */
import type { BenchResult } from '../report.js';
import { barChart, pivotBarChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { pivotTable, presentTables, tableOfAny } from './table.js';

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
/** `random-read-4k-server` → `random-read-4k`. */
const probeName = ({ name }: BenchResult): string => name.slice(0, name.lastIndexOf('-'));
const probeOf = ({ params }: BenchResult): string => String(params.probe);

export const diskFigures: SuiteFigures = {
  title: 'Disks: what replication leaves of them',
  about:
    'A Linux guest on TCG with two disks, in turns: through QEMU’s own raw file driver (raw), through disk servers (server), through disk servers while it is protected with an epoch every 20 ms (protected), and, as the floor beside it, through disk servers with nothing but stop, xen-save-devices-state and cont every 20 ms (floor; what QEMU flushes at each stop is left out there, for a protected guest does not wait for it). On the bare device diskload reads and writes past the guest’s page cache, four operations at a time, and one at a time with an fsync after each; bonnie++ has ext4. A share in percent is what remains of the same figure: of raw for server, of server for floor and protected, and of floor where it says so. Both hosts share this machine: the replica’s journal and image take their part of its two cores and of its disk, which they would not on a host of their own. So there are two more: all of the primary’s host on one processor, unprotected (alone), and protected with the backup’s host on the other one (apart; a share of alone). They still share the disk.',
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
    const probes = report.results.filter((result) => result.params.probe !== undefined && !isBonnie(result));
    const pivot = (title: string, note: string, metrics: readonly string[]) =>
      pivotTable(report, probes, { title, note, corner: 'probe', row: probeName, column: setUpOf, metrics });
    return presentTables([
      pivot('What remains, beside the floor', 'Of the unprotected operations, and of the floor’s.', [
        'operationsShare',
        'operationsOfFloorShare',
      ]),
      pivot('Whose processor time', 'A core’s time is 1; a machine of two has 2.', [
        ...['primaryHostCores', 'backupHostCores', 'otherCores'],
      ]),
      table('1 MiB operations', isBlock(1024)),
      table('4 KiB operations', isBlock(4)),
      table('fsync', isFsync, true),
      table('bonnie++', isBonnie, true),
      table('Copies of each written byte', ({ name }) => name === 'copies', true),
      table('A whole disk to another host', isCopy),
    ]);
  },
};
