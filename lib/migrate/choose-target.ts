/**
 * Which of several hosts a VM should move to, by what each answered about itself. Pure.
 *
 *   answers? ─► has the memory? ─► has the CPUs idle? ─► is there soonest
 *
 * Memory is a condition. CPUs come before speed: the VM moves once, and then lives there.
 */
import { bytesText, rateText, timeText } from './words.js';

/** QEMU's own memory and page tables, beside the guest's RAM. */
export const MEMORY_MARGIN = 1.05;
/** Ways there and back in which the VM stands still: the last pages, their acknowledgement, the command to run. */
export const SWITCHOVER_ROUND_TRIPS = 3;

export interface TargetOffer {
  /** As the operator named it. */
  readonly name: string;
  readonly freeBytes: number;
  /** CPUs' worth of idle time, such as 2.5. */
  readonly idleCpus: number;
  readonly roundTripMs: number;
  /** Measured towards it; bytes per millisecond. */
  readonly linkRate: number;
}

export interface SilentTarget {
  readonly name: string;
  /** Why nothing is known of it, as a clause: `it refused the connection`. */
  readonly silence: string;
}

export type TargetCandidate = TargetOffer | SilentTarget;

export interface TargetNeeds {
  readonly ramBytes: number;
  readonly vcpus: number;
}

export interface TargetChoice {
  /** Undefined: none will do. */
  readonly best: TargetOffer | undefined;
  /** For people: why this one, and what speaks against each other one. */
  readonly reason: string;
}

export const chooseTarget = (candidates: readonly TargetCandidate[], needs: TargetNeeds): TargetChoice => {
  const suitable = candidates
    .filter((candidate): candidate is TargetOffer => obstacleOf(candidate, needs) === undefined)
    // Stable: of equals the one that was named first.
    .toSorted((one, other) => compare(one, other, needs));
  const [best, ...others] = suitable;
  const obstacles = candidates.flatMap((candidate) => {
    const obstacle = obstacleOf(candidate, needs);
    return obstacle === undefined ? [] : [`${candidate.name}: ${obstacle}.`];
  });
  const sentences =
    best === undefined
      ? ['None of the targets will do.', ...obstacles]
      : [
          `${best.name}: ${describe(best, needs)}.`,
          ...others.map((other) => `${other.name} ${drawback(other, best, needs)}.`),
          ...obstacles,
        ];
  return { best, reason: sentences.join(' ') };
};

const obstacleOf = (candidate: TargetCandidate, { ramBytes }: TargetNeeds): string | undefined => {
  if ('silence' in candidate) return candidate.silence;
  const neededBytes = ramBytes * MEMORY_MARGIN;
  if (candidate.freeBytes < neededBytes) {
    return `only ${bytesText(candidate.freeBytes)} of memory are free, ${bytesText(neededBytes)} are needed`;
  }
  return candidate.linkRate > 0 ? undefined : 'nothing gets through to it';
};

/** CPUs that the VM would have to share with what runs there; in halves, for a moment's look tells no more. */
const cpusShort = ({ idleCpus }: TargetOffer, { vcpus }: TargetNeeds): number =>
  Math.round(2 * Math.max(0, vcpus - idleCpus)) / 2;

/** For all of RAM once, and the switchover. */
const arrivalMs = ({ linkRate, roundTripMs }: TargetOffer, { ramBytes }: TargetNeeds): number =>
  ramBytes / linkRate + SWITCHOVER_ROUND_TRIPS * roundTripMs;

const compare = (one: TargetOffer, other: TargetOffer, needs: TargetNeeds): number =>
  cpusShort(one, needs) - cpusShort(other, needs) ||
  arrivalMs(one, needs) - arrivalMs(other, needs) ||
  other.idleCpus - one.idleCpus ||
  other.freeBytes - one.freeBytes;

const describe = (offer: TargetOffer, needs: TargetNeeds): string => {
  const { freeBytes, linkRate, roundTripMs } = offer;
  return `${bytesText(freeBytes)} of memory free, ${cpusText(offer, needs)}, ${timeText(roundTripMs)} there and back, ${rateText(linkRate)}: the VM's memory within ${timeText(arrivalMs(offer, needs))}`;
};

const cpusText = ({ idleCpus }: TargetOffer, { vcpus }: TargetNeeds): string =>
  `${idleCpus.toLocaleString('en', { maximumFractionDigits: 1 })} CPUs idle for ${vcpus} of the VM`;

const drawback = (offer: TargetOffer, best: TargetOffer, needs: TargetNeeds): string => {
  if (cpusShort(offer, needs) > cpusShort(best, needs)) return `has only ${cpusText(offer, needs)}`;
  const [ms, bestMs] = [arrivalMs(offer, needs), arrivalMs(best, needs)];
  if (ms > bestMs) return `would take ${timeText(ms)}`;
  return 'is no better';
};
