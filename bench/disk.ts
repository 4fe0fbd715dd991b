/**
 * Suite `disk`: what a VM's disks cost when they are replicated, and how fast a whole one is copied.
 *
 *   guest ── virtio-blk ── QEMU's raw file driver ── image          raw
 *   guest ── virtio-blk ── QEMU's NBD client ── disk server ── image    server; protected, with its log shipped
 *
 * Linux guests on TCG; guests, disk servers and both roles share this machine, each host in a namespace of
 * its own, and images, journal and replica share its disk.
 */
import { measureBaseCopy } from './disk/base-copy.js';
import { turnPlan } from './disk/plan.js';
import { ratiosOf } from './disk/ratios.js';
import { measureTurns } from './disk/turns.js';
import type { RunSuite } from './report.js';

export const runDiskSuite: RunSuite = async (smoke, progress, wanted) => {
  const plan = turnPlan(smoke, wanted);
  const results = [
    ...(plan === undefined ? [] : await measureTurns(plan, progress)),
    ...(await measureBaseCopy(smoke, progress, wanted)),
  ];
  return { results, ratios: ratiosOf(results) };
};
