/** Disks as text for a person. Pure. */
import type { DaemonStatus } from '../admin/protocol.js';
import { sizeText } from './values.js';

type PrimaryView = Extract<DaemonStatus, { role: 'primary' }>;
type BackupView = Extract<DaemonStatus, { role: 'backup' }>;

interface Copy {
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond?: number | undefined;
  readonly secondsLeft?: number | undefined;
}

/** `1.2 GiB of 20 GiB (6 %), 310 MiB/s, 1 min left`. */
export const copyText = ({ doneBytes, totalBytes, bytesPerSecond, secondsLeft }: Copy): string => {
  const percent = totalBytes === 0 ? 100 : Math.min(100, Math.floor((100 * doneBytes) / totalBytes));
  return [
    `${sizeText(doneBytes)} of ${sizeText(totalBytes)} (${percent} %)`,
    ...(bytesPerSecond === undefined ? [] : [`${sizeText(Math.round(bytesPerSecond))}/s`]),
    ...(secondsLeft === undefined ? [] : [`${timeText(secondsLeft)} left`]),
  ].join(', ');
};

/** Rounded up: nobody minds what comes sooner. */
export const timeText = (seconds: number): string => {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
};

/** One row of the status per disk. */
export const primaryDiskTexts = ({ disks = [] }: PrimaryView): readonly string[] =>
  disks.map(({ id, image, imageBytes, loggedBytes, receivedBytes, ringUsedBytes, ringBytes, server }) => {
    const behindBytes = Math.max(0, loggedBytes - receivedBytes);
    const facts = [
      ...(loggedBytes === 0
        ? []
        : [`${sizeText(behindBytes)} behind, log ${percentText(ringUsedBytes, ringBytes)} full`]),
      ...(server !== undefined && server.markedBytes > 0 ? [`${sizeText(server.markedBytes)} changed`] : []),
      ...(server !== undefined && server.stalls > 0
        ? [`the guest had to wait ${server.stalls} times, ${Math.round(server.stalledMs)} ms`]
        : []),
      ...(server?.lastError === undefined
        ? []
        : [`FAILS: ${server.errors} errors, last ${server.lastError}`]),
    ];
    return diskText(id, image, imageBytes, facts);
  });

export const replicaDiskTexts = ({ disks = [] }: BackupView): readonly string[] =>
  disks.map(({ id, image, imageBytes, journalUsedBytes, journalBytes, durableEpoch, fault, closed }) =>
    diskText(id, image, imageBytes, [
      ...(closed ? ['not in use'] : []),
      `journal ${percentText(journalUsedBytes, journalBytes)} full`,
      ...(durableEpoch === 0 ? [] : [`epoch ${durableEpoch} on stable storage`]),
      ...(fault === undefined ? [] : [`FAILS: ${fault}`]),
    ]),
  );

const diskText = (id: string, image: string, imageBytes: number, facts: readonly string[]): string =>
  `${id}, ${image}, ${sizeText(imageBytes)}${facts.length === 0 ? '' : ` (${facts.join('; ')})`}`;

const percentText = (part: number, whole: number): string =>
  `${whole === 0 ? 0 : Math.round((100 * part) / whole)} %`;
