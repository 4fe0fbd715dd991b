/**
 * The disks of a VM that is checkpointed: copied as they were in the pause, while the VM goes on writing.
 *
 *   attach      what an earlier run left is committed, the disks are found
 *   prepare     an empty qcow2 overlay beside each image, known to QEMU
 *   paused      one transaction: from here on the overlays take the writes, and the images stand still
 *   copyTo      images ─► checkpoint, by reference where the file system can
 *   commit      overlays ─► images, in the background; the guest is back on its image, the overlay is gone
 *
 * Whoever is killed in between leaves a VM that runs on over its overlay; the next run finds and commits it.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { DiskError, QmpError, toHoldfastError } from '../errors.js';
import { native } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { commitNode } from './commit-job.js';
import { isEmptyOverlay } from './empty-overlay.js';
import type { DiskEntry } from './manifest.js';
import { createOverlay, OVERLAY_SUFFIX, type OverlaidImage, overlayOf } from './overlay-file.js';

const NODE_PREFIX = 'holdfast-overlay-';

export interface CheckpointDisk extends OverlaidImage {
  readonly name: string;
  /** Of the device, without an overlay. */
  readonly node: string;
  readonly cache: { readonly direct: boolean; readonly noFlush: boolean };
}

/** query-block, as far as it matters here. */
const blockDevices = z.array(
  z.object({
    device: z.string().default(''),
    qdev: z.string().optional(),
    inserted: z
      .object({
        'node-name': z.string(),
        ro: z.boolean(),
        drv: z.string(),
        file: z.string(),
        cache: z.object({ direct: z.boolean(), 'no-flush': z.boolean() }),
        image: z.object({
          'virtual-size': z.number(),
          'full-backing-filename': z.string().optional(),
          'backing-filename': z.string().optional(),
        }),
      })
      .optional(),
  }),
);
type Inserted = NonNullable<z.infer<typeof blockDevices>[number]['inserted']>;

const queryBlock = async (qmp: QmpClient) => blockDevices.parse(await qmp.executeAny('query-block', {}));

/**
 * The disks of a VM that preflight.ts has let through.
 * @throws DiskError if an image stands on another one
 */
const findDisks = async (qmp: QmpClient, vm: VmDescription): Promise<readonly CheckpointDisk[]> => {
  const disks: CheckpointDisk[] = [];
  for (const { device, qdev, inserted } of await queryBlock(qmp)) {
    if (inserted === undefined || inserted.ro) continue;
    const path = imagePathOf(inserted.file);
    const backing = inserted.image['backing-filename'];
    if (path === undefined || (inserted.drv !== 'raw' && inserted.drv !== 'qcow2')) {
      throw new DiskError(`drive ${device || qdev}: ${inserted.file} is no raw or qcow2 image of this host`);
    }
    if (backing !== undefined) {
      throw new DiskError(`the image ${path} stands on another one (${backing})`, {
        cure: 'Make it whole first (qemu-img rebase -b "" IMAGE, or QMP block-stream).',
      });
    }
    disks.push({
      name: device || qdev || inserted['node-name'],
      image: resolve(vm.cwd, path),
      format: inserted.drv,
      node: inserted['node-name'],
      bytes: inserted.image['virtual-size'],
      cache: { direct: inserted.cache.direct, noFlush: inserted.cache['no-flush'] },
    });
  }
  return disks;
};

/** Overlays that a killed run, or a hand-off, left in QEMU, committed. @returns how many */
export const commitLeftOverlays = async (qmp: QmpClient, cwd: string): Promise<number> => {
  const left = (await queryBlock(qmp)).flatMap(({ inserted }) =>
    inserted !== undefined && isOverlay(inserted, cwd) ? [inserted] : [],
  );
  for (const { 'node-name': node, file } of left) {
    await commitOverlay(qmp, node, resolve(cwd, imagePathOf(file)!));
  }
  // Prepared, and never put to use.
  for (const node of await unusedOverlayNodes(qmp)) {
    await qmp.executeAny('blockdev-del', { 'node-name': node.name });
    await rm(resolve(cwd, node.path), { force: true });
  }
  return left.length;
};

/** Ours by its node, or, where a hand-off (lib/handoff) put it on QEMU's command line, by its name and its image's. */
const isOverlay = ({ drv, file, image, 'node-name': node }: Inserted, cwd: string): boolean => {
  const path = imagePathOf(file);
  if (drv !== 'qcow2' || !path?.endsWith(OVERLAY_SUFFIX)) return false;
  const beneath = resolve(cwd, path.slice(0, -OVERLAY_SUFFIX.length));
  return node.startsWith(NODE_PREFIX) || image['backing-filename'] === beneath;
};

const unusedOverlayNodes = async (qmp: QmpClient): Promise<{ name: string; path: string }[]> =>
  (await qmp.execute('query-named-block-nodes')).flatMap(({ 'node-name': name = '', drv, file }) => {
    const path = imagePathOf(file);
    return drv === 'qcow2' && name.startsWith(NODE_PREFIX) && path !== undefined ? [{ name, path }] : [];
  });

interface Overlay {
  readonly disk: CheckpointDisk;
  readonly node: string;
  readonly path: string;
  /** QEMU has it: its file may only go once QEMU has said that it let go of it. */
  isKnown: boolean;
}

let overlaysNamed = 0;

export class DiskOverlays {
  readonly #qmp: QmpClient;
  #disks: readonly CheckpointDisk[] = [];
  #prepared: Overlay[] = [];
  /** Also where it is not known whether QEMU has put them to use. */
  #inUse: Overlay[] = [];

  constructor(qmp: QmpClient) {
    this.#qmp = qmp;
  }

  /**
   * Commits what an earlier run left, and finds the disks. The VM runs: one that stands still after a migration, as
   * for its ROMs, has given its disks up until then, and QEMU commits nothing.
   * @returns how many were left
   * @throws DiskError one could not be committed; or an image stands on another one
   */
  async attach(vm: VmDescription): Promise<number> {
    const left = await commitLeftOverlays(this.#qmp, vm.cwd);
    this.#disks = await findDisks(this.#qmp, vm);
    return left;
  }

  /** What QEMU flushes in the pause: images, and the overlays over them, which were just made. */
  get flushedFiles(): readonly string[] {
    return this.#filesWhere(({ noFlush }) => !noFlush);
  }

  /** Those of them, and of the others, that are in the host's page cache. */
  get cachedFiles(): readonly string[] {
    return this.#filesWhere(({ direct }) => !direct);
  }

  /** The VM runs. @throws DiskError if something is in the overlays' place */
  async prepare(): Promise<void> {
    for (const disk of this.#disks) {
      overlaysNamed += 1;
      const overlay = {
        disk,
        node: `${NODE_PREFIX}${process.pid}-${overlaysNamed}`, // QEMU allows 31 characters
        path: overlayOf(disk.image),
        isKnown: false,
      };
      await makePlace(overlay);
      await createOverlay(disk);
      this.#prepared.push(overlay);
      const cache = { direct: disk.cache.direct, 'no-flush': disk.cache.noFlush };
      await this.#qmp.executeAny('blockdev-add', {
        ...{ driver: 'qcow2', 'node-name': overlay.node, cache, discard: 'unmap', backing: null },
        file: { driver: 'file', filename: overlay.path, cache, discard: 'unmap' },
      });
      overlay.isKnown = true;
    }
  }

  /** The VM stands still: what it writes from here on goes to the overlays. */
  async switchOver(): Promise<void> {
    const overlays = this.#prepared;
    if (overlays.length === 0) return;
    this.#inUse = overlays; // from here on, for the answer may be lost
    this.#prepared = [];
    try {
      await this.#qmp.executeAny('transaction', {
        actions: overlays.map(({ disk, node }) => ({
          type: 'blockdev-snapshot',
          data: { node: disk.node, overlay: node },
        })),
      });
    } catch (error) {
      if (error instanceof QmpError) {
        this.#inUse = []; // refused: none of them
        this.#prepared = overlays;
      }
      throw error;
    }
  }

  /** Into a checkpoint's directory; on stable storage when it settles. */
  async copyTo(dir: string): Promise<readonly DiskEntry[]> {
    const entries: DiskEntry[] = [];
    for (const [index, { disk }] of this.#inUse.entries()) entries.push(await saveDisk(dir, index, disk));
    return entries;
  }

  /**
   * QEMU cannot be asked any more: overlays that lie there, and may have what the guest wrote. Those that were never
   * put to use are removed.
   */
  async left(): Promise<readonly string[]> {
    for (const { path } of this.#prepared) {
      if (existsSync(path) && (await isEmptyOverlay(path))) await rm(path, { force: true });
    }
    return this.#disks.map(({ image }) => overlayOf(image)).filter((path) => existsSync(path));
  }

  /** Back to the images, whatever was reached before. Idempotent. */
  async commit(): Promise<void> {
    while (this.#prepared[0] !== undefined) {
      const { node, path, isKnown } = this.#prepared[0];
      if (isKnown) await this.#qmp.executeAny('blockdev-del', { 'node-name': node });
      await rm(path, { force: true });
      this.#prepared = this.#prepared.slice(1);
    }
    while (this.#inUse[0] !== undefined) {
      const { node, path } = this.#inUse[0];
      await commitOverlay(this.#qmp, node, path);
      this.#inUse = this.#inUse.slice(1);
    }
  }

  #filesWhere(matches: (cache: CheckpointDisk['cache']) => boolean): readonly string[] {
    const disks = this.#disks.filter(({ cache }) => matches(cache));
    const overlays = this.#prepared.filter(({ disk }) => matches(disk.cache));
    return [...disks.map(({ image }) => image), ...overlays.map(({ path }) => path)];
  }
}

/** An image that stands still, as a checkpoint's disk number `index`; on stable storage when it settles. */
export const saveDisk = async (
  dir: string,
  index: number,
  { name, image, format }: Pick<CheckpointDisk, 'name' | 'image' | 'format'>,
): Promise<DiskEntry> => {
  const file = `disk-${index}.${format}`;
  const to = join(dir, file);
  const { bytes } = await native.copySparse({ from: image, to });
  const digest = await native.hashFile(to, bytes);
  return { name, file, image, format, bytes, digest };
};

/** For an overlay. @throws DiskError if what lies there may be needed */
const makePlace = async ({ disk, path }: Overlay): Promise<void> => {
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined && (await isEmptyOverlay(path))) {
    await rm(path); // prepared by a run that was killed before it told QEMU
  } else if (found !== undefined && (await isCommitted(path, disk))) {
    await rm(path); // left by a run that was killed with the work done, and by a QEMU that ended before the next run
  } else if (found !== undefined) {
    throw new DiskError(`${path} is there already: writes of a VM that ended while it was checkpointed`, {
      cure: `This VM was started without them and has written to ${disk.image} since: \`qemu-img commit\` would damage it now. If it has all that it needs, remove ${path}.`,
    });
  }
};

/**
 * Whether the image has all that is in an overlay of it. Both are read, which can take minutes; but this is met only
 * where a run and its QEMU ended within moments.
 */
const isCommitted = async (path: string, { image, format }: CheckpointDisk): Promise<boolean> =>
  await promisify(execFile)('qemu-img', [
    'compare',
    '-q',
    '-U',
    '-f',
    'qcow2',
    '-F',
    format,
    path,
    image,
  ]).then(
    () => true,
    () => false,
  );

/** Settles when the device is back on its image, and the overlay is gone. */
const commitOverlay = async (qmp: QmpClient, node: string, path: string): Promise<void> => {
  try {
    await commitNode(qmp, node);
  } catch (error) {
    const { message, code } = toHoldfastError(error);
    throw new DiskError(`${path} could not be committed to its image: ${message}`, {
      cause: error,
      cure: 'The VM runs on over it, and nothing is lost; the next `holdfast checkpoint` tries again.',
      details: { code },
    });
  }
  // At once, though QEMU has it open still: an overlay that lies there calls for being committed, and as soon as the
  // guest has written to its image again that would take those writes back.
  await rm(path, { force: true });
  // One of QEMU's command line goes with the job.
  const nodes = await qmp.execute('query-named-block-nodes');
  if (nodes.some((each) => each['node-name'] === node)) {
    await qmp.executeAny('blockdev-del', { 'node-name': node });
  }
};
