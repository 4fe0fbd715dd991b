/**
 * What the rounds of a migration tell, as every policy reads it. Pure; no figure here is ever NaN.
 *
 *   round 1              round 2        round 3
 *   ├── all of RAM ──────┼── to send ───┼── to send ──┤ dirty now
 *                        ▲ dirty then ──▲ dirty then ─▲        ÷ link = expected downtime
 *
 * What a round has to send is what was dirty when the one before it ended. Some of it may be skipped, having been
 * written again meanwhile: that is dirty at its end, too, so a round in which everything is skipped gains nothing.
 */
import type { MigrationDecision, MigrationLimits, MigrationRound } from './policy.js';
import { pagesText, rateText, timeText } from './words.js';

/** A round that sends less measures the way there and back, and the scan, rather than the link. */
export const MEASURED_BYTES_MIN = 1 << 20;
/** Shorter rounds than the clock can tell count as this long. */
const ROUND_MS_MIN = 0.01;

/**
 * Bytes per millisecond: that of the latest round that sent enough to measure it by, or else of the one
 * that sent most. 0 if nothing was ever sent.
 *
 * A round of which most was read from disks over there took its time for that: what it sent says only that
 * the link is no slower, as any round does.
 */
export const linkRate = (rounds: readonly MigrationRound[]): number => {
  const sending = rounds.filter(({ pages, diskPages }) => (diskPages?.verified ?? 0) <= pages);
  const told = rateOf(sending);
  return sending.length === rounds.length || sending.some(isMeasure)
    ? told
    : Math.max(told, ...rounds.map((round) => round.bytes / roundTime(round)));
};

const isMeasure = ({ bytes }: MigrationRound): boolean => bytes >= MEASURED_BYTES_MIN;

const rateOf = (rounds: readonly MigrationRound[]): number => {
  const measured =
    rounds.findLast(isMeasure) ??
    rounds.reduce<MigrationRound | undefined>(
      (most, round) => (most === undefined || round.bytes >= most.bytes ? round : most),
      undefined,
    );
  return measured === undefined ? 0 : measured.bytes / roundTime(measured);
};

const roundTime = ({ roundMs }: MigrationRound): number => Math.max(roundMs, ROUND_MS_MIN);

/** Pages that round `index` had to send. */
export const pagesToSend = (rounds: readonly MigrationRound[], index: number): number => {
  const before = rounds[index - 1];
  if (before !== undefined) return before.dirtyPages;
  const first = rounds[index];
  if (first === undefined) return 0;
  const { pages, zeroPages, skippedPages = 0, diskPages } = first;
  return pages + zeroPages + skippedPages + (diskPages?.verified ?? 0);
};

/** Bytes per millisecond that the guest dirtied in the last round, each page counted once. */
export const writeRate = (rounds: readonly MigrationRound[], pageBytes: number): number => {
  const last = rounds.at(-1);
  return last === undefined ? 0 : (last.dirtyPages * pageBytes) / roundTime(last);
};

/**
 * What a stop is expected to take beside the pages, a round after one was measured. That one may have waited for a
 * disk, and is not repeated: what it took beyond the usual counts half with each round. KVM's rule counts pages only.
 */
export const agedOverheadMs = (overheadMs: number, usualMs: number): number =>
  overheadMs <= usualMs ? overheadMs : usualMs + (overheadMs - usualMs) / 2;

export interface Remainder {
  readonly pages: number;
  /** Bytes per millisecond; 0: not known yet. */
  readonly linkRate: number;
  /** If the VM were stopped now. Infinity while nothing has told the link's rate. */
  readonly expectedDowntimeMs: number;
}

/** What stop-and-copy would have to send now, and how long that would take. */
export const remainderOf = (rounds: readonly MigrationRound[], limits: MigrationLimits): Remainder => {
  const pages = rounds.at(-1)?.dirtyPages ?? Number.POSITIVE_INFINITY;
  const rate = linkRate(rounds);
  const sendMs = pages === 0 ? 0 : rate === 0 ? Number.POSITIVE_INFINITY : (pages * limits.pageBytes) / rate;
  return { pages, linkRate: rate, expectedDowntimeMs: limits.overheadMs + sendMs };
};

/**
 * The rule that all policies begin with: stop-and-copy as soon as what remains fits the downtime that was
 * asked for; and nothing is decided before the first round has ended. Undefined: it does not fit.
 */
export const decideWhatIsClear = (
  rounds: readonly MigrationRound[],
  limits: MigrationLimits,
): MigrationDecision | undefined => {
  const { expectedDowntimeMs } = remainderOf(rounds, limits);
  if (rounds.length === 0) {
    return { step: 'next-round', expectedDowntimeMs, reason: 'Nothing has been sent yet.' };
  }
  if (expectedDowntimeMs > limits.downtimeMs) return undefined;
  return {
    step: 'stop-and-copy',
    expectedDowntimeMs,
    reason: `${describeRemainder(rounds, limits)}: that fits the ${timeText(limits.downtimeMs)} allowed.`,
  };
};

/** `120 pages (480 KiB) remain, 4 ms at 118 MiB/s`, to be continued. */
export const describeRemainder = (rounds: readonly MigrationRound[], limits: MigrationLimits): string => {
  const { pages, linkRate, expectedDowntimeMs } = remainderOf(rounds, limits);
  const remain = `${pagesText(pages, limits.pageBytes)} ${pages === 1 ? 'remains' : 'remain'}`;
  if (pages === 0) return `Nothing remains but the devices, ${timeText(expectedDowntimeMs)}`;
  if (linkRate === 0) return `${remain}, and nothing has told the link's rate yet`;
  const devices = limits.overheadMs > 0 ? ' with the devices' : '';
  return `${remain}, ${timeText(expectedDowntimeMs)}${devices} at ${rateText(linkRate)}`;
};
