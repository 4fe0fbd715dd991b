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
import { existsSync } from 'node:fs';
import { readFile, realpath, rename, rm } from 'node:fs/promises';
import type { FinishedLayer } from '../checkpoint/binding.js';
import { overlayOf } from '../checkpoint/overlay-file.js';
import { ConfigError, type HoldfastError, type HoldfastErrorOptions, toHoldfastError } from '../errors.js';
import { QmpClient } from '../qmp/client.js';
import { FileMigration } from '../qmp/file-migration.js';
import type { VmDescription } from '../vm/describe.js';
import { HANDED } from '../vm/handed-ram.js';
import { parseMigrationPrefix } from '../vm/migration-stream.js';
import { isAlive } from '../vm/process.js';
import { handOff } from './handoff.js';
import type { ApartFiles, HandoffApart, HandoffOptions, HandoffResult, HandoffSide } from './options.js';
import { commitOverlays, imagesOf, makeOverlay } from './overlays.js';
import { copyableRam, RamCopy } from './ram-copy.js';
import { assertRoom, roomFor } from './ram-room.js';
import type { HandoffSource } from './source.js';

/** P, of which nothing changes any more. */
export interface StandingVm {
  /** Its monitor. It has given its disks up: `cont` is no way back. */
  readonly qmp: QmpClient;
  readonly vm: VmDescription;
  /** All of guest RAM; goes with P. */
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
  /** File for Q's RAM, which must not be there: on the file system of P's. Default: the name of P's, in the end. */
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
 * @throws as handOff() does, NoSpaceError if RAM has no room twice: the VM is where it was then. What saveState() or
 *         copyFiles() throw: the VM runs in Q, on its images, and there is no checkpoint. DiskError an overlay could
 *         not be made; or was not committed: what the guest writes is in that, and the message names it, and says
 *         whether all was saved.
 */
export const checkpointByHandoff = async (options: CoordinatedOptions): Promise<CoordinatedResult> => {
  const { saveState, copyFiles, ...handoff } = options;
  const beganMs = performance.now();
  const apart = new Apart(options);
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
    let uncommitted: HoldfastError | undefined;
    const commitMs = await timed(() =>
      commitOverlays(result.to, () => QmpClient.connect(options.qmp), apart.overlays).catch(
        (error: unknown) => {
          uncommitted = toHoldfastError(error);
        },
      ),
    );
    if (failure !== undefined) throw await notSaved(toHoldfastError(failure.error), result.to, uncommitted);
    if (uncommitted !== undefined) throw told(uncommitted, `it was saved, but ${uncommitted.message}`);
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

/** What has to be done about an overlay comes first: then that is the error, and its cure. */
const notSaved = async (
  error: HoldfastError,
  to: HandoffSide,
  uncommitted: HoldfastError | undefined,
): Promise<HoldfastError> => {
  if (uncommitted !== undefined) {
    return told(uncommitted, `there is no checkpoint (${error.message}); and ${uncommitted.message}`);
  }
  const vm = (await isAlive(to)) ? `runs on in process ${to.pid}` : `has ended (process ${to.pid})`;
  return told(error, `there is no checkpoint, and the VM ${vm}: ${error.message}`);
};

/** The same error, with more about it. */
const told = (error: HoldfastError, message: string): HoldfastError => {
  const { cure, details } = error;
  const SameClass = error.constructor as new (
    message: string,
    options: HoldfastErrorOptions,
  ) => HoldfastError;
  return new SameClass(message, { cause: error, details, ...(cure === undefined ? {} : { cure }) });
};

/** What there is twice while there are two QEMUs. */
class Apart {
  readonly #signal: AbortSignal | undefined;
  readonly #warn: (error: HoldfastError) => void;
  #ramTo: string | undefined;
  #vm: VmDescription | undefined;
  #ramPath = '';
  /** Nobody else's RAM file has that name. */
  #isOurs = false;
  #images: readonly string[] = [];
  /** That have been made: no other may be removed. */
  readonly #overlays: string[] = [];
  #copy: RamCopy | undefined;
  #prefix: Uint8Array = Buffer.alloc(0);
  #ramIndex: FinishedLayer | undefined;
  #stoppedAt = new Date(0);
  prefixMs = 0;
  hasBegun = false;

  constructor({ ramTo, signal, onProgress }: CoordinatedOptions) {
    this.#ramTo = ramTo;
    this.#signal = signal;
    this.#warn = (error) => onProgress?.({ step: 'warning', error });
  }

  get overlays(): readonly string[] {
    return this.#overlays;
  }

  hooks(): Omit<HandoffApart, 'whileBoth'> {
    return {
      filesFor: (vm, ramPath) => this.#filesFor(vm, ramPath),
      makeFiles: (leftover) => this.#makeFiles(leftover),
      copyAhead: async () => {
        this.hasBegun = true;
        try {
          this.#copy = await RamCopy.begin({
            ...{ vm: this.#vm!, to: this.#ramTo!, signal: this.#signal },
            warn: this.#warn,
          });
        } catch (error) {
          await rm(this.#ramTo!, { force: true });
          throw error;
        }
      },
      beforeStop: (source) => this.#beforeStop(source),
      catchUp: () => this.#copy!.catchUp(),
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
      images: this.#images,
      downtimeMs,
    };
  }

  /**
   * P has ended. Q's RAM gets the name that the VM was started with, under which whoever removes it, or starts the VM
   * again, looks for it. Whatever of this fails, the overlays are committed.
   */
  async settle(): Promise<void> {
    const [from, to] = [this.#ramTo!, this.#ramPath];
    const named = from === to + HANDED ? rename(from, to) : rm(to, { force: true });
    await named.catch((error: unknown) => this.#warn(toHoldfastError(error)));
  }

  async close(): Promise<void> {
    await this.#copy?.[Symbol.asyncDispose]();
    if (!this.#isOurs) return;
    for (const what of ['index', 'prefix', 'state']) await rm(this.#beside(what), { force: true });
  }

  #filesFor(vm: VmDescription, ramPath: string): ApartFiles {
    this.#vm = vm;
    this.#ramPath = ramPath;
    copyableRam(vm);
    this.#images = imagesOf(vm);
    this.#ramTo ??= besideOf(ramPath);
    return { ramTo: this.#ramTo, overlays: new Map(this.#images.map((image) => [image, overlayOf(image)])) };
  }

  async #makeFiles(leftover: readonly string[]): Promise<void> {
    const ramTo = this.#ramTo!;
    if (existsSync(ramTo)) {
      if (!leftover.includes(await realpath(ramTo))) throw isThere(ramTo);
      await rm(ramTo);
    }
    this.#isOurs = true;
    assertRoom(await roomFor(this.#ramPath, ramTo, this.#vm!.ramBytes));
    for (const image of this.#images) {
      await makeOverlay(image);
      this.#overlays.push(overlayOf(image));
    }
  }

  /** A short stop of its own, then the last rounds. */
  async #beforeStop(source: HandoffSource): Promise<void> {
    const path = this.#beside('prefix');
    await this.#migrateTo(path, source);
    const stream = await readFile(path);
    this.#prefix = stream.subarray(0, parseMigrationPrefix(stream).bytes);
    await this.#copy!.catchUp();
  }

  async #migrateTo(path: string, source: HandoffSource): Promise<void> {
    await using migration = await FileMigration.prepare(source.qmp, path);
    this.prefixMs = await timed(() => source.pauseFor(() => migration.run()));
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

/** Back to the VM's own name, where a command was killed before it had done that. */
const besideOf = (ramPath: string): string =>
  ramPath.endsWith(HANDED) ? ramPath.slice(0, -HANDED.length) : ramPath + HANDED;

const isThere = (path: string): ConfigError =>
  new ConfigError(`the file for the new QEMU’s RAM, ${path}, is there already; nothing was changed`, {
    cure: 'A command that was killed left it. If no QEMU has it open (fuser), remove it.',
    details: { path },
  });

const timed = async (work: () => Promise<void>): Promise<number> => {
  const beganMs = performance.now();
  await work();
  return performance.now() - beganMs;
};
