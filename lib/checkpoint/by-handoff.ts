/**
 * One checkpoint by hand-off (lib/handoff/coordinator.ts), into a directory of checkpoints: a full one, like any
 * other for whoever lists, verifies or restores it.
 *
 *   claim ─ hand-off ─ the stopped VM: RAM file, devices ─► files │ its images ─► files │ manifest, rename
 *         ─ overlays committed ─ upkeep of older ones
 */
import { readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type HoldfastError, toHoldfastError } from '../errors.js';
import { checkpointByHandoff, type StandingVm } from '../handoff/coordinator.js';
import type { HandoffOptions, HandoffSide } from '../handoff/options.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native } from '../native.js';
import { saveDeviceState } from '../qmp/recipes.js';
import type { MemoryBackend } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { xenSaveHeaderBytes } from '../vm/migration-stream.js';
import type { Upkeep } from './chain.js';
import { vmOf } from './checkpointing.js';
import { writeDeviceState } from './device-state.js';
import {
  beginCheckpoint,
  epochDir,
  listCheckpoints,
  nextEpoch,
  publishCheckpoint,
  writingDir,
} from './directory.js';
import { saveDisk } from './disk-overlays.js';
import type { DiskEntry, Manifest } from './manifest.js';
import { keepUp } from './upkeep.js';
import { enterAsWriter } from './writer.js';

export interface CheckpointByHandoffOptions
  extends Pick<HandoffOptions, 'qmp' | 'signal' | 'whenItRuns' | 'onProgress'> {
  /** Directory of the checkpoints; made if it is not there. */
  readonly dir: string;
  /** So many can be restored, older ones go; without it all stay. */
  readonly keep?: number | undefined;
  readonly onUpkeep?: ((step: Upkeep) => void) | undefined;
  /** The checkpoint is there, but somebody should know. */
  readonly onWarning?: ((error: HoldfastError) => void) | undefined;
  readonly logger?: Logger | undefined;
}

/** Times in milliseconds; the phases are the thesis's (docs/handoff.md). */
export interface HandoffCheckpointReport {
  readonly epoch: number;
  readonly path: string;
  readonly full: true;
  readonly parent: null;
  readonly pages: number;
  readonly zeroPages: number;
  /** Of memory, in the checkpoint. */
  readonly bytes: number;
  /** Of the disks' images. */
  readonly diskBytes: number;
  /** The VM stood still for so long: the hand-off's downtime. */
  readonly pauseMs: number;
  /** A stop of its own before that, for what QEMU's ROMs hold. */
  readonly prefixMs: number;
  readonly allMs: number;
  readonly migrateMs: number;
  readonly saveStateMs: number;
  readonly copyFileMs: number;
  readonly commitMs: number;
  readonly from: HandoffSide;
  readonly to: HandoffSide;
  /** As a hand-off's: false, and a warning, if the old QEMU was left, stopped. */
  readonly fromEnded: boolean;
}

/**
 * Takes one. The VM runs in another QEMU afterwards.
 *
 * @throws as checkpointByHandoff() does, ConfigError another process writes there, NoSpaceError; the checkpoints
 *         before are as they were
 */
export const takeByHandoff = async (
  options: CheckpointByHandoffOptions,
): Promise<HandoffCheckpointReport> => {
  const { dir, keep, onUpkeep, onWarning, logger, ...handoff } = options;
  const root = resolve(dir);
  const log = logger ?? NOTHING_LOGGED;
  await using _claim = await enterAsWriter(root);
  const epoch = nextEpoch(await listCheckpoints(root));
  const writing = await beginCheckpoint(root, epoch);
  let saved: Pick<Manifest, 'vm' | 'ram' | 'device'> | undefined;
  let diskBytes = 0;
  /** What fails leaves its room at once: the overlays have yet to be committed, perhaps on the same file system. */
  const orMakeRoom = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      await rm(writing, { recursive: true, force: true }).catch(() => {}); // tried again below
      throw error;
    }
  };
  try {
    const { handoff: result, ...phases } = await checkpointByHandoff({
      ...handoff,
      saveState: (standing) =>
        orMakeRoom(async () => {
          saved = await saveTo(writing, standing);
        }),
      copyFiles: (standing) =>
        orMakeRoom(async () => {
          const disks = await copyDisks(writing, standing);
          diskBytes = disks.reduce((sum, { bytes }) => sum + bytes, 0);
          await publishCheckpoint(root, {
            epoch,
            parent: null,
            takenAt: standing.stoppedAt.toISOString(),
            pauseMs: standing.downtimeMs,
            ...saved!,
            disks: [...disks],
          });
        }),
    });
    try {
      await keepUp({ root, keep, native, log, ...(onUpkeep === undefined ? {} : { onStep: onUpkeep }) });
    } catch (error) {
      onWarning?.(toHoldfastError(error, 'merging older checkpoints'));
    }
    const { vm, ram } = saved!;
    const { pages, zeroPages } = ram;
    return {
      ...{ epoch, path: epochDir(root, epoch), full: true, parent: null, pages, zeroPages },
      bytes: pages * vm.pageSize,
      diskBytes,
      pauseMs: phases.migrateMs,
      ...phases,
      ...{ from: result.from, to: result.to, fromEnded: result.fromEnded },
    };
  } finally {
    await rm(writingDir(root, epoch), { recursive: true, force: true }); // renamed, where it became a checkpoint
  }
};

type MappedBackend = MemoryBackend & { readonly mapping: NonNullable<MemoryBackend['mapping']> };

/** A hand-off is of a VM that has exactly one, which is mapped. */
const backendOf = ({ vm }: StandingVm): MappedBackend => vm.memoryBackends[0] as MappedBackend;

const saveTo = async (
  dir: string,
  standing: StandingVm,
): Promise<Pick<Manifest, 'vm' | 'ram' | 'device'>> => {
  const { qmp, vm, ramPath, ramIndex, prefix, scratchPath } = standing;
  await saveDeviceState(qmp, scratchPath);
  const device = await writeDeviceState({
    prefix,
    state: await readFile(scratchPath),
    skipBytes: xenSaveHeaderBytes,
    path: join(dir, 'device'),
  });
  await native.copySparse({ from: ramPath, to: join(dir, 'ram') });
  await native.copySparse({ from: ramIndex.path, to: join(dir, 'ram.index') });
  const { digest, pages, zeroPages } = ramIndex;
  return {
    vm: vmOf(vm, backendOf(standing)),
    ram: { file: 'ram', index: 'ram.index', digest, pages, zeroPages },
    device: { file: 'device', ...device },
  };
};

const copyDisks = async (dir: string, { vm, images }: StandingVm): Promise<readonly DiskEntry[]> => {
  const entries: DiskEntry[] = [];
  for (const [index, image] of images.entries()) {
    const drive = vm.drives.find((each) => resolve(vm.cwd, imagePathOf(each.file) ?? '') === image);
    entries.push(await saveDisk(dir, index, { name: drive?.name ?? image, image, format: 'raw' }));
  }
  return entries;
};
