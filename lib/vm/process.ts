/**
 * Processes that are not our children, told apart safely.
 *
 * A pid alone can name another process by the time it is used. A process is
 * identified by its pid and its start time (field 22 of /proc/PID/stat), and
 * signals go only to a process that still has both.
 */

import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { CancelledError, VmGoneError } from '../errors.js';

export interface ProcessIdentity {
  readonly pid: number;
  /** Start time in clock ticks since boot, as the kernel prints it. */
  readonly startTicks: string;
}

interface ProcessStat {
  /** R, S, D, T, Z, X, … */
  readonly state: string;
  readonly startTicks: string;
}

const readStat = async (pid: number): Promise<ProcessStat | undefined> => {
  let text: string;
  try {
    text = await readFile(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The second field is the name in parentheses, which may hold anything: count from its end.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? 'X', startTicks: fields[19] ?? '' };
};

/** @throws VmGoneError if there is no such process. */
export const identifyProcess = async (pid: number): Promise<ProcessIdentity> => {
  const stat = await readStat(pid);
  if (stat === undefined) throw new VmGoneError(`there is no process ${pid}`, { details: { pid } });
  return { pid, startTicks: stat.startTicks };
};

export const isSameProcess = (one: ProcessIdentity, other: ProcessIdentity): boolean =>
  one.pid === other.pid && one.startTicks === other.startTicks;

/** False once it has ended, also while its parent has not collected it. */
export const isAlive = async (process: ProcessIdentity): Promise<boolean> => {
  const stat = await readStat(process.pid);
  return stat?.startTicks === process.startTicks && stat.state !== 'Z' && stat.state !== 'X';
};

/**
 * A process that was killed closes its sockets a moment before it is gone, and a QEMU that quits its monitor before
 * it gives up the guest's memory: 7 ms for 512 MB, 33 beside eight processes that keep two cores busy.
 */
const END_GRACE_MS = 2_000;
const END_POLL_MS = 2;

/** Whether a process whose connection was lost has ended, or does so within that moment. */
export const endsSoon = async (process: ProcessIdentity): Promise<boolean> =>
  await waitForExit(process, { pollMs: END_POLL_MS, signal: AbortSignal.timeout(END_GRACE_MS) }).then(
    () => true,
    () => false,
  );

/** Sends a signal if the process is still that one; returns whether it was. */
export const signalProcess = async (target: ProcessIdentity, signal: NodeJS.Signals): Promise<boolean> => {
  if (!(await isAlive(target))) return false;
  try {
    process.kill(target.pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
};

export interface WatchOptions {
  /** How often to look (default 100 ms). */
  readonly pollMs?: number;
  readonly signal?: AbortSignal | undefined;
  /** A promise that settles about when the process ends (QmpClient.closed): then it is looked at often. */
  readonly hint?: Promise<unknown> | undefined;
}

const WATCH_POLL_MS = 100;
const WATCH_POLL_HINTED_MS = 5;

/**
 * Settles when a process that is not our child has ended. Node has no pidfd,
 * so this polls /proc; the hint makes it prompt.
 *
 * @throws CancelledError when the signal aborts.
 */
export const waitForExit = async (target: ProcessIdentity, options: WatchOptions = {}): Promise<void> => {
  let pollMs = options.pollMs ?? WATCH_POLL_MS;
  const hinted = options.hint?.then(() => {
    pollMs = Math.min(pollMs, WATCH_POLL_HINTED_MS);
  });
  let pending = hinted;
  while (await isAlive(target)) {
    if (options.signal?.aborted) throw new CancelledError(`watching process ${target.pid} was cancelled`);
    const pause = delay(pollMs, undefined, options.signal === undefined ? {} : { signal: options.signal });
    pause.catch(() => {});
    await Promise.race([pause.catch(() => {}), ...(pending === undefined ? [] : [pending])]);
    // Once it has settled it would win every race and turn the poll into a busy loop.
    if (pollMs === WATCH_POLL_HINTED_MS) pending = undefined;
  }
};
