/**
 * The new QEMU's disks while there are two: overlays over the images, which stand still beneath them; and back into
 * the images when the old one has ended.
 *
 * Until then what the guest writes is in the overlays alone. So whatever keeps it there names them, and says how it
 * gets into the images before anybody starts the VM on those.
 */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { z } from 'zod';
import { type CommitMonitor, commitNode } from '../checkpoint/commit-job.js';
import { isEmptyOverlay } from '../checkpoint/empty-overlay.js';
import { createOverlay, overlayOf } from '../checkpoint/overlay-file.js';
import {
  DiskError,
  QmpConnectionError,
  toHoldfastError,
  UnsupportedVmError,
  VmGoneError,
} from '../errors.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { endsSoon, isAlive, type ProcessIdentity } from '../vm/process.js';

/** @throws UnsupportedVmError a disk that is no raw image of its own */
export const imagesOf = ({ drives, cwd }: VmDescription): string[] =>
  drives
    .filter(({ readOnly }) => !readOnly)
    .map(({ name, file, format, server }) => {
      const path = imagePathOf(file);
      if (path !== undefined && format === 'raw' && server === undefined) return resolve(cwd, path);
      throw new UnsupportedVmError(
        `this VM cannot be checkpointed by a hand-off; nothing was changed: drive ${name} (${file}) is no raw image that QEMU has open itself`,
        { cure: 'Use --method capture.' },
      );
    });

/** @throws DiskError: then there is none, or one that has something in it */
export const makeOverlay = async (image: string): Promise<void> => {
  const overlay = overlayOf(image);
  // One without any write was prepared by a command that was killed.
  if (existsSync(overlay) && !(await isEmptyOverlay(overlay))) {
    throw new DiskError(`${overlay} is there already, and may have what a VM wrote; nothing was changed`, {
      cure: 'If no VM has it open and nobody needs it, remove it.',
      details: { image, overlay },
    });
  }
  await createOverlay({ image, format: 'raw' });
};

const blockDevices = z.array(
  z.object({ inserted: z.object({ 'node-name': z.string(), file: z.string() }).optional() }),
);

/**
 * The overlays' contents into their images, which the guest then has.
 * @throws DiskError names the overlays that are left
 */
export const commitOverlays = async (
  process: ProcessIdentity,
  connect: () => Promise<CommitMonitor & AsyncDisposable>,
  overlays: readonly string[],
): Promise<void> => {
  if (overlays.length === 0) return;
  let done = 0;
  try {
    // Else whoever has its name by now would be asked.
    if (!(await isAlive(process))) throw new VmGoneError(`process ${process.pid} is gone`);
    await using qmp = await connect();
    for (const overlay of overlays) {
      await commitOverlay(qmp, overlay);
      done += 1;
    }
  } catch (error) {
    const left = overlays.slice(done);
    throw (await hasEnded(process, error)) ? endedOver(left, process, error) : runsOver(left, error);
  }
};

const commitOverlay = async (qmp: CommitMonitor, overlay: string): Promise<void> => {
  const devices = blockDevices.parse(await qmp.executeAny('query-block', {}));
  const node = devices.find(({ inserted }) => inserted?.file === overlay)?.inserted?.['node-name'];
  if (node === undefined) throw new DiskError(`QEMU has no disk on ${overlay}`);
  await commitNode(qmp, node);
  await rm(overlay, { force: true });
};

const hasEnded = async (process: ProcessIdentity, error: unknown): Promise<boolean> =>
  error instanceof QmpConnectionError ? await endsSoon(process) : !(await isAlive(process));

const endedOver = (overlays: readonly string[], { pid }: ProcessIdentity, cause: unknown): DiskError =>
  new DiskError(
    `the new QEMU (process ${pid}) ended before its overlays were committed: what the guest wrote in it is only in ${overlays.join(', ')} (${toHoldfastError(cause).message})`,
    {
      cause,
      cure: 'Before the VM is started again, `qemu-img commit` each, then remove it; where `qemu-img compare OVERLAY IMAGE` finds no difference, only remove it. Started without that the VM lacks those writes.',
      details: { overlays },
    },
  );

const runsOver = (overlays: readonly string[], cause: unknown): DiskError =>
  new DiskError(
    `what the guest has written since is only in ${overlays.join(', ')}, and could not be committed: ${toHoldfastError(cause).message}`,
    {
      cause,
      cure: 'The VM runs on over it, and nothing is lost. Make room: the next `holdfast checkpoint --method capture` commits it, or `block-commit` by QMP. If the VM ends before, `qemu-img commit` it and remove it before the VM is started again.',
      details: { overlays },
    },
  );
