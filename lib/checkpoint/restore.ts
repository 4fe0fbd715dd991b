/**
 * Starts a VM from a checkpoint.
 *
 *   select ─ check devices and disks ─ disks to their places ─ QEMU with -incoming defer over the RAM file
 *          ─ device state ─► it runs, as if the time since had not been
 *
 * The checkpoint is only read. The VM's RAM is a file of its own, so it can be checkpointed, protected or
 * migrated again.
 */
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join, resolve } from 'node:path';
import { ConfigError, StandbyError, toHoldfastError } from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native } from '../native.js';
import {
  announceSelf,
  prepareIncoming,
  restoreMigrationCapabilities,
  versionText,
  waitRunning,
} from '../qmp/recipes.js';
import { forPrimary, forStandby, type Replacement } from '../vm/command-line.js';
import { killVm, type LaunchedVm, launchVm } from '../vm/launch.js';
import { claimReading } from './claims.js';
import { type Entry, listCheckpoints } from './directory.js';
import { placeDisks } from './disk-copies.js';
import { damagedCheckpoint, layerFilesOf, selectCheckpoint } from './select.js';
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
  /** Images that are there already are overwritten. */
  readonly overwriteDisks?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly logger?: Logger | undefined;
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
}

/**
 * Restores a VM, and settles when it runs.
 * @throws ConfigError, DamagedError (nothing runs), VmGoneError, StandbyError, NoSpaceError
 */
export const restoreCheckpoint = async (options: RestoreOptions): Promise<RestoredVm> => {
  const beganMs = performance.now();
  const root = resolve(options.dir);
  const log = options.logger ?? NOTHING_LOGGED;
  await using _claim = await claimReading(root);
  const listing = await listCheckpoints(root);
  const { entry, layers } = selectCheckpoint(listing, root, options.at);
  const refuse = (error: unknown): never => {
    const failure = toHoldfastError(error);
    throw isDamage(failure.code) ? damagedCheckpoint(entry.epoch, failure, listing.entries) : failure;
  };
  const { binary, argv } = commandLineOf(options, entry);
  const stream = await checkDevice(entry).catch(refuse);
  const placed = await placeDisks(entry, options).catch(refuse);
  let vm: LaunchedVm | undefined;
  try {
    await native.assembleRam({ layers: layerFilesOf(layers), path: options.ramPath }).catch(refuse);
    const startMs = performance.now();
    vm = await launchVm({
      binary,
      argv,
      qmpPath: options.qmpPath,
      logPath: options.logPath,
      sendWithFd: native.sendWithFd,
      peerPid: native.peerPid,
      signal: options.signal,
    });
    refuseOlderQemu(entry, versionText(vm.qmp.greeting.version));
    const loadMs = await load(vm, stream, options);
    const ranMs = performance.now();
    log.info({ epoch: entry.epoch, pid: vm.pid, loadMs }, 'the checkpoint runs');
    await announceSelf(vm.qmp);
    await vm.qmp.close();
    const { pid, identity, exited } = vm;
    return {
      vm: { pid, identity, exited },
      commandLine: options.commandLine ?? [entry.manifest.vm.binary, ...entry.manifest.vm.argv],
      epoch: entry.epoch,
      startMs: ranMs - startMs,
      loadMs,
      totalMs: ranMs - beganMs,
    };
  } catch (error) {
    if (vm !== undefined) {
      await killVm(vm.identity);
      await vm.qmp.close();
    }
    await rm(options.ramPath, { force: true });
    await placed.remove();
    throw toHoldfastError(error);
  }
};

const isDamage = (code: string): boolean => code === 'HOLDFAST_E_CHECKSUM' || code === 'HOLDFAST_E_DAMAGED';

/** @throws ConfigError if it is not one for this checkpoint */
const commandLineOf = (
  { commandLine, ramPath, qmpPath, replace = [] }: RestoreOptions,
  { epoch, manifest: { vm } }: Entry,
): { readonly binary: string; readonly argv: readonly string[] } => {
  const [binary = vm.binary, ...given] = commandLine ?? [vm.binary, ...vm.argv];
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
    replacements: replace,
  });
  return { binary, argv: standby };
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
    await once(socket, 'close');
    await running;
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
  const release = (version: string): number => {
    const [major = 0, minor = 0] = version.split('.').map(Number);
    return major * 1_000 + minor;
  };
  const { qemuVersion } = manifest.vm;
  if (release(here) >= release(qemuVersion)) return;
  throw new StandbyError(
    `this is QEMU ${here}; checkpoint ${epoch} was taken with ${qemuVersion}, which it cannot load`,
    { cure: `Restore with QEMU ${qemuVersion} or newer: -- /path/to/qemu-system-x86_64 …` },
  );
};
