/**
 * Moves the disks of a running VM from its own image files onto disk servers over the same images, beneath
 * the guest:
 *
 *   servers start ─► block nodes to them ─► stop ─► mirror each node to its new one ─► cont
 *
 * A mirror of nothing (sync=none) on a stopped VM copies nothing: it is QEMU's way to put one block node in
 * the place of another. The VM stands still for some milliseconds. Mirroring a running VM that writes
 * (copy-mode=write-blocking) would do without that, but QEMU 7.2 loses its way where a write meets the end of
 * the job: it fails an assertion (bdrv_co_write_req_prepare) and is gone, in one of ten attempts.
 *
 * `stop` has drained and flushed all writes, so the image is whole in the kernel's eyes, whichever way QEMU had
 * it open; from here on only the server writes to it.
 */
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { DiskError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { QmpClient } from '../qmp/client.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { type MovableDrive, movableDrives } from '../vm/movable-drives.js';
import type { DiskServerSpec } from './disk-files.js';
import { endDiskServer, type StartedDiskServer, startDiskServer } from './disk-process.js';
import { type DiskPlacement, planDisk } from './launch-disks.js';

const JOB_TIMEOUT_MS = 10_000;
const RECONNECT_DELAY_S = 86_400;

export interface MoveDisksOptions {
  readonly vm: VmDescription;
  readonly qmp: QmpClient;
  readonly placement: DiskPlacement;
  readonly log: Logger;
}

export interface MovedDisks {
  readonly disks: readonly { readonly id: string; readonly image: string; readonly socket: string }[];
  /** The guest stood still for so long. */
  readonly pauseMs: number;
}

/**
 * Moves all that can be moved; undefined if there is none. If one fails, those before it stay moved, and the
 * VM runs as before.
 * @throws DiskError
 */
export const moveDisks = async (options: MoveDisksOptions): Promise<MovedDisks | undefined> => {
  const { vm, qmp, placement, log } = options;
  const moves = movableDrives(vm);
  if (moves.length === 0) return undefined;
  await mkdir(placement.dir, { recursive: true, mode: 0o700 });
  const prepared: Prepared[] = [];
  try {
    for (const move of moves) prepared.push(await prepare(qmp, vm, move, placement));
    const pauseMs = await switchOver(qmp, prepared);
    log.info({ pauseMs, disks: prepared.map(({ spec }) => spec.id) }, 'moved disks to their servers');
    await removeOldNodes(qmp, vm.cwd, prepared);
    await Promise.all(prepared.map(({ server }) => server.control.close()));
    const disks = prepared.map(({ spec: { id, imagePath, socket } }) => ({ id, image: imagePath, socket }));
    return { disks, pauseMs };
  } catch (error) {
    for (const each of prepared) await undo(qmp, each).catch(() => {});
    throw toHoldfastError(error, 'moving the disks to servers (the VM runs as before)');
  }
};

interface Prepared {
  readonly spec: DiskServerSpec;
  readonly server: StartedDiskServer;
  /** The device's, and the one that is to take its place. */
  readonly oldNode: string;
  readonly newNode: string;
  readonly job: string;
  isMoved: boolean;
}

const prepare = async (
  qmp: QmpClient,
  vm: VmDescription,
  move: MovableDrive,
  placement: DiskPlacement,
): Promise<Prepared> => {
  const { drive, disk, imagePath } = move;
  const planned = await planDisk(disk.id, imagePath, 'raw', placement);
  if ('reason' in planned) throw new DiskError(`${planned.what}: ${planned.reason}`, { cure: planned.cure });
  const { pid, startTicks } = vm.process;
  const spec = { ...planned, vm: { pid, startTicks } };
  const server = await startDiskServer(spec);
  const newNode = `holdfast-${process.pid}-${server.record.process.pid}`; // QEMU allows 31 characters
  const discard = disk.unmap ? 'unmap' : 'ignore';
  try {
    await qmp.executeAny('blockdev-add', {
      ...{ driver: 'raw', 'node-name': newNode, discard },
      file: {
        ...{ driver: 'nbd', discard, 'reconnect-delay': RECONNECT_DELAY_S },
        server: { type: 'unix', path: spec.socket },
      },
    });
  } catch (error) {
    await server.control.close();
    await endDiskServer(spec.socket);
    throw error;
  }
  return { spec, server, oldNode: drive.nodeName!, newNode, job: `${newNode}-job`, isMoved: false };
};

/** @returns how long the VM stood still, in milliseconds */
const switchOver = async (qmp: QmpClient, prepared: readonly Prepared[]): Promise<number> => {
  const { running } = await qmp.execute('query-status');
  const startMs = performance.now();
  if (running) await qmp.execute('stop');
  try {
    for (const each of prepared) await replaceNode(qmp, each);
  } finally {
    if (running) await qmp.execute('cont');
  }
  return performance.now() - startMs;
};

const replaceNode = async (qmp: QmpClient, each: Prepared): Promise<void> => {
  const { job, oldNode, newNode } = each;
  const limits = { timeoutMs: JOB_TIMEOUT_MS };
  const ofJob = { ...limits, where: ({ data }: { data: Record<string, unknown> }) => data.device === job };
  const ready = qmp.once('BLOCK_JOB_READY', ofJob);
  const completed = qmp.once('BLOCK_JOB_COMPLETED', ofJob);
  completed.catch(() => {}); // awaited last
  ready.catch(() => {});
  await qmp.executeAny(
    'blockdev-mirror',
    { 'job-id': job, device: oldNode, target: newNode, sync: 'none', 'filter-node-name': `${newNode}-top` },
    limits,
  );
  // A job that fails is never ready.
  await Promise.race([ready, completed]);
  await qmp.executeAny('job-complete', { id: job }, limits);
  const { data } = await completed;
  if (typeof data.error === 'string') throw new DiskError(`QEMU could not change the disk: ${data.error}`);
  each.isMoved = true;
};

/** Those of a -blockdev stay until they are told to go; they have the image open. */
const removeOldNodes = async (qmp: QmpClient, cwd: string, prepared: readonly Prepared[]): Promise<void> => {
  const images = new Set(prepared.map(({ spec }) => spec.imagePath));
  const nodes = await qmp.execute('query-named-block-nodes');
  const left = nodes.filter(({ file }) => {
    const path = imagePathOf(file);
    return path !== undefined && images.has(resolve(cwd, path));
  });
  // A format's node before the file's that it is made of.
  const inOrder = left.toSorted((a, b) => Number(a.drv !== 'raw') - Number(b.drv !== 'raw'));
  for (const { 'node-name': name } of inOrder) {
    if (name !== undefined) await qmp.executeAny('blockdev-del', { 'node-name': name }).catch(() => {});
  }
};

const undo = async (qmp: QmpClient, { spec, server, newNode, job, isMoved }: Prepared): Promise<void> => {
  await server.control.close();
  if (isMoved) return; // its server is the disk's from now on
  await qmp.executeAny('block-job-cancel', { device: job, force: true }).catch(() => {});
  await qmp.executeAny('blockdev-del', { 'node-name': newNode });
  await endDiskServer(spec.socket); // only if QEMU has let go of it
};
