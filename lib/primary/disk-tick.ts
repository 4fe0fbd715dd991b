/**
 * When an epoch has to end because of what the guest wrote to its disks: the
 * backup's journals have a fixed size, and what belongs to no committed epoch
 * cannot leave them. Pure.
 */

/** What is known of one disk's log on the primary. */
export interface LogPosition {
  readonly id: string;
  /** Bytes ever logged in this session. */
  readonly loggedBytes: number;
}

/** An epoch's share of the journal: the next one fills it while this one is committed, applied and freed. */
const EPOCH_SHARE = 1 / 4;

/**
 * @param boundary `loggedBytes` of each disk at the last epoch's boundary
 * @returns true if one of them has logged a journal's share since
 */
export const isJournalShareFull = (
  logs: readonly LogPosition[],
  boundary: ReadonlyMap<string, number>,
  journalBytes: number,
): boolean =>
  logs.some(({ id, loggedBytes }) => loggedBytes - (boundary.get(id) ?? 0) > journalBytes * EPOCH_SHARE);
