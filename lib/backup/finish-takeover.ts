/**
 * A takeover that its daemon did not live to finish: the VM runs, or was about
 * to, and its disks' writes still wait. Whoever starts as a backup here again
 * lets them through.
 *
 *   a server of the VM writes already ─► so the journals were closed before: tell the others
 *   none does                         ─► open the replicas, which applies what is committed,
 *                                        close the journals, tell all
 */
import type { TakenDisks } from './replica-disks.js';

/** A disk server of the VM, found by its socket. */
export interface FoundServer {
  readonly id: string;
  readonly imagePath: string;
  readonly imageBytes: number;
  readonly isActive: boolean;
  activate(): Promise<void>;
}

export interface FinishTakeoverOptions {
  readonly servers: readonly FoundServer[];
  /** Opens the replicas that the servers are over. */
  readonly take: () => Promise<TakenDisks>;
  readonly retire: (disks: TakenDisks) => Promise<void>;
}

/** @returns false if there was nothing left to do. @throws DiskError; it may be tried again */
export const finishTakeover = async ({ servers, take, retire }: FinishTakeoverOptions): Promise<boolean> => {
  const waiting = servers.filter(({ isActive }) => !isActive);
  if (waiting.length === 0) return false;
  if (waiting.length === servers.length) {
    const disks = await take();
    try {
      await retire(disks);
    } finally {
      await disks.letGo();
    }
  }
  for (const server of waiting) await server.activate();
  return true;
};
