/**
 * A checkpoint by hand-off, the coordinator method of the Thai thesis on KVM checkpointing that Holdfast started
 * from: a second QEMU takes the VM over, and the first, stopped, is what is saved.
 *
 *   P runs      Q starts: RAM of its own, disks on temporary overlays over P's images
 *   P stopped   migrate: devices and all of RAM to Q                                              migrate
 *   Q runs      P stands still, and is saved: RAM file, devices                                   save state
 *               its images stand still beneath Q's overlays, and are copied                       copy file
 *               P ends; Q's overlays are committed into the images, which are Q's disks from then  commit
 *
 * RAM crosses a socket here, while the VM stands still: the two must not share it, for Q goes on writing to its own.
 * Whoever is killed in between leaves a VM that runs on over its overlays.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { OVERLAY_SUFFIX } from '../checkpoint/disk-overlays.js';
import { DiskError, UnsupportedVmError } from '../errors.js';
import { QmpClient } from '../qmp/client.js';
import type { QmpEvent } from '../qmp/commands.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { handOff } from './handoff.js';
import type { HandoffOptions, HandoffResult } from './options.js';

const run = promisify(execFile);

/** A whole image may have to be written. */
const COMMIT_TIMEOUT_MS = 3_600_000;

/** P, of which nothing changes any more. */
export interface StandingVm {
  /** Its monitor. It has given its disks up: `cont` is no way back. */
  readonly qmp: QmpClient;
  /** All of guest RAM; goes with P unless it was moved away. */
  readonly ramPath: string;
  /** Raw images of its writable disks. */
  readonly images: readonly string[];
}

export interface CoordinatedOptions extends Omit<HandoffOptions, 'apart'> {
  /** File for Q's RAM, which must not be there: on the file system of P's. */
  readonly ramTo: string;
  readonly saveState: (vm: StandingVm) => Promise<void>;
  readonly copyFiles: (vm: StandingVm) => Promise<void>;
}

/** The thesis's phases; its `workload` is the guest's own affair. */
export interface CoordinatedPhases {
  readonly allMs: number;
  /** From P's stop until Q runs: the VM stands still. */
  readonly migrateMs: number;
  readonly saveStateMs: number;
  readonly copyFileMs: number;
  readonly commitMs: number;
}

export interface CoordinatedResult extends CoordinatedPhases {
  readonly handoff: HandoffResult;
}

/**
 * @throws as handOff() does: the VM is where it was then. What saveState() or copyFiles() throw: the VM runs in Q,
 *         on its images, and there is no checkpoint. DiskError an overlay could not be made, or not be committed: then
 *         the VM runs on over it.
 */
export const checkpointByHandoff = async (options: CoordinatedOptions): Promise<CoordinatedResult> => {
  const { ramTo, saveState, copyFiles, ...handoff } = options;
  const beganMs = performance.now();
  const overlays = new Map<string, string>();
  let [saveStateMs, copyFileMs] = [0, 0];
  let oldRam: string | undefined;
  let failure: { readonly error: unknown } | undefined;
  const result = await handOff({
    ...handoff,
    apart: {
      ramTo,
      overlaysFor: async (vm) => {
        for (const image of imagesOf(vm)) overlays.set(image, await makeOverlay(image));
        return overlays;
      },
      giveUp: async () => {
        for (const file of [ramTo, ...overlays.values()]) await rm(file, { force: true });
      },
      whileBoth: async (qmp, ramPath) => {
        oldRam = ramPath;
        const standing: StandingVm = { qmp, ramPath, images: [...overlays.keys()] };
        try {
          saveStateMs = await timed(() => saveState(standing));
          copyFileMs = await timed(() => copyFiles(standing));
        } catch (error) {
          failure = { error };
        }
      },
    },
  });
  if (oldRam !== undefined) await rm(oldRam, { force: true }); // P has ended
  const commitMs = await timed(() => commit(options.qmp, [...overlays.values()]));
  if (failure !== undefined) throw failure.error;
  const migrateMs = result.downtimeMs;
  return {
    allMs: performance.now() - beganMs,
    migrateMs,
    saveStateMs,
    copyFileMs,
    commitMs,
    handoff: result,
  };
};

const timed = async (work: () => Promise<void>): Promise<number> => {
  const beganMs = performance.now();
  await work();
  return performance.now() - beganMs;
};

/** @throws UnsupportedVmError a disk that is no raw image of its own */
const imagesOf = ({ drives, cwd }: VmDescription): string[] =>
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

const makeOverlay = async (image: string): Promise<string> => {
  const overlay = image + OVERLAY_SUFFIX; // as of the checkpoints that are captured: whoever finds one knows it
  if (existsSync(overlay)) {
    throw new DiskError(`${overlay} is there already, and may have what a VM wrote; nothing was changed`, {
      cure: 'If no VM has it open and nobody needs it, remove it.',
      details: { image, overlay },
    });
  }
  try {
    // -u: its image is not looked into, for P writes to it.
    await run('qemu-img', [
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      '-b',
      image,
      '-F',
      'raw',
      overlay,
      String(await sizeOf(image)),
    ]);
    return overlay;
  } catch (error) {
    throw new DiskError(`no overlay could be made over ${image}: ${(error as Error).message}`, {
      cause: error,
      cure: 'Install qemu-utils (qemu-img), and make room beside the image.',
      details: { image, overlay },
    });
  }
};

const sizeOf = async (image: string): Promise<number> => {
  const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', '-f', 'raw', image]);
  return z.object({ 'virtual-size': z.number() }).parse(JSON.parse(stdout))['virtual-size'];
};

const blockDevices = z.array(
  z.object({ inserted: z.object({ 'node-name': z.string(), file: z.string() }).optional() }),
);

/** The overlays' contents into their images, which the guest then has. */
const commit = async (qmpPath: string, overlays: readonly string[]): Promise<void> => {
  if (overlays.length === 0) return;
  await using qmp = await QmpClient.connect(qmpPath);
  const devices = blockDevices.parse(await qmp.executeAny('query-block', {}));
  for (const overlay of overlays) {
    const node = devices.find(({ inserted }) => inserted?.file === overlay)?.inserted?.['node-name'];
    if (node === undefined) throw new DiskError(`QEMU has no disk on the overlay ${overlay}`);
    const job = `holdfast-commit-${node.replace(/\W/g, '')}`;
    const ofJob = {
      timeoutMs: COMMIT_TIMEOUT_MS,
      where: ({ data }: QmpEvent) => data.device === job,
    };
    const ready = qmp.once('BLOCK_JOB_READY', ofJob);
    const ended = qmp.once('BLOCK_JOB_COMPLETED', ofJob);
    for (const promise of [ready, ended]) promise.catch(() => {}); // awaited below, unless what comes before fails
    await qmp.executeAny('block-commit', { 'job-id': job, device: node });
    await Promise.race([ready, ended]);
    await qmp.executeAny('block-job-complete', { device: job });
    const { data } = await ended;
    if (typeof data.error === 'string') {
      throw new DiskError(`the overlay ${overlay} could not be committed into its image: ${data.error}`, {
        cure: 'The VM runs on over the overlay, and nothing is lost. Make room, and `block-commit` it by QMP.',
        details: { overlay },
      });
    }
    await rm(overlay, { force: true });
  }
};
