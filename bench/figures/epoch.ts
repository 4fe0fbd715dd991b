/** Charts and tables of the suite `epoch`. */
import { barChart, lineChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const isSweep = (name: string): boolean => name.startsWith('sweep-');
const isParts = (name: string): boolean => name.startsWith('dirty-') || name.startsWith('ram-');

const isIdle = (name: string): boolean => name.startsWith('idle-');

/** A line of the sweep's charts. */
const workloadOf = ({ params }: { readonly params: Readonly<Record<string, unknown>> }): string =>
  params.workload === 'redis'
    ? 'redis'
    : `CPU, ${Number(params.pagesPerSecond).toLocaleString('en-US')} pages/s`;

const intervalAxis = {
  label: 'checkpoint interval, ms',
  scale: 'log',
  of: ({ params }: { readonly params: Readonly<Record<string, unknown>> }) => Number(params.intervalMs),
} as const;

export const epochFigures: SuiteFigures = {
  title: 'Epochs: pause, pace, guest’s work, failover',
  about:
    'A Linux guest on TCG, of 512 MB unless said otherwise, is checkpointed to a second host; both hosts are network namespaces of this machine, joined by a veth pair. A relay holds the guest’s output, as for every VM that Holdfast launches on a tap. Staged captures are speculative: what is dirty is copied, and sent where that pays, while the VM still runs; the pause is left with what was written since. The parts of a pause overlap (device state and output boundary beside scan and copy), so they add up to more than the pause.',
  charts: (report) =>
    present([
      barChart(report, {
        title: 'Pause per checkpoint',
        note: 'How long the guest stands still. qemu-floor: bare stop, xen-save-devices-state and cont over QMP on the same guest, unprotected; no checkpoint of a running VM on stock QEMU can be shorter.',
        axis: { label: 'pause, ms' },
        where: ({ name }) => isParts(name) || name === 'qemu-floor' || isIdle(name),
        series: { median: 'pauseMsP50', p99: 'pauseMsP99' },
      }),
      barChart(report, {
        title: 'Sending a checkpoint',
        note: 'From the first byte: when the last byte was handed to the kernel, and when the backup had acknowledged all of it, verified.',
        axis: { label: 'time, ms (median)' },
        where: ({ name }) => isParts(name),
        series: {
          send: 'sendMsP50',
          acknowledgement: 'ackMsP50',
          'CPU of the sending thread': 'sendCpuMsP50',
        },
      }),
      lineChart(report, {
        title: 'What remains of the guest’s own work',
        note: 'Rate of the guest’s work while protected, against the rate right before and after, unprotected. CPU: a program that computes without pause and dirties pages at the given rate. redis: increments over many connections, each with one request under way, which therefore also waits for the output to be released.',
        x: intervalAxis,
        y: { label: 'work that remains, % (median)', metric: 'guestWorkShareP50', factor: 100, max: 100 },
        where: ({ name }) => isSweep(name),
        series: workloadOf,
      }),
      lineChart(report, {
        title: 'Pause over the interval',
        note: 'A shorter interval has fewer dirty pages to save, but the pause never falls below QEMU’s own part of it.',
        x: intervalAxis,
        y: { label: 'pause, ms (median)', metric: 'pauseMsP50' },
        where: ({ name }) => isSweep(name),
        series: workloadOf,
        references: [
          {
            name: 'qemu-floor',
            y: report.results.find(({ name }) => name === 'qemu-floor')?.metrics.pauseMsP50,
          },
        ],
      }),
      lineChart(report, {
        title: 'Output delay over the interval',
        note: 'The longest that a packet of an epoch waits: it is sent at the epoch’s beginning and released when the backup has acknowledged the epoch.',
        x: intervalAxis,
        y: { label: 'output delay, at most, ms (median)', metric: 'outputDelayMsP50' },
        where: ({ name }) => isSweep(name),
        series: workloadOf,
      }),
      barChart(report, {
        title: 'Failover',
        note: 'SIGKILL of QEMU and of the daemon at a random moment. A killed process closes its connections, so the backup knows at once; after a silent loss (cut link, dead host) the heartbeat time-out comes on top.',
        axis: { label: 'from the kill to the guest running on the backup, ms' },
        where: ({ name }) => name === 'failover',
        series: { median: 'killToRunningMsP50', worst: 'killToRunningMsMax' },
      }),
    ]),
  tables: (report) => {
    const of = (test: (name: string) => boolean) => report.results.filter(({ name }) => test(name));
    const parts = of((name) => isParts(name));
    const floor = of((name) => name === 'qemu-floor');
    const idle = of(isIdle);
    const sweep = of(isSweep);
    const failover = of((name) => name === 'failover');
    return presentTables([
      tableOfAny(report, parts, {
        title: 'One epoch, part by part',
        note: 'After a warm-up.',
        casesAsColumns: true,
      }),
      tableOfAny(report, floor, {
        title: 'The floor: QEMU’s own part of a pause',
        note: 'On the same guest, unprotected.',
        casesAsColumns: false,
      }),
      tableOfAny(report, idle, {
        title: 'As many checkpoints as there can be',
        note: 'An idle guest, each epoch right after the acknowledgement of the one before. Missed: epochs that were never acknowledged.',
        casesAsColumns: true,
      }),
      tableOfAny(report, sweep, {
        title: 'The guest’s own work, and the epochs meanwhile',
        note: 'Protected and unprotected in turns; the unit of work is a lot of 4,096 hash steps for cpu, an acknowledged increment for redis.',
        casesAsColumns: false,
        unnamed: true,
      }),
      tableOfAny(report, failover, { title: 'Failover', casesAsColumns: false }),
    ]);
  },
};
