/**
 * Starts the QEMU that is to take a session's VM, with its relays and disk servers: whichever way its memory
 * comes (generation.ts, qemu-generation.ts), and whatever it waits for then.
 */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { StandbySpec } from '../control/messages.js';
import { StandbyError } from '../errors.js';
import type { Logger } from '../log.js';
import { native } from '../native.js';
import { forStandby, type Replacement, type StandbyCommandOptions } from '../vm/command-line.js';
import { type LaunchedVm, launchVm } from '../vm/launch.js';
import { moveSockets } from '../vm/netdevs.js';
import { isOlderRelease } from '../vm/qemu-version.js';
import type { StandbyDisks } from './disk-support.js';
import { findStandbyBinary } from './standby-binary.js';
import { StandbyRelays } from './standby-relays.js';

/** Where it runs: as the VM did, if that directory is on this host too. */
export const standbyCwd = ({ cwd }: StandbySpec): string => (existsSync(cwd) ? cwd : '/');

export interface StandbyLaunch {
  readonly spec: StandbySpec;
  /** The operator's --qemu. */
  readonly qemu: string | undefined;
  /** The session's, and then this host's own. */
  readonly replacements: readonly Replacement[];
  readonly ramPath: string;
  readonly loads: NonNullable<StandbyCommandOptions['loads']>;
  readonly disks: StandbyDisks | undefined;
  /** For QEMU's sockets. */
  readonly dir: string;
  /** Tells the sockets of one standby from those of the next one. */
  readonly launch: number;
  /** The monitor for others; the daemon has one of its own. */
  readonly qmpPath: string;
  readonly logPath: string;
  readonly log: Logger;
}

/** @throws StandbyError, VmGoneError, QmpConnectionError, RelayError, DiskError */
export const launchStandby = async (
  options: StandbyLaunch,
): Promise<{ readonly vm: LaunchedVm; readonly relays: StandbyRelays }> => {
  const { spec, replacements, ramPath, loads, disks, dir, launch, qmpPath, logPath, log } = options;
  const binary = await findStandbyBinary(spec.binary, options.qemu);
  const daemonQmpPath = join(dir, `qmp-daemon-${launch}.sock`);
  await rm(qmpPath, { force: true });
  const relays = new StandbyRelays({ asked: spec.relays ?? [], replacements, dir, launch, log });
  const ownArgv = forStandby(spec.argv, {
    machineType: spec.machineType,
    ramId: spec.backendId,
    ramPath,
    qmpPath: daemonQmpPath,
    replacements,
    loads,
  });
  const networked = moveSockets(ownArgv, relays.sockets);
  const argv = [
    ...(disks === undefined ? networked : disks.over(networked, replacements)),
    '-qmp',
    `unix:${qmpPath.replaceAll(',', ',,')},server=on,wait=off`,
  ];
  await disks?.start();
  const vm = await launchVm({
    binary,
    argv,
    qmpPath: daemonQmpPath,
    logPath,
    cwd: standbyCwd(spec),
    sendWithFd: native.sendWithFd,
    peerPid: native.peerPid,
    beside: async (identity) => {
      await Promise.all([relays.start(identity), disks?.bind(identity)]);
    },
  }).catch(async (error: unknown) => {
    await disks?.end(); // not bound to a process, perhaps: nobody else would
    throw error;
  });
  return { vm, relays };
};

/** QEMU loads the state of an older version with the same machine type, not that of a newer one. */
export const refuseOlderQemu = (primary: string, here: string): void => {
  if (!isOlderRelease(here, primary)) return;
  throw new StandbyError(`this host has QEMU ${here}, the primary ${primary}: it could not load its state`, {
    cure: 'Install the same QEMU, or a newer one, on the backup.',
  });
};
