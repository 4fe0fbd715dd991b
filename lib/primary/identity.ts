/** Which VM this is, across restarts of the daemon and across failovers. */
import { randomUUID } from 'node:crypto';
import { FencedError } from '../errors.js';
import type { VmRecord, VmRecords } from '../state/records.js';
import type { VmDescription } from '../vm/describe.js';

/**
 * The VM's record on this host, made if there is none: a VM that a backup took over keeps its id and term.
 * @throws FencedError if another copy of it is active in a newer term.
 */
export const recordOf = async (records: VmRecords, vm: VmDescription, qmpPath: string): Promise<VmRecord> => {
  const known = await records.ofProcess(vm.process);
  if (known?.role === 'superseded') {
    throw new FencedError(
      `this VM was superseded in term ${known.term}: another copy of it runs on its backup`,
      {
        cure: 'Quit this QEMU; protect the copy that runs.',
      },
    );
  }
  const value: VmRecord = {
    vmId: known?.vmId ?? randomUUID(),
    vmName: vm.name ?? '',
    term: known?.term ?? 1,
    role: 'active',
    process: vm.process,
    qmpPath,
    ramPath: vm.memoryBackends[0]?.mapping?.path ?? '',
  };
  await records.write(value);
  return value;
};

/**
 * Of the directory into which QEMU saves the VM's device state, in each pause: QEMU reads a command byte by
 * byte, at some 3 µs each, and so waits for the end of its path.
 */
export const scratchName = (vmId: string): string =>
  `vm-${Buffer.from(vmId.replaceAll('-', ''), 'hex').toString('base64url')}`;
