/**
 * Whether QEMU's own dirty log can be trusted with this VM.
 *
 * Under TCG, before 9.0, it can't: for a RAM block whose size is a multiple of 64 pages, QEMU takes the dirty bits
 * word by word and forgets to tell the vCPUs' TLBs (cpu_physical_memory_sync_dirty_bitmap(); fixed by 03bfc2188f
 * "physmem: Fix migration dirty bitmap coherency with TCG memory access"). A page that is written to again is then
 * not found dirty, and the guest arrives with old contents in it: with a guest that writes, in each run that was tried. A
 * block of any other size goes page by page, and is sound.
 */
import { UnsupportedVmError } from '../errors.js';
import type { QmpClient } from '../qmp/client.js';

/** 64 pages: the bits of a word. */
const WORD_BYTES = 64 * 4096;
const FIXED_IN_MAJOR = 9;

export interface DirtyLogFacts {
  readonly kvm: boolean;
  readonly qemuMajor: number;
  readonly ramBlockBytes: readonly number[];
}

export const losesWrites = ({ kvm, qemuMajor, ramBlockBytes }: DirtyLogFacts): boolean =>
  !kvm && qemuMajor < FIXED_IN_MAJOR && ramBlockBytes.some((bytes) => bytes % WORD_BYTES === 0);

/** @throws UnsupportedVmError a migration by QEMU would corrupt the guest. */
export const checkDirtyLog = async (qmp: QmpClient): Promise<void> => {
  const [kvm, memdevs] = await Promise.all(
    qmp.pipeline([{ execute: 'query-kvm' }, { execute: 'query-memdev' }]),
  );
  const { major, minor, micro } = qmp.greeting.version.qemu;
  const ramBlockBytes = memdevs.map(({ size }) => size);
  if (!losesWrites({ kvm: kvm.enabled, qemuMajor: major, ramBlockBytes })) return;
  throw new UnsupportedVmError(
    `QEMU ${major}.${minor}.${micro} loses writes of TCG guests while it migrates them; the guest would arrive damaged`,
    {
      cure: "Use Holdfast's own engine, KVM, or QEMU 9; or start the guest with RAM of a size that is no multiple of 256 KiB, such as -m 524296K: such RAM is not affected.",
      details: { ramBlockBytes },
    },
  );
};
