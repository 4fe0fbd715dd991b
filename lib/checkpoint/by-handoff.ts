/**
 * One checkpoint by hand-off (lib/handoff/coordinator.ts), into a directory of checkpoints: a full one, like any
 * other for whoever lists, verifies or restores it.
 *
 *   claim ─ hand-off ─ the stopped VM: RAM file, devices ─► files │ its images ─► files │ manifest, rename
 *         ─ overlays committed ─ upkeep of older ones
 */
import { mkdir, readFile, rm } from 'node:fs/promises';
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
import { claimWriting } from './claims.js';
import { writeDeviceState } from './device-state.js';
import {
  beginCheckpoint,
  epochDir,
  listCheckpoints,
  nextEpoch,
  publishCheckpoint,
  removeUnfinished,
  writingDir,
} from './directory.js';
import { type DiskEntry, MANIFEST_MAGIC, MANIFEST_VERSION, type Manifest } from './manifest.js';
import { keepUp, tidy } from './upkeep.js';

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
  await mkdir(root, { recursive: true, mode: 0o700 });
  await using _claim = await claimWriting(root);
  await removeUnfinished(root);
  await tidy(root);
  const epoch = nextEpoch(await listCheckpoints(root));
  const writing = await beginCheckpoint(root, epoch);
  let saved: Pick<Manifest, 'ram' | 'device'> | undefined;
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
            ...{ magic: MANIFEST_MAGIC, version: MANIFEST_VERSION, epoch, parent: null },
            takenAt: standing.stoppedAt.toISOString(),
            pauseMs: standing.downtimeMs,
            vm: vmOf(standing.vm, backendOf(standing)),
            ...saved!,
            disks: [...disks],
          });
        }),
    });
    try {
      await keepUp({ root, keep, native, log, ...(onUpkeep === undefined ? {} : { onStep: onUpkeep }) });
      await tidy(root);
    } catch (error) {
      onWarning?.(toHoldfastError(error, 'merging older checkpoints'));
    }
    const { pages, zeroPages } = saved!.ram;
    return {
      ...{ epoch, path: epochDir(root, epoch), full: true, parent: null, pages, zeroPages },
      bytes: pages * PAGE_BYTES,
      diskBytes,
      pauseMs: phases.migrateMs,
      ...phases,
      ...{ from: result.from, to: result.to, fromEnded: result.fromEnded },
    };
  } finally {
    await rm(writingDir(root, epoch), { recursive: true, force: true }); // renamed, where it became a checkpoint
  }
};

/** Others are refused (lib/handoff/ram-copy.ts). */
const PAGE_BYTES = 4_096;

type MappedBackend = MemoryBackend & { readonly mapping: NonNullable<MemoryBackend['mapping']> };

/** A hand-off is of a VM that has exactly one, which is mapped. */
const backendOf = ({ vm }: StandingVm): MappedBackend => vm.memoryBackends[0] as MappedBackend;

const saveTo = async (
  dir: string,
  { qmp, ramPath, ramIndex, prefix, scratchPath }: StandingVm,
): Promise<Pick<Manifest, 'ram' | 'device'>> => {
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
    ram: { file: 'ram', index: 'ram.index', digest, pages, zeroPages },
    device: { file: 'device', ...device },
  };
};

const copyDisks = async (dir: string, { vm, images }: StandingVm): Promise<readonly DiskEntry[]> => {
  const entries: DiskEntry[] = [];
  for (const [index, image] of images.entries()) {
    const file = `disk-${index}.raw`;
    const { bytes } = await native.copySparse({ from: image, to: join(dir, file) });
    const digest = await native.hashFile(join(dir, file), bytes);
    const drive = vm.drives.find((each) => resolve(vm.cwd, imagePathOf(each.file) ?? '') === image);
    entries.push({ name: drive?.name ?? image, file, image, format: 'raw', bytes, digest });
  }
  return entries;
};
