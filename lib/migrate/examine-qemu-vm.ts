/** Whether QEMU's engine can move a VM to where a backup can own it afterwards. Nothing is touched. */
import { UnsupportedVmError } from '../errors.js';
import { native } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import { type Drive, describeVm, type VmDescription } from '../vm/describe.js';
import { assertProtectable } from '../vm/preflight.js';
import { checkDirtyLog } from './qemu-dirty-log.js';

/** @throws UnsupportedVmError */
export const examineQemuVm = async (qmp: QmpClient): Promise<VmDescription> => {
  const vm = await describeVm({
    qmp,
    pid: native.peerPid(qmp.socketFd),
    findRamMappings: native.findRamMappings,
  });
  assertDisksStay(vm.drives);
  assertProtectable(vm);
  await checkDirtyLog(qmp);
  return vm;
};

/**
 * What is written to a disk reaches the other side by nobody: QEMU's stream has none of it, and whether an image
 * lies on storage that both hosts share cannot be told from here. Pure.
 * @throws UnsupportedVmError
 */
export const assertDisksStay = (drives: readonly Drive[]): void => {
  const written = drives.filter(({ readOnly }) => !readOnly);
  if (written.length === 0) return;
  const names = written.map(({ name }) => name).join(', ');
  throw new UnsupportedVmError(
    `QEMU's engine moves no disks, and the VM writes to ${names}; nothing was changed`,
    {
      cure: "Use Holdfast's own engine, which moves them too (--engine holdfast, with --move-disks on if need be).",
      details: { drives: written.map(({ name, file, format }) => ({ name, file, format })) },
    },
  );
};
