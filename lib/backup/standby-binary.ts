/**
 * Which QEMU a standby is started with. The primary names only the binary's
 * base name (qemu-system-…): what is run is what this host has, from PATH or
 * from the operator's --qemu, never a path that came over the network.
 */
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { StandbyError } from '../errors.js';

export const findStandbyBinary = async (baseName: string, override: string | undefined): Promise<string> => {
  if (!/^qemu-(system-[a-z0-9_]+|kvm)$/.test(baseName)) {
    throw new StandbyError(
      `the primary's VM runs as ${baseName}, which is not a QEMU system emulator's name`,
      {
        cure: 'Start the VM by its usual name (qemu-system-x86_64).',
      },
    );
  }
  const candidates =
    override === undefined
      ? (process.env.PATH ?? '/usr/bin').split(delimiter).map((directory) => join(directory, baseName))
      : [override];
  for (const candidate of candidates) {
    const found = await access(candidate, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return candidate;
  }
  throw new StandbyError(`${override ?? baseName} was not found on this host`, {
    cure: 'Install the same QEMU as on the primary, or name it with --qemu.',
  });
};
