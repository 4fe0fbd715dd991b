/**
 * The VM that is to be protected, examined; its disks are moved to servers first, where that is asked for.
 */
import { type MovedDisks, moveDisks } from '../disk/move-disks.js';
import { movedDisksDir, removeLeftDisksDirs } from '../disk/moved-disks-dir.js';
import type { Logger } from '../log.js';
import { native } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import { describeVm, type VmDescription } from '../vm/describe.js';
import { movableDrives } from '../vm/movable-drives.js';
import { assertProtectable } from '../vm/preflight.js';
import type { PrimarySettings } from './options.js';

export interface ExaminedVm {
  readonly vm: VmDescription;
  /** What was moved to disk servers, if anything was. */
  readonly moved: MovedDisks | undefined;
}

/** @throws UnsupportedVmError (nothing was touched), DiskError (the VM runs as before) */
export const examineVm = async (
  qmp: QmpClient,
  { moveDisks: isMoveWanted, runDir, diskDir, ringMiB }: PrimarySettings,
  log: Logger,
): Promise<ExaminedVm> => {
  const describe = (): Promise<VmDescription> =>
    describeVm({ qmp, pid: native.peerPid(qmp.socketFd), findRamMappings: native.findRamMappings });
  const vm = await describe();
  const movable = new Set(isMoveWanted ? movableDrives(vm).map(({ drive }) => drive) : []);
  // All else has to be right before anything is touched.
  assertProtectable({ ...vm, drives: vm.drives.filter((drive) => !movable.has(drive)) });
  if (movable.size === 0) return { vm, moved: undefined };
  await removeLeftDisksDirs(runDir);
  const dir = movedDisksDir(runDir, vm.process);
  const moved = await moveDisks({
    vm,
    qmp,
    placement: { dir, diskDir, ringBytes: ringMiB * (1 << 20) },
    log,
  });
  const after = await describe();
  assertProtectable(after);
  return { vm: after, moved };
};
