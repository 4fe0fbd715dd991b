/**
 * Starts a VM from a checkpoint.
 *
 *   select ─ check devices and disks ─ disks to their places ─ QEMU with -incoming defer over an empty RAM file
 *          ─ its page faults are served from the checkpoint ─ device state ─► it runs, as if the time since had
 *            not been ─ the rest of its memory follows ─► complete
 *
 * The checkpoint is only read. The VM's RAM is a file of its own, so it can be checkpointed, protected or
 * migrated again.
 */
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join, relative, resolve } from 'node:path';
import { ConfigError, type HoldfastError, StandbyError, toHoldfastError } from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import {
  announceSelf,
  prepareIncoming,
  restoreMigrationCapabilities,
  versionText,
  waitRunning,
} from '../qmp/recipes.js';
import {
  forPrimary,
  forStandby,
  type Replacement,
  replaceText,
  withoutIncoming,
} from '../vm/command-line.js';
import { imagePathOf } from '../vm/drives.js';
import { killVm, type LaunchedVm, type LaunchOptions, launchVm } from '../vm/launch.js';
import { isAlive, type ProcessIdentity } from '../vm/process.js';
import { isOlderRelease } from '../vm/qemu-version.js';
import { claimReading } from './claims.js';
import { type Entry, listCheckpoints } from './directory.js';
import { placeDisks } from './disk-copies.js';
import { OnDemandRam } from './on-demand.js';
import { damagedCheckpoint, layerFilesOf, type SelectedCheckpoint, selectCheckpoint } from './select.js';
import { checkDevice } from './verify.js';

export interface RestoreOptions {
  /** Directory of the checkpoints. */
  readonly dir: string;
  /** Which one; default: the newest. */
  readonly at?: number | undefined;
  /** QEMU's command line, binary first; default: the one of the VM that was checkpointed. */
  readonly commandLine?: readonly string[] | undefined;
  /** Where the VM's RAM is to be: a file that is not there yet, on a tmpfs or hugetlbfs. */
  readonly ramPath: string;
  /** Its monitor. */
  readonly qmpPath: string;
  /** QEMU's output. */
  readonly logPath: string;
  /** For a socket of ours. */
  readonly scratchDir: string;
  /** What has another name now: images, tap devices. */
  readonly replace?: readonly Replacement[] | undefined;
  /** The VM runs before its memory is there (default true); else all of it is put there first. */
  readonly onDemand?: boolean | undefined;
  /** Images that are there already are overwritten. */
  readonly overwriteDisks?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly logger?: Logger | undefined;
}

/** For whoever restores a VM in the place of another one (lib/backup/fall-back.ts). */
export interface RestoreHooks {
  /**
   * What is restored, for who has selected it, and claimed its directory, before: it may have been given up since,
   * and is not merged away as long as the claim lasts. Else the newest, or the one that the options say.
   */
  readonly selected?: SelectedCheckpoint | undefined;
  /** How the VM ran last, in the place of what the checkpoint says of it; `replace` applies. */
  readonly ranAs?: RanAs | undefined;
  /** What belongs to the VM and can begin as soon as its process exists; if it rejects, nothing runs. */
  readonly beside?: LaunchOptions['beside'];
  /** Called with the process that is about to run, before it can; if it rejects, nothing runs. */
  readonly claim?: ((process: ProcessIdentity) => Promise<void>) | undefined;
}

export interface RanAs {
  readonly binary: string;
  /** Without the binary. */
  readonly argv: readonly string[];
  readonly cwd: string;
}

export interface RestoredVm {
  /** Its process; the monitor's connection is closed. */
  readonly vm: Pick<LaunchedVm, 'pid' | 'identity' | 'exited'>;
  /** As it was given, or as the checkpoint has it; binary first. */
  readonly commandLine: readonly string[];
  readonly epoch: number;
  /** From the start of QEMU until the VM ran, milliseconds. */
  readonly startMs: number;
  /** In it: the device state. */
  readonly loadMs: number;
  /** From the call until it ran. */
  readonly totalMs: number;
  /**
   * Settles when all of its memory is there, or it has ended. Until then this process must live: the guest waits
   * for what it lacks. If a page turns out to be damaged the VM is killed, and this rejects with DamagedError.
   */
  readonly complete: Promise<MemoryArrival>;
}

/** How the memory of a VM that ran before it was there has come. */
export interface MemoryArrival {
  /** 0: all of it was there before the VM ran. */
  readonly pages: number;
  /** Of these, those that the guest had to wait for. */
  readonly demandedPages: number;
  /** How long it waited for one, microseconds. */
  readonly faultP50Us: number;
  readonly faultP99Us: number;
}

/** Of a timer that does nothing but keep Node's event loop going. */
const HOLD_MS = 60_000;

const ALL_THERE: MemoryArrival = { pages: 0, demandedPages: 0, faultP50Us: 0, faultP99Us: 0 };

/**
 * Restores a VM, and settles when it runs.
 * @throws ConfigError, DamagedError (nothing runs), VmGoneError, StandbyError, NoSpaceError
 */
export const restoreCheckpoint = async (
  options: RestoreOptions,
  hooks: RestoreHooks = {},
): Promise<RestoredVm> => {
  const beganMs = performance.now();
  const root = resolve(options.dir);
  const claim = await claimReading(root);
  try {
    const listing = await listCheckpoints(root);
    const selected = hooks.selected ?? selectCheckpoint(listing, root, options.at);
    const { entry } = selected;
    const explain = (error: unknown): HoldfastError => {
      const failure = toHoldfastError(error);
      return isDamage(failure.code) ? damagedCheckpoint(entry.epoch, failure, listing.entries) : failure;
    };
    try {
      const started = await start(options, selected, hooks);
      const complete = arrive(started)
        .catch((error: unknown) => {
          throw explain(error);
        })
        .finally(() => claim.release());
      complete.catch(() => {}); // whoever waits learns of it
      const { pid, identity, exited } = started.vm;
      return {
        vm: { pid, identity, exited },
        commandLine: options.commandLine ?? [entry.manifest.vm.binary, ...entry.manifest.vm.argv],
        epoch: entry.epoch,
        startMs: started.ranMs - started.startedMs,
        loadMs: started.loadMs,
        totalMs: started.ranMs - beganMs,
        complete,
      };
    } catch (error) {
      throw explain(error);
    }
  } catch (error) {
    await claim.release();
    throw error;
  }
};

interface StartedVm {
  readonly vm: LaunchedVm;
  readonly ram: OnDemandRam | undefined;
  readonly startedMs: number;
  readonly ranMs: number;
  readonly loadMs: number;
}

/** Settles when the VM runs; leaves nothing if it fails. */
const start = async (
  options: RestoreOptions,
  { entry, layers }: SelectedCheckpoint,
  { ranAs = entry.manifest.vm, beside, claim }: RestoreHooks,
): Promise<StartedVm> => {
  const { ramPath, onDemand = true, logger = NOTHING_LOGGED } = options;
  const cwd = cwdOf(options, ranAs);
  const { binary, argv } = commandLineOf(options, entry, ranAs, cwd);
  const stream = await checkDevice(entry);
  const placed = await placeDisks(entry, options);
  let vm: LaunchedVm | undefined;
  let ram: OnDemandRam | undefined;
  try {
    const files = layerFilesOf(layers);
    if (!onDemand) await native.assembleRam({ layers: files, path: ramPath });
    const startedMs = performance.now();
    vm = await launchVm({
      ...{ binary, argv, cwd, qmpPath: options.qmpPath, logPath: options.logPath, signal: options.signal },
      sendWithFd: native.sendWithFd,
      peerPid: native.peerPid,
      beside,
    });
    refuseOlderQemu(entry, versionText(vm.qmp.greeting.version));
    await assertOpens(vm.qmp, placed.paths, cwd);
    if (onDemand) {
      const { ramBytes } = entry.manifest.vm;
      ram = await OnDemandRam.start({ pid: vm.pid, ramBytes, ramPath }, files);
    }
    await claim?.(vm.identity);
    const { loadMs, ranMs } = await Promise.race([
      run(vm, stream, options),
      ...(ram === undefined ? [] : [failureOf(ram)]),
    ]);
    logger.info({ epoch: entry.epoch, pid: vm.pid, loadMs }, 'the checkpoint runs');
    await vm.qmp.close();
    return { vm, ram, startedMs, ranMs, loadMs };
  } catch (error) {
    if (vm !== undefined) {
      await killVm(vm.identity);
      await vm.qmp.close();
    }
    await ram?.[Symbol.asyncDispose]().catch(() => {}); // what it was in is gone
    await rm(ramPath, { force: true });
    await placed.remove();
    throw error;
  }
};

const run = async (
  vm: LaunchedVm,
  stream: Uint8Array,
  options: RestoreOptions,
): Promise<{ loadMs: number; ranMs: number }> => {
  const loadMs = await load(vm, stream, options);
  const ranMs = performance.now();
  await announceSelf(vm.qmp);
  return { loadMs, ranMs };
};

/** Never settles but by rejecting: QEMU, which waits for a page, may answer nobody, be it loading or running. */
const failureOf = (ram: OnDemandRam): Promise<never> =>
  new Promise((_, reject) => {
    ram.complete.catch(reject);
  });

/** Settles when the VM needs nobody any more. */
const arrive = async ({ vm, ram }: StartedVm): Promise<MemoryArrival> => {
  if (ram === undefined) return ALL_THERE;
  // Nothing else may keep this process, and the guest waits for what it still lacks.
  const held = setInterval(() => {}, HOLD_MS);
  try {
    await Promise.race([ram.complete, vm.exited]);
  } catch (error) {
    if (await isAlive(vm.identity)) {
      // It would wait for that page for ever, and must not run without it.
      await killVm(vm.identity);
      await ram[Symbol.asyncDispose]();
      throw error;
    }
  } finally {
    clearInterval(held);
  }
  const { pages, demandedPages, faultP50Us, faultP99Us } = ram.stats();
  await ram[Symbol.asyncDispose]();
  return { pages, demandedPages, faultP50Us, faultP99Us };
};

const isDamage = (code: string): boolean => code === 'HOLDFAST_E_CHECKSUM' || code === 'HOLDFAST_E_DAMAGED';

/** With which it is restored. @throws ConfigError if it is not one for this checkpoint */
export const commandLineOf = (
  {
    commandLine,
    ramPath,
    qmpPath,
    replace = [],
  }: Pick<RestoreOptions, 'commandLine' | 'ramPath' | 'qmpPath' | 'replace'>,
  { epoch, manifest: { vm, disks } }: Entry,
  ranAs: RanAs,
  cwd: string,
): { readonly binary: string; readonly argv: readonly string[] } => {
  // One that was itself taken over, moved or restored ran with -incoming.
  const [binary = ranAs.binary, ...given] = commandLine ?? [ranAs.binary, ...withoutIncoming(ranAs.argv)];
  const { argv, ram } = forPrimary(given, { ramPath, qmpPath });
  if (ram.sizeBytes !== vm.ramBytes) {
    throw new ConfigError(
      `the command line gives the VM ${ram.sizeBytes} bytes of RAM, and checkpoint ${epoch} has ${vm.ramBytes}`,
      { cure: 'Start it with the command line of the VM that was checkpointed (-m).' },
    );
  }
  if (ram.id !== vm.ramId) {
    throw new ConfigError(
      `the command line calls the memory backend '${ram.id}', and in checkpoint ${epoch} it is '${vm.ramId}'`,
      { cure: `Name it so: -object memory-backend-file,id=${vm.ramId},share=on,…` },
    );
  }
  const standby = forStandby(argv, {
    ramPath,
    qmpPath,
    ramId: vm.ramId,
    machineType: vm.machineType,
    // An image that the command line calls by a relative path has its new place, too.
    replacements: [
      ...replace,
      ...disks.map(({ image }) => ({ from: relative(cwd, image), to: replaceText(image, replace) })),
    ],
  });
  return { binary, argv: standby };
};

/** What is relative in a command line is so to where it was given, or to where its VM was started. */
const cwdOf = ({ commandLine }: RestoreOptions, { cwd }: RanAs): string =>
  commandLine === undefined && existsSync(cwd) ? cwd : process.cwd();

/** The VM must not run over any other disks than the checkpoint's. @throws ConfigError */
const assertOpens = async (qmp: QmpClient, images: readonly string[], cwd: string): Promise<void> => {
  const drives = await qmp.execute('query-block');
  const open = new Set(
    drives.flatMap(({ inserted }) => {
      const path = inserted === undefined ? undefined : imagePathOf(inserted.file);
      return path === undefined ? [] : [resolve(cwd, path)];
    }),
  );
  const missing = images.filter((image) => !open.has(image));
  if (missing.length === 0) return;
  throw new ConfigError(
    `the command line has no drive over ${missing.join(', ')}, where the checkpoint's are`,
    {
      cure: 'Give it the drives of the VM that was checkpointed; --replace says where their images are now.',
    },
  );
};

/** Settles when the VM runs, with how long that took. */
const load = async (
  { qmp, logPath }: LaunchedVm,
  stream: Uint8Array,
  { scratchDir }: RestoreOptions,
): Promise<number> => {
  const incomingPath = join(scratchDir, 'incoming.sock');
  const before = await prepareIncoming(qmp, incomingPath);
  const startMs = performance.now();
  const running = waitRunning(qmp);
  running.catch(() => {}); // awaited below, after the write that may fail first
  try {
    const socket = createConnection({ path: incomingPath });
    await once(socket, 'connect');
    socket.end(stream);
    socket.resume();
    await Promise.all([once(socket, 'close'), running]); // a QEMU that hangs closes nothing, but is late
  } catch (error) {
    const cause = await running.catch((failure: unknown) => failure);
    throw new StandbyError(`QEMU did not load the device state: ${toHoldfastError(cause ?? error).message}`, {
      cause: cause ?? error,
      cure: `Its log is ${logPath}.`,
    });
  } finally {
    await rm(incomingPath, { force: true });
  }
  const loadMs = performance.now() - startMs;
  // It is an ordinary VM from here on: one that can be migrated with its RAM.
  await restoreMigrationCapabilities(qmp, before);
  return loadMs;
};

/** QEMU loads the state of an older version with the same machine type, not that of a newer one. */
const refuseOlderQemu = ({ epoch, manifest }: Entry, here: string): void => {
  const { qemuVersion } = manifest.vm;
  if (!isOlderRelease(here, qemuVersion)) return;
  throw new StandbyError(
    `this is QEMU ${here}; checkpoint ${epoch} was taken with ${qemuVersion}, which it cannot load`,
    { cure: `Restore with QEMU ${qemuVersion} or newer: -- /path/to/qemu-system-x86_64 …` },
  );
};
