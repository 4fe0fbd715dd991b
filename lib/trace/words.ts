/** A summary in words, for people. */
import type { ThreadSummary, TraceSummary } from './summary.js';

export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** {0: 0.75, 1: 0.25} → `0: 75.0 %, 1: 25.0 %` */
export const sharesText = (shares: Readonly<Record<string, number>>): string =>
  Object.entries(shares)
    .map(([key, share]) => `${key}: ${percent(share)}`)
    .join(', ');

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;

export const times = (number: number): string => (number === 1 ? 'once' : `${number} times`);

/** What is missing from the trace, if anything is. */
export const lossText = ({ events: { lost, discarded }, threads }: TraceSummary): string | undefined => {
  const gaps = threads.reduce((total, thread) => total + thread.gaps, 0);
  if (lost === 0 && discarded === 0 && gaps === 0) return undefined;
  const parts = [
    ...(lost === 0 ? [] : [`${count(lost, 'event')} lost, for the kernel's buffer was full (--buffer)`]),
    ...(discarded === 0 ? [] : [`${count(discarded, 'event')} over the limit`]),
    ...(gaps === 0 ? [] : [`${times(gaps)} a thread's place is not known`]),
  ];
  return `incomplete: ${parts.join('; ')}`;
};

/** Processes that are told on a terminal: those with the most time. */
const PROCESSES_TOLD = 12;
/** Of QEMU's other threads those that ran at all are told, no more than this. */
const THREADS_TOLD = 64;

export const summaryText = (summary: TraceSummary): string => {
  const { title, durationMs, threads, pauses, events, guest, notes } = summary;
  const loss = lossText(summary);
  const told = threads
    .filter(({ vcpus, ranShare }) => vcpus.length > 0 || ranShare > 0)
    .slice(0, THREADS_TOLD);
  return [
    `${title}: ${(durationMs / 1e3).toFixed(2)} s, ${events.recorded} events`,
    ...(loss === undefined ? [] : [loss]),
    ...notes,
    ...told.map(threadText),
    ...(pauses.count === 0
      ? []
      : [
          `the VM was paused ${times(pauses.count)}, ${pauses.ms.toFixed(1)} ms in all, ${pauses.maxMs.toFixed(1)} ms at most`,
        ]),
    ...(guest === undefined ? [] : guestText(guest)),
  ]
    .map(printable)
    .join('\n');
};

const threadText = (thread: ThreadSummary): string => {
  const { label, tid, ranShare, coreShares, migrations, migrationMs, longestWait } = thread;
  const ran =
    ranShare === 0 ? 'did not run' : `ran ${percent(ranShare)} of the time (core ${sharesText(coreShares)})`;
  const moved =
    migrationMs === undefined
      ? count(migrations, 'migration')
      : `${count(migrations, 'migration')} (running again after ${migrationMs.p50.toFixed(2)} ms, ${migrationMs.max.toFixed(2)} at most)`;
  const waited =
    longestWait === undefined
      ? 'never waited'
      : `longest wait ${longestWait.ms.toFixed(2)} ms at ${longestWait.atMs.toFixed(1)} ms${
          longestWait.pushedOffBy === undefined ? '' : `, pushed off by ${longestWait.pushedOffBy}`
        }`;
  return `  ${label} (thread ${tid}): ${ran}; ${moved}; ${waited}`;
};

/** How far the guest's processes may be believed. */
export const samplingText = ({
  source,
  samplingErrorMs,
}: Pick<NonNullable<TraceSummary['guest']>, 'source' | 'samplingErrorMs'>): string =>
  source === 'run queues'
    ? `its run queues were read every ${samplingErrorMs} ms: what is shorter may be missing`
    : `its agent was asked every ${samplingErrorMs} ms: of each time only who used most of a vCPU is shown`;

const guestText = (guest: NonNullable<TraceSummary['guest']>): string[] => [
  `guest: ${guest.kernel.split(' ').slice(0, 3).join(' ')}; ${samplingText(guest)}`,
  ...guest.processes
    .slice(0, PROCESSES_TOLD)
    .map(
      ({ name, pid, onVcpuShare, vcpuShares, coreShares }) =>
        `  ${name} (${pid}): ${percent(onVcpuShare)} of the time (vCPU ${sharesText(vcpuShares)}; core ${sharesText(coreShares)})`,
    ),
  ...(guest.processes.length > PROCESSES_TOLD
    ? [`  and ${guest.processes.length - PROCESSES_TOLD} more`]
    : []),
];

/** A guest chooses its processes' names, and its kernel's: they must not steer the terminal. */
const printable = (text: string): string => text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '�');
