/** What attaching to a QEMU changes in it, and detaching must undo; and what a process of Holdfast's own holds. */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { QmpClient } from '../../../lib/qmp/client.js';

export interface QemuState {
  /** User-created objects: the output filters would be among them. */
  readonly objects: readonly string[];
  /** What each descriptor refers to; userfaultfds, connections and files passed in would be among them. */
  readonly descriptors: readonly string[];
  /** Migration capabilities that are on. */
  readonly capabilities: readonly string[];
  readonly running: boolean;
}

/** Targets of a process's open descriptors, sorted. */
export const descriptorsOf = (pid: number | 'self'): string[] => {
  const directory = `/proc/${pid}/fd`;
  return readdirSync(directory)
    .flatMap((fd) => {
      try {
        return [readlinkSync(`${directory}/${fd}`)];
      } catch {
        return []; // closed meanwhile; the one that lists the directory always is
      }
    })
    .sort();
};

/** Names of a process's threads, sorted. */
export const threadsOf = (pid: number | 'self'): string[] =>
  readdirSync(`/proc/${pid}/task`)
    .flatMap((task) => {
      try {
        return [readFileSync(`/proc/${pid}/task/${task}/comm`, 'utf8').trim()];
      } catch {
        return [];
      }
    })
    .sort();

/** A field of /proc/PID/status in bytes: VmRSS, RssAnon, RssFile, RssShmem, VmHWM. */
export const memoryBytesOf = (pid: number, field: string): number => {
  const kib = new RegExp(`^${field}:\\s*(\\d+) kB$`, 'm').exec(
    readFileSync(`/proc/${pid}/status`, 'utf8'),
  )?.[1];
  if (kib === undefined) throw new Error(`/proc/${pid}/status has no ${field}`);
  return Number(kib) * 1024;
};

/** Seen through a monitor that stays open, so that it is in every state alike. */
export const qemuState = async (pid: number, observer: QmpClient): Promise<QemuState> => {
  const [objects, capabilities, { running }] = await Promise.all(
    observer.pipeline([
      { execute: 'qom-list', arguments: { path: '/objects' } },
      { execute: 'query-migrate-capabilities' },
      { execute: 'query-status' },
    ]),
  );
  return {
    // The container's own property, `type`, is no object.
    objects: objects.flatMap(({ name, type }) => (type.startsWith('child<') ? [name] : [])).sort(),
    descriptors: descriptorsOf(pid),
    capabilities: capabilities.filter(({ state }) => state).map(({ capability }) => capability),
    running,
  };
};
