/**
 * A checkpoint by hand-off, the coordinator method of the Thai thesis on KVM checkpointing that Holdfast started
 * from: a second QEMU takes the VM over, and the first, stopped, is what is saved.
 *
 *   P runs      its RAM is copied to a file for Q; Q starts over that, disks on temporary overlays over P's images
 *   P stopped   the rest of RAM, then the devices to Q                                            migrate
 *   Q runs      P stands still, and is saved: RAM file, devices                                   save state
 *               its images stand still beneath Q's overlays, and are copied                       copy file
 *               P ends; Q's overlays are committed into the images, which are Q's disks from then  commit
 *
 * The two must not share RAM, for Q goes on writing to its own; but it need not cross a socket, and most of it is
 * copied while the VM runs (ram-copy.ts). Whoever is killed in between leaves a VM that runs on over its overlays.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import type { FinishedLayer } from '../checkpoint/binding.js';
import { OVERLAY_SUFFIX } from '../checkpoint/disk-overlays.js';
import { isEmptyOverlay } from '../checkpoint/empty-overlay.js';
import { ConfigError, DiskError, toHoldfastError, UnsupportedVmError } from '../errors.js';
import { QmpClient } from '../qmp/client.js';
import type { QmpEvent } from '../qmp/commands.js';
import { migrateToFile } from '../qmp/recipes.js';
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { parseMigrationPrefix } from '../vm/migration-stream.js';
import { handOff } from './handoff.js';
import type { ApartFiles, HandoffApart, HandoffOptions, HandoffResult } from './options.js';
import { copyableRam, RamCopy } from './ram-copy.js';
import { assertRoom, roomFor } from './ram-room.js';
import type { HandoffSource } from './source.js';

const run = promisify(execFile);

/** Q's RAM file. */
const BESIDE = '.handed';
/** A whole image may have to be written. */
const COMMIT_TIMEOUT_MS = 3_600_000;

/** P, of which nothing changes any more. */
export interface StandingVm {
  /** Its monitor. It has given its disks up: `cont` is no way back. */
  readonly qmp: QmpClient;
  readonly vm: VmDescription;
  /** All of guest RAM; goes with P unless it was moved away. */
  readonly ramPath: string;
  /** What lies in it, in the form that checkpoints have: for a copy of it. */
  readonly ramIndex: FinishedLayer & { readonly path: string };
  /** What goes before its devices' state, or a VM that is restored has no ROMs when it reboots. */
  readonly prefix: Uint8Array;
  readonly stoppedAt: Date;
  /** A name on a tmpfs for what its monitor writes; removed afterwards. */
  readonly scratchPath: string;
  /** Raw images of its writable disks. */
  readonly images: readonly string[];
  /** For how long the VM stood still until it ran in Q. */
  readonly downtimeMs: number;
}

export interface CoordinatedOptions extends Omit<HandoffOptions, 'apart'> {
  /** File for Q's RAM, which must not be there: on the file system of P's. Default: beside P's. */
  readonly ramTo?: string;
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
  /** A stop of its own before, for what QEMU's ROMs hold. */
  readonly prefixMs: number;
  readonly handoff: HandoffResult;
}

/**
 * @throws as handOff() does, NoSpaceError if RAM has no room twice: the VM is where it was then. What saveState() or copyFiles() throw: the VM runs in Q,
 *         on its images, and there is no checkpoint. DiskError an overlay could not be made, or not be committed: then
 *         the VM runs on over it.
 */
export const checkpointByHandoff = async (options: CoordinatedOptions): Promise<CoordinatedResult> => {
  const { ramTo, saveState, copyFiles, ...handoff } = options;
  const beganMs = performance.now();
  const apart = new Apart(ramTo, options.signal);
  let [saveStateMs, copyFileMs, downtimeMs] = [0, 0, 0];
  let failure: { readonly error: unknown } | undefined;
  try {
    const result = await handOff({
      ...handoff,
      onProgress: (progress) => {
        if (progress.step === 'runs') downtimeMs = progress.downtimeMs;
        options.onProgress?.(progress);
      },
      apart: {
        ...apart.hooks(),
        whileBoth: async (qmp) => {
          try {
            const standing = apart.standing(qmp, downtimeMs);
            saveStateMs = await timed(() => saveState(standing));
            copyFileMs = await timed(() => copyFiles(standing));
          } catch (error) {
            failure = { error };
          }
        },
      },
    });
    await apart.settle(); // P has ended
    const commitMs = await timed(() => commit(options.qmp, apart.overlays));
    if (failure !== undefined) {
      throw toHoldfastError(
        failure.error,
        `there is no checkpoint, and the VM runs on in process ${result.to.pid}`,
      );
    }
    const { prefixMs } = apart;
    const allMs = performance.now() - beganMs;
    return { allMs, migrateMs: downtimeMs, saveStateMs, copyFileMs, commitMs, prefixMs, handoff: result };
  } catch (error) {
    if (!apart.hasBegun) await apart.giveUp(); // else whoever knows where the VM is has done so
    throw error;
  } finally {
    await apart.close();
  }
};

/** What there is twice while there are two QEMUs. */
class Apart {
  readonly #signal: AbortSignal | undefined;
  #ramTo: string | undefined;
  #vm: VmDescription | undefined;
  #ramPath = '';
  /** Overlay by image. */
  readonly #overlays = new Map<string, string>();
  #copy: RamCopy | undefined;
  #prefix: Uint8Array = Buffer.alloc(0);
  #ramIndex: FinishedLayer | undefined;
  #stoppedAt = new Date(0);
  prefixMs = 0;
  hasBegun = false;

  constructor(ramTo: string | undefined, signal: AbortSignal | undefined) {
    this.#ramTo = ramTo;
    this.#signal = signal;
  }

  get overlays(): readonly string[] {
    return [...this.#overlays.values()];
  }

  hooks(): Omit<HandoffApart, 'whileBoth'> {
    return {
      filesFor: (vm, ramPath) => this.#filesFor(vm, ramPath),
      copyAhead: async () => {
        this.hasBegun = true;
        try {
          this.#copy = await RamCopy.begin(this.#vm!, this.#ramTo!, this.#signal);
        } catch (error) {
          await rm(this.#ramTo!, { force: true });
          throw error;
        }
      },
      beforeStop: (source) => this.#beforeStop(source),
      whileStopped: async () => {
        this.#stoppedAt = new Date();
        this.#ramIndex = await this.#copy!.finish(this.#beside('index'));
      },
      giveUp: () => this.giveUp(),
    };
  }

  standing(qmp: QmpClient, downtimeMs: number): StandingVm {
    return {
      qmp,
      vm: this.#vm!,
      ramPath: this.#ramPath,
      ramIndex: { ...this.#ramIndex!, path: this.#beside('index') },
      prefix: this.#prefix,
      stoppedAt: this.#stoppedAt,
      scratchPath: this.#beside('state'),
      images: [...this.#overlays.keys()],
      downtimeMs,
    };
  }

  /** P has ended. */
  async settle(): Promise<void> {
    await rm(this.#ramPath, { force: true });
  }

  async close(): Promise<void> {
    await this.#copy?.[Symbol.asyncDispose]();
    if (this.#ramTo === undefined) return;
    for (const what of ['index', 'prefix', 'state']) await rm(this.#beside(what), { force: true });
  }

  async #filesFor(vm: VmDescription, ramPath: string): Promise<ApartFiles> {
    this.#vm = vm;
    this.#ramPath = ramPath;
    copyableRam(vm);
    const images = imagesOf(vm);
    const ramTo = this.#ramTo ?? besideOf(ramPath);
    if (existsSync(ramTo)) throw isThere(ramTo);
    assertRoom(await roomFor(ramPath, ramTo, vm.ramBytes));
    this.#ramTo = ramTo;
    for (const image of images) this.#overlays.set(image, await makeOverlay(image));
    return { ramTo, overlays: this.#overlays };
  }

  /** A short stop of its own, then the last rounds. */
  async #beforeStop(source: HandoffSource): Promise<void> {
    const path = this.#beside('prefix');
    this.prefixMs = await timed(() => source.pauseFor(() => migrateToFile(source.qmp, path)));
    const stream = await readFile(path);
    this.#prefix = stream.subarray(0, parseMigrationPrefix(stream).bytes);
    await this.#copy!.catchUp();
  }

  /** The VM is in P, and Q has ended. Idempotent. */
  async giveUp(): Promise<void> {
    await this.#copy?.[Symbol.asyncDispose]();
    for (const file of this.overlays) await rm(file, { force: true });
    if (this.#copy !== undefined) await rm(this.#ramTo!, { force: true });
  }

  #beside(what: string): string {
    return `${this.#ramTo}.${what}`;
  }
}

/** From one hand-off to the next there and back again, so that names don't grow. */
const besideOf = (ramPath: string): string =>
  ramPath.endsWith(BESIDE) ? ramPath.slice(0, -BESIDE.length) : ramPath + BESIDE;

const isThere = (path: string): ConfigError =>
  new ConfigError(`the file for the new QEMU’s RAM, ${path}, is there already; nothing was changed`, {
    cure: 'A command that was killed may have left it. If no QEMU has it open (fuser), remove it.',
    details: { path },
  });

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
  // One without any write was prepared by a command that was killed.
  if (existsSync(overlay) && !(await isEmptyOverlay(overlay))) {
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
