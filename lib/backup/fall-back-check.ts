/**
 * Whether a session's VM can go on here from a checkpoint, should its source be lost. Found out before anything is
 * changed at the source: afterwards nobody has a choice. Pure.
 */
import type { SelectedCheckpoint } from '../checkpoint/select.js';
import type { SessionMessage } from '../control/messages.js';
import { ConfigError, NoSpaceError, StandbyError, UnsupportedVmError } from '../errors.js';
import { isOlderRelease } from '../vm/qemu-version.js';

type Asked = Pick<
  SessionMessage,
  'resumeEarly' | 'qemuEngine' | 'disks' | 'vmName' | 'ramBytes' | 'pageSize' | 'standby'
>;

/** @throws ConfigError, UnsupportedVmError: no checkpoint will do for this session */
export const assertMayFallBack = ({ resumeEarly, qemuEngine, disks }: Asked): void => {
  if (resumeEarly === undefined || qemuEngine === true) {
    throw new ConfigError('a fallback is for a VM that is resumed early', {
      cure: 'Migrate without --fallback, or with --resume-early.',
    });
  }
  if (disks !== undefined) {
    throw new UnsupportedVmError(
      'a VM with replicated disks cannot go on from a checkpoint: its disks would be of another moment',
      { cure: 'Migrate it without --fallback, or without --resume-early.' },
    );
  }
};

/**
 * @param qemuHere version of the QEMU that would load it
 * @throws ConfigError it is of another VM; StandbyError the QEMU here is too old for it
 */
export const assertFits = (
  { entry }: Pick<SelectedCheckpoint, 'entry'>,
  asked: Asked,
  qemuHere: string,
): void => {
  const { epoch, dir, manifest } = entry;
  const differences = differencesOf(manifest, asked);
  if (differences.length > 0) {
    throw new ConfigError(
      `checkpoint ${epoch} (${dir}) is not one of the VM that is to come: ${differences.join('; ')}`,
      { cure: 'Name the directory of its own checkpoints with --fallback, or migrate without.' },
    );
  }
  const { qemuVersion } = manifest.vm;
  if (isOlderRelease(qemuHere, qemuVersion)) {
    throw new StandbyError(
      `this is QEMU ${qemuHere}; checkpoint ${epoch} (${dir}) was taken with ${qemuVersion}, which it cannot load`,
      {
        cure: `Install QEMU ${qemuVersion} or newer on the destination, or migrate without --fallback.`,
      },
    );
  }
};

const differencesOf = (
  { vm, disks }: SelectedCheckpoint['entry']['manifest'],
  { vmName, ramBytes, pageSize, standby }: Asked,
): readonly string[] => {
  const compared: readonly (readonly [
    what: string,
    checkpoint: string | number,
    session: string | number,
  ])[] = [
    // One of them may have been started without a name.
    ...(vm.name === '' || vmName === '' ? [] : [['its name', vm.name, vmName] as const]),
    ['its emulator', vm.binary.slice(vm.binary.lastIndexOf('/') + 1), standby.binary],
    ['its machine type', vm.machineType, standby.machineType],
    ['its RAM, in bytes,', vm.ramBytes, ramBytes],
    ['the size of its pages', vm.pageSize, pageSize],
    ['its memory backend', vm.ramId, standby.backendId],
  ];
  return [
    ...compared
      .filter(([, ofCheckpoint, ofSession]) => ofCheckpoint !== ofSession)
      .map(([what, ofCheckpoint, ofSession]) => `${what} is ${ofCheckpoint} there, and ${ofSession} now`),
    ...(disks.length === 0 ? [] : [`it has disks (${disks.map(({ name }) => name).join(', ')})`]),
  ];
};

/**
 * For what the restored VM's RAM may take: pages that the layers have in common count more than once, as far as RAM
 * has room for them.
 * @throws NoSpaceError
 */
export const assertRoomFor = (
  { entry, layers }: SelectedCheckpoint,
  { dir, freeBytes }: { readonly dir: string; readonly freeBytes: number },
): void => {
  const { ramBytes, pageSize } = entry.manifest.vm;
  const pages = layers.reduce((sum, { manifest }) => sum + manifest.ram.pages, 0);
  const neededBytes = Math.min(ramBytes, pages * pageSize);
  if (freeBytes >= neededBytes) return;
  throw new NoSpaceError(
    `checkpoint ${entry.epoch} takes up to ${neededBytes} bytes in ${dir}, which has ${freeBytes}`,
    {
      cure: 'Make room there (a tmpfs is enlarged by mount -o remount,size=…).',
      details: { dir, neededBytes, freeBytes },
    },
  );
};
