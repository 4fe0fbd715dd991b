/**
 * The flat multiboot guest for the comparisons: one command line for every
 * contender, on host a or, with `incoming`, as the receiving QEMU on host b.
 *
 * Two monitors: the contender's own (Holdfast keeps its monitor for itself) and
 * one for the observer that takes the times.
 */
import { type FlatGuestOptions, flatGuestArgs } from '../../test/lab/guest.js';
import type { Lab } from '../../test/lab/lab.js';
import { waitForText } from '../../test/lab/wait.js';
import type { RunningGuest } from '../pair.js';

export interface PeerGuest extends RunningGuest {
  readonly observerPath: string;
}

export type PeerGuestOptions = Required<Pick<FlatGuestOptions, 'accel' | 'pages' | 'ramMb'>> & {
  /** An existing file with the RAM's contents; default: a new, empty one. */
  readonly ramPath?: string;
};

/** Printed when it was asked for more pages than it has; after that it halts, and still counts as running. */
export const flatHaltedText = 'HOLDFAST-FLAT-ERROR';

/** Under a paravirtual /dev/kvm the firmware alone takes 8 s. */
const BOOT_TIMEOUT_MS = 60_000;

let started = 0;

const start = async (
  lab: Lab,
  host: 'a' | 'b',
  options: PeerGuestOptions,
  more: readonly string[] = [],
  prealloc = false,
): Promise<PeerGuest> => {
  const id = ++started;
  const paths = {
    serialPath: lab.path(`flat-serial-${id}`),
    qmpPath: lab.path(`flat-qmp-${id}`),
    ramPath: options.ramPath ?? lab.sharedMemoryPath(`flat-ram-${id}`),
  };
  const observerPath = lab.path(`flat-observer-${id}`);
  const args = flatGuestArgs({ ...options, ...paths, machine: 'pc', lapsPerDot: 0 }).map((arg) =>
    prealloc && arg.startsWith('memory-backend-file,') ? `${arg},prealloc=on` : arg,
  );
  const observer = ['-qmp', `unix:${observerPath},server=on,wait=off`];
  const qemu = await lab.host(host).spawn('qemu-system-x86_64', [...args, ...observer, ...more]);
  return { process: qemu, pid: qemu.pid, observerPath, ...paths };
};

/** Boots the guest on host a; settles when its console says `ready`. */
export const startSource = async (lab: Lab, options: PeerGuestOptions, ready: string): Promise<PeerGuest> => {
  const guest = await start(lab, 'a', options);
  const ended = guest.process.exited.then(({ code, signal }) => {
    throw new Error(`QEMU ended with ${code ?? signal} before its guest ran: ${guest.process.stderr}`);
  });
  ended.catch(() => {}); // a later end is the comparison's own doing
  await Promise.race([waitForText(guest.serialPath, ready, { timeoutMs: BOOT_TIMEOUT_MS }), ended]);
  return guest;
};

/**
 * The same command line on host b, waiting for a migration.
 *
 * @param prealloc QEMU's option of that name: its memory is there before a byte arrives.
 */
export const startIncoming = async (
  lab: Lab,
  options: PeerGuestOptions,
  prealloc: boolean,
): Promise<PeerGuest> => await start(lab, 'b', options, ['-incoming', 'defer'], prealloc);
