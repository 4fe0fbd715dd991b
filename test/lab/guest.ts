/** QEMU command lines for the lab's two guests; `.ci/setup guest` builds their images. */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { guestAddress, guestMac } from './network.js';

/** Printed on the serial console when the workload answers; once more after each reboot. */
export const guestReadyText = 'HOLDFAST-GUEST-READY';
export const flatReadyText = 'HOLDFAST-FLAT-READY';

/** Nearest directory upwards with package.json: the same from test/ and from dist/test/. */
export const repositoryRoot = (): string => {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) {
    if (dir === dirname(dir)) throw new Error('package.json not found above the lab');
    dir = dirname(dir);
  }
  return dir;
};

const image = (name: 'vmlinuz' | 'initrd.cpio' | 'flat.elf'): string => {
  const path = join(repositoryRoot(), '.cache/guest', name);
  if (!existsSync(path)) throw new Error(`${path} is missing: run \`npm run setup\``);
  return path;
};

/**
 * legacy: virtio as it was before version 1.0. Its devices save a few hundred bytes instead of 46 KiB each,
 * which QEMU takes the better part of a millisecond to write.
 */
export type VirtioKind = 'modern' | 'legacy';

interface MachineOptions {
  /** Guest's serial console goes to this file. */
  readonly serialPath: string;
  readonly machine?: 'q35' | 'pc';
  readonly accel?: 'tcg' | 'kvm';
  readonly vcpus?: number;
  readonly ramMb?: number;
  /** Guest RAM as a shared file here, as Holdfast needs it; leave it out where the launcher adds it. */
  readonly ramPath?: string;
  /** QMP server's socket; leave it out where the launcher adds it. */
  readonly qmpPath?: string;
}

export interface GuestDisk {
  readonly path: string;
  /** Of the image, default raw. */
  readonly format?: 'raw' | 'qcow2';
  /** Further properties of its `-drive`, such as `cache=none`. */
  readonly properties?: string;
}

export interface GuestOptions extends MachineOptions {
  /** Default `redis`. */
  readonly workload?: 'redis' | 'writer' | 'disk' | 'idle';
  /** memwriter's rate (0: as fast as it can) and working set, for the workload `writer`. */
  readonly pagesPerSecond?: number;
  readonly workingSetPages?: number;
  readonly randomOrder?: boolean;
  /** /dev/vda, /dev/vdb, …; the workload `disk` needs one. */
  readonly disks?: readonly GuestDisk[];
  /** Of its disks and NIC; default `modern`, as QEMU's is. */
  readonly virtio?: VirtioKind;
  /** For the workload `disk`: ext4's mount options (such as `discard`), sqlwriter's journal, diskchurn's rate. */
  readonly mountOptions?: string;
  readonly journal?: 'delete' | 'wal';
  readonly churnStepsPerSecond?: number;
  /** Tap device, default tap0; null: no network. */
  readonly tap?: string | null;
  /** Further kernel parameters. */
  readonly append?: string;
}

export interface FlatGuestOptions extends MachineOptions {
  /** Pages it writes in turn, default 4096. */
  readonly pages?: number;
  /** Pause instructions after each page, default 0: bounds the rate. */
  readonly spin?: number;
  /** Dots on the console: one per so many laps over the pages, default 64; 0 for none. */
  readonly lapsPerDot?: number;
}

const machineArgs = (options: MachineOptions, ramMb: number): string[] => {
  const { machine = 'q35', accel = 'tcg', vcpus = 1, ramPath, qmpPath, serialPath } = options;
  return [
    ...['-M', machine, '-accel', accel === 'tcg' ? 'tcg,thread=multi' : accel],
    ...['-smp', String(vcpus), '-m', `${ramMb}M`],
    ...['-nodefaults', '-vga', 'none', '-display', 'none', '-no-user-config'],
    ...['-serial', `file:${serialPath}`],
    ...(ramPath === undefined
      ? []
      : [
          '-object',
          `memory-backend-file,id=ram0,size=${ramMb}M,mem-path=${ramPath},share=on`,
          '-machine',
          'memory-backend=ram0',
        ]),
    ...(qmpPath === undefined ? [] : ['-qmp', `unix:${qmpPath},server=on,wait=off`]),
  ];
};

const virtioProperties: Readonly<Record<VirtioKind, string>> = {
  modern: '',
  legacy: ',disable-modern=on,disable-legacy=off',
};

const diskArgs = (
  { path, format = 'raw', properties = '' }: GuestDisk,
  index: number,
  virtio: VirtioKind,
): string[] => [
  '-drive',
  `if=none,id=disk${index},format=${format},file=${path},discard=unmap${properties === '' ? '' : `,${properties}`}`,
  '-device',
  `virtio-blk-pci,id=blk${index},drive=disk${index}${virtioProperties[virtio]}`,
];

/** Arguments for `qemu-system-x86_64`: the Linux guest, 512 MB and without a disk unless said otherwise. */
export const guestArgs = (options: GuestOptions): string[] => {
  const { workload = 'redis', pagesPerSecond = 5000, workingSetPages = 8192, randomOrder = false } = options;
  const { tap = 'tap0', append = '', disks = [], virtio = 'modern' } = options;
  const { mountOptions = 'defaults', journal = 'delete', churnStepsPerSecond = 0 } = options;
  const parameters = [
    'console=ttyS0 quiet panic=1 ipv6.disable=1',
    `hf.ip=${guestAddress}/24 hf.workload=${workload}`,
    `hf.pages_per_s=${pagesPerSecond} hf.working_set=${workingSetPages} hf.random=${randomOrder ? 1 : 0}`,
    ...(workload === 'disk'
      ? [`hf.mount=${mountOptions} hf.journal=${journal} hf.churn=${churnStepsPerSecond}`]
      : []),
    append,
  ];
  return [
    ...machineArgs(options, options.ramMb ?? 512),
    ...['-kernel', image('vmlinuz'), '-initrd', image('initrd.cpio'), '-append', parameters.join(' ').trim()],
    ...(tap === null
      ? []
      : [
          '-netdev',
          `tap,id=net0,ifname=${tap},script=no,downscript=no,vhost=off`,
          '-device',
          `virtio-net-pci,id=nic0,netdev=net0,mac=${guestMac},romfile=${virtioProperties[virtio]}`,
        ]),
    ...disks.flatMap((disk, index) => diskArgs(disk, index, virtio)),
  ];
};

/** Arguments for `qemu-system-x86_64`: the flat guest, 64 MB unless said otherwise, no devices. */
export const flatGuestArgs = (options: FlatGuestOptions): string[] => {
  const { pages = 4096, spin = 0, lapsPerDot = 64 } = options;
  return [
    ...machineArgs(options, options.ramMb ?? 64),
    ...['-kernel', image('flat.elf'), '-append', `pages=${pages} spin=${spin} laps_per_dot=${lapsPerDot}`],
  ];
};
