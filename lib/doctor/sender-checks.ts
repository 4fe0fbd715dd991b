/**
 * What the zero-copy senders need. None of it is needed to protect a VM: `auto`
 * leaves out what does not work, so each lack is a warning.
 */
import { readFile } from 'node:fs/promises';
import type { NativeBinding, SenderProbe } from '../native.js';
import type { DoctorCheck } from './doctor.js';

/** The kernel's default since Linux 6.8; before that 20 KiB, of which each send in flight takes about one. */
const OPTMEM_BYTES_MIN = 128 << 10;

const LEFT_OUT = "Until then `--sender auto` leaves it out, and the other senders don't need it.";

export const checkSenders = async (
  native: Pick<NativeBinding, 'probeSenders'>,
): Promise<readonly DoctorCheck[]> => {
  let probe: SenderProbe;
  try {
    probe = native.probeSenders();
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return [{ id: 'senders', title: 'senders', status: 'warn', found, cure: 'Build the addon again.' }];
  }
  return [checkZerocopy(probe), checkOptmem(probe.optmemBytesMax), await checkUring(probe)];
};

const checkZerocopy = ({ zerocopy, zerocopyReason }: SenderProbe): DoctorCheck => ({
  id: 'zerocopy',
  title: 'sender: MSG_ZEROCOPY',
  status: zerocopy ? 'ok' : 'warn',
  found: zerocopy ? 'works' : (zerocopyReason ?? 'does not work'),
  ...(zerocopy ? {} : { cure: `See that no seccomp profile (container) forbids SO_ZEROCOPY. ${LEFT_OUT}` }),
});

const checkOptmem = (bytes: number): DoctorCheck => {
  const isEnough = bytes < 0 || bytes >= OPTMEM_BYTES_MIN;
  return {
    id: 'optmem',
    title: 'sender: socket options memory',
    status: isEnough ? 'ok' : 'warn',
    found: bytes < 0 ? 'net.core.optmem_max cannot be read' : `net.core.optmem_max = ${bytes}`,
    ...(isEnough
      ? {}
      : { cure: `More zero-copy sends in flight: sysctl -w net.core.optmem_max=${OPTMEM_BYTES_MIN}` }),
  };
};

const checkUring = async (probe: SenderProbe): Promise<DoctorCheck> => {
  const { uring, uringReason, uringFixedBuffers, uringUsageReports } = probe;
  const lacks = [
    ...(uringFixedBuffers ? [] : ['without registered buffers']),
    ...(uringUsageReports ? [] : ['without reports of what the kernel copied (Linux 6.2)']),
  ];
  return {
    id: 'io-uring',
    title: 'sender: io_uring SEND_ZC',
    status: uring ? 'ok' : 'warn',
    found: uring ? ['works', ...lacks].join(', ') : (uringReason ?? 'does not work'),
    ...(uring ? {} : { cure: `${await uringCure()} ${LEFT_OUT}` }),
  };
};

const uringCure = async (): Promise<string> => {
  const disabled = await readFile('/proc/sys/kernel/io_uring_disabled', 'utf8').catch(() => '');
  if (/^[12]/.test(disabled)) {
    return `The administrator has turned it off (kernel.io_uring_disabled = ${disabled.trim()}): sysctl -w kernel.io_uring_disabled=0`;
  }
  return 'Boot Linux 6.0 or newer, and see that no seccomp profile (container) forbids io_uring.';
};
