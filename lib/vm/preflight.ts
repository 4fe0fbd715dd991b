/**
 * What keeps a VM from being protected, found before anything is touched.
 *
 * The question behind each rule: would the backup lack something? Memory that
 * is written past the dirty tracker, state that xen-save-devices-state leaves
 * out (it skips VFIO silently), contents that live outside QEMU, output that
 * cannot be held. All refusals are given at once, so that one restart of the VM
 * is enough to cure them.
 */

import { DISKS_MAX } from '../control/messages.js';
import { UnsupportedVmError } from '../errors.js';
import type { Device, Drive, MemoryBackend, VmDescription } from './describe.js';
import { movableDrives } from './movable-drives.js';

export interface Refusal {
  /** The thing refused, as the operator named it. */
  readonly what: string;
  readonly reason: string;
  readonly cure: string;
}

/** Everything about the VM that cannot be protected; empty if nothing is. Pure. */
export const refusals = (vm: VmDescription): readonly Refusal[] => [
  ...memoryRefusals(vm),
  ...ramBlockRefusals(vm),
  ...deviceRefusals(vm),
  ...networkRefusals(vm),
  ...hostDeviceRefusals(vm),
  ...driveRefusals(vm),
  ...hotplugRefusals(vm),
  ...wholeVmRefusals(vm),
];

/** @throws UnsupportedVmError with all refusals in `details.reasons` and in its message. */
export const assertProtectable = (vm: VmDescription): void => {
  const found = refusals(vm);
  if (found.length > 0) throw refused('this VM cannot be protected; nothing was changed', found);
};

/** All refusals at once, in the message and in `details.reasons`. */
export const refused = (message: string, reasons: readonly Refusal[]): UnsupportedVmError => {
  const list = reasons.map(({ what, reason, cure }) => `\n  - ${what}: ${reason} ${cure}`).join('');
  return new UnsupportedVmError(message + list, { details: { reasons } });
};

const SHARED_FILE_CURE =
  'Start the VM with -object memory-backend-file,id=ram,size=…,share=on,mem-path=/dev/shm/… and -machine memory-backend=ram, or let Holdfast launch it.';

const memoryRefusals = (vm: VmDescription): Refusal[] => {
  const [backend, ...others] = vm.memoryBackends;
  if (backend === undefined) {
    return [
      {
        what: 'guest RAM',
        reason: 'The machine has no memory backend, so its RAM is not in a file.',
        cure: SHARED_FILE_CURE,
      },
    ];
  }
  if (others.length > 0) {
    return [
      {
        what: `memory backends ${vm.memoryBackends.map(({ id }) => id).join(', ')}`,
        reason:
          'Guest RAM is spread over several memory backends; exactly one can be tracked and replicated.',
        cure: 'Put all of RAM in one backend.',
      },
    ];
  }
  const reason = backendRefusal(backend);
  return reason === undefined
    ? []
    : [{ what: `memory backend ${backend.id} (${backend.type})`, reason, cure: SHARED_FILE_CURE }];
};

const backendRefusal = (backend: MemoryBackend): string | undefined => {
  if (backend.type === 'memory-backend-memfd') {
    return 'A memfd has no name in the file system, and from QEMU 8.1 shared RAM can be left out of the device state only if it is a named file.';
  }
  if (backend.type !== 'memory-backend-file') {
    return "Guest RAM is QEMU's private memory: no other process can read it while the VM runs.";
  }
  if (!backend.shared) {
    return "The file is mapped privately (share=off): what the guest writes stays in QEMU's own copies.";
  }
  if (backend.mapping === undefined) {
    return "QEMU's mapping of the file was not found; it may be hidden by a mount namespace.";
  }
  if (backend.fileSystem === 'other') {
    return `The file ${backend.path ?? ''} is not on tmpfs or hugetlbfs, and the kernel tracks writes only there.`;
  }
  return undefined;
};

/**
 * Blocks that only the firmware and QEMU fill, and that travel in the prefix of
 * the composite stream. Anything else is memory that changes while the guest
 * runs and is in neither the RAM file nor the device state.
 */
const ROM_BLOCKS: readonly RegExp[] = [
  /^(pc|isa|microvm)[.-](bios|rom)$/,
  /^\/rom@/,
  /\.rom$/,
  /^(linuxboot|multiboot|pvh)(_dma)?\.bin$/,
];

const ramBlockRefusals = (vm: VmDescription): Refusal[] => {
  const backends = new Set(vm.memoryBackends.flatMap(({ id }) => [id, `/objects/${id}`]));
  return vm.ramBlocks
    .filter(({ name }) => !backends.has(name) && !ROM_BLOCKS.some((pattern) => pattern.test(name)))
    .map(({ name }) => blockRefusal(name));
};

const blockRefusal = (name: string): Refusal => {
  const what = `memory block ${name}`;
  if (/vga|vram|ramfb|qxl/i.test(name)) {
    return {
      what,
      reason:
        "A display adapter's memory is neither in guest RAM nor in the device state, so the backup would lack it.",
      cure: 'Start the VM with -nodefaults -vga none (use a serial console).',
    };
  }
  if (/flash/i.test(name)) {
    return {
      what,
      reason: 'Firmware flash (UEFI variables) is written by the guest and is not in the device state.',
      cure: 'Boot with SeaBIOS (QEMU’s default), without -pflash.',
    };
  }
  return {
    what,
    reason: 'This memory is outside guest RAM and outside the device state, so the backup would lack it.',
    cure: 'Remove the device it belongs to.',
  };
};

interface DeviceRule {
  readonly types: RegExp;
  readonly reason: string;
  readonly cure: string;
}

/** First match counts. */
const DEVICE_RULES: readonly DeviceRule[] = [
  {
    types: /^(vfio-|x-vfio|x-pci-proxy)/,
    reason:
      'A passed-through device writes guest memory past every dirty tracker, and its state is silently left out of the device state.',
    cure: 'Use a virtio device instead.',
  },
  {
    types: /^vhost-user-fs/,
    reason:
      'virtiofs runs in a process of its own that writes guest memory and holds file state outside QEMU.',
    cure: 'Put the files on a disk or on a network file system.',
  },
  {
    types: /^vhost-/,
    reason:
      'A vhost backend writes guest memory through its own mapping, which the dirty tracker does not see.',
    cure: 'Use the device model inside QEMU (vhost=off; virtio-blk, virtio-scsi, virtio-serial).',
  },
  {
    types: /^virtio-balloon/,
    reason: 'Ballooning and free-page reporting punch holes in the RAM file that are not logged as writes.',
    cure: 'Remove the virtio-balloon device.',
  },
  {
    types: /^(virtio-mem|virtio-pmem|nvdimm|pc-dimm|cxl-)/,
    reason: 'Memory in slots is separate from the one RAM file that is replicated.',
    cure: 'Give the VM all its memory with -m.',
  },
  {
    types: /^ivshmem/,
    reason:
      'Memory that is shared with other processes changes behind the dirty tracker, and is output nobody can hold.',
    cure: 'Remove the ivshmem device.',
  },
  {
    types: /^virtio-9p/,
    reason: '9p keeps open files and their positions on this host; the backup would lack them.',
    cure: 'Put the files on a disk or on a network file system.',
  },
  {
    types: /^(usb-host|usb-redir|usb-mtp|ccid-card-passthru|scsi-generic|scsi-block)$/,
    reason: 'It passes hardware or files of this host through, which hold state that the backup cannot have.',
    cure: 'Remove it while the VM is protected.',
  },
  {
    types: /^tpm-/,
    reason: 'The TPM keeps its state outside QEMU (an emulator process or the hardware).',
    cure: 'Remove the TPM device.',
  },
  {
    types: /^(virtio-(gpu|vga)-(gl|rutabaga)|virtio-gpu-rutabaga)/,
    reason: "The host's graphics driver holds part of its state.",
    cure: 'Use no display adapter, and a serial console.',
  },
];

const deviceRefusals = (vm: VmDescription): Refusal[] => {
  const found = vm.devices.flatMap((device) => {
    const rule = DEVICE_RULES.find(({ types }) => types.test(device.type));
    return rule === undefined ? [] : [{ what: deviceName(device), reason: rule.reason, cure: rule.cure }];
  });
  const named = new Set(vm.devices.map(({ type }) => type));
  const slots = vm.memoryDevices
    .filter((type) => ![...named].some((device) => device.includes(type)))
    .map((type) => ({
      what: `plugged memory (${type})`,
      reason: 'Memory in slots is separate from the one RAM file that is replicated.',
      cure: 'Give the VM all its memory with -m.',
    }));
  return [...unique(found), ...unique(slots)];
};

const deviceName = ({ id, type }: Device): string =>
  id === undefined ? `device ${type}` : `device ${id} (${type})`;

/** One physical device shows up as several objects (virtio-balloon-pci holds a virtio-balloon-device). */
const unique = (list: readonly Refusal[]): Refusal[] => [
  ...new Map(list.map((refusal) => [refusal.what, refusal])).values(),
];

const networkRefusals = (vm: VmDescription): Refusal[] => [
  ...vm.netdevs.flatMap((netdev) => {
    const what = `netdev ${netdev.id} (${netdev.type})`;
    if (netdev.type.startsWith('vhost-')) {
      return [
        {
          what,
          reason:
            'Its backend writes guest memory through its own mapping, which the dirty tracker does not see.',
          cure: 'Use -netdev tap,vhost=off.',
        },
      ];
    }
    if (netdev.vhost) {
      return [
        {
          what,
          reason:
            'vhost=on moves packets in the kernel: its writes escape the dirty tracker and its output cannot be held.',
          cure: 'Use vhost=off.',
        },
      ];
    }
    if (netdev.queues > 1) return [multiqueue(what)];
    return [];
  }),
  ...vm.nics.filter(({ queues }) => queues > 1).map(({ name }) => multiqueue(`NIC ${name}`)),
];

const multiqueue = (what: string): Refusal => ({
  what,
  reason: "It has several queues, and the filters that hold the guest's output work on one queue only.",
  cure: 'Use queues=1 and mq=off.',
});

const hostDeviceRefusals = (vm: VmDescription): Refusal[] => {
  const explained =
    vm.devices.some(({ type }) => /^(vhost-|vfio-)/.test(type)) || vm.netdevs.some(({ vhost }) => vhost);
  return vm.hostDevices
    .filter((path) => !explained || !/^\/dev\/(vhost-|vfio|iommu)/.test(path))
    .map((path) => ({
      what: path,
      reason:
        'QEMU has this open: part of the VM runs outside QEMU, where writes to guest memory cannot be tracked.',
      cure: path.startsWith('/dev/vhost') ? 'Use vhost=off.' : 'Remove the device that uses it.',
    }));
};

const driveRefusals = (vm: VmDescription): Refusal[] => {
  const movable = new Set(movableDrives(vm).map(({ drive }) => drive));
  const writable = vm.drives.filter(({ readOnly }) => !readOnly);
  const notReplicated = writable
    .filter(({ server }) => server === undefined)
    .map((drive) => ({
      what: `drive ${drive.name}${drive.file === '' ? '' : ` (${drive.file})`}`,
      ...whyNotReplicated(drive, movable.has(drive)),
    }));
  if (writable.length <= DISKS_MAX) return notReplicated;
  return [
    ...notReplicated,
    {
      what: `${writable.length} writable disks`,
      reason: `At most ${DISKS_MAX} can be replicated.`,
      cure: 'Put the data on fewer disks, or attach some of them read-only.',
    },
  ];
};

/** Formats whose images QEMU can read, but not while they are being filled as a standby's are. */
const OTHER_FORMATS = new Set('qcow2 qcow qed vmdk vdi vhdx vpc parallels luks dmg bochs cloop'.split(' '));

const whyNotReplicated = ({ format }: Drive, isMovable: boolean): Pick<Refusal, 'reason' | 'cure'> => {
  if (isMovable) {
    return {
      reason: 'It is writable, and QEMU writes to the image by itself, so the writes cannot be replicated.',
      cure: 'Add --move-disks on: it is moved to a disk server beneath the running guest. A VM that Holdfast launches has its disks there from the start.',
    };
  }
  if (OTHER_FORMATS.has(format)) {
    return {
      reason: `It is writable, its format is ${format}, and only raw images can be replicated.`,
      cure: 'Shut the VM down, convert the image (qemu-img convert -O raw OLD NEW.raw), and start it with that and format=raw.',
    };
  }
  return {
    reason:
      'It is writable, and not a raw image or block device of this host that the command line names: after a failover memory and disk would not match.',
    cure: 'Attach it with readonly=on, or keep the data on a disk with format=raw.',
  };
};

const hotplugRefusals = (vm: VmDescription): Refusal[] =>
  vm.hotplugged.map((id) => ({
    what: `device ${id}`,
    reason:
      'It was added after the start, so the standby, which is built from the command line, would lack it.',
    cure: 'Remove it (device_del, netdev_del), or restart the VM with it on the command line.',
  }));

const wholeVmRefusals = (vm: VmDescription): Refusal[] => [
  ...(vm.confidentialGuest
    ? [
        {
          what: 'confidential guest (SEV, TDX)',
          reason: 'Its memory is encrypted with a key of this host; a copy means nothing elsewhere.',
          cure: 'Start the VM without confidential-guest-support.',
        },
      ]
    : []),
  ...vm.migrationBlockers.map((text) => ({
    what: 'QEMU',
    reason: `QEMU cannot save all of this VM: ${text}${/[.!]$/.test(text) ? '' : '.'}`,
    cure: 'Remove the device or CPU feature it names.',
  })),
];
