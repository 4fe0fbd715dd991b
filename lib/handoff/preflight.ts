/**
 * What keeps a VM from being handed to another QEMU on this host, found before anything is touched.
 *
 * The question behind each rule: is there something that neither travels in the device state, nor lies in the
 * shared RAM file, nor can be opened by two QEMUs? All refusals are given at once. Memory of display adapters,
 * firmware flash and ROMs are none: they travel.
 */
import type { VmRelay } from '../output/relay-files.js';
import type { Device, VmDescription } from '../vm/describe.js';
import { type Refusal, refused } from '../vm/preflight.js';
import { isOlderRelease } from '../vm/qemu-version.js';
import { changedDrives } from './block-files.js';
import type { HandoffCommandLine } from './command-line.js';

export interface HandoffFacts {
  readonly vm: VmDescription;
  readonly line: Pick<HandoffCommandLine, 'known' | 'moves' | 'refused'>;
  readonly relays: readonly VmRelay[];
  /** Ids of output filters of a daemon, and whether a dirty tracker is in QEMU: it is protected, or was until a daemon was killed. */
  readonly traces: { readonly filters: readonly string[]; readonly tracker: boolean };
  /** QEMU sees the network and the user that this process is. */
  readonly sameNetwork: boolean;
  readonly sameUser: boolean;
}

/** Pure. */
export const handoffRefusals = (facts: HandoffFacts): readonly Refusal[] => [
  ...memoryRefusals(facts.vm),
  ...deviceRefusals(facts.vm),
  ...wholeVmRefusals(facts.vm),
  ...changedDrives(facts.vm.drives, facts.line.known, facts.vm.cwd),
  ...facts.line.refused,
  ...relayRefusals(facts),
  ...placeRefusals(facts),
];

/** @throws UnsupportedVmError with all refusals in `details.reasons` and in its message. */
export const assertHandoff = (facts: HandoffFacts): void => {
  const found = handoffRefusals(facts);
  if (found.length > 0) throw refused('this VM cannot be handed over; nothing was changed', found);
};

const SHARED_FILE_CURE =
  'Start the VM with -object memory-backend-file,id=ram,size=…,share=on,mem-path=/dev/shm/… and -machine memory-backend=ram, or let Holdfast launch it.';

/** From this version shared RAM is left out of the stream only if it is a named file. */
const NAMED_ONLY = '8.1';

const memoryRefusals = (vm: VmDescription): Refusal[] => {
  const [backend, ...others] = vm.memoryBackends;
  if (backend === undefined) {
    return [
      { what: 'guest RAM', reason: 'It is in no file that another QEMU could map.', cure: SHARED_FILE_CURE },
    ];
  }
  if (others.length > 0) {
    return [
      {
        what: `memory backends ${vm.memoryBackends.map(({ id }) => id).join(', ')}`,
        reason: 'Guest RAM is spread over several memory backends.',
        cure: 'Put all of RAM in one backend.',
      },
    ];
  }
  const what = `memory backend ${backend.id} (${backend.type})`;
  const isFile = backend.type === 'memory-backend-file' || backend.type === 'memory-backend-memfd';
  if (!isFile || !backend.shared || backend.mapping === undefined) {
    return [{ what, reason: 'It is private memory of the QEMU that runs now.', cure: SHARED_FILE_CURE }];
  }
  if (backend.type === 'memory-backend-memfd' && !isOlderRelease(vm.qemuVersion, NAMED_ONLY)) {
    return [
      {
        what,
        reason: `QEMU ${vm.qemuVersion} would send a memfd’s contents with the device state.`,
        cure: SHARED_FILE_CURE,
      },
    ];
  }
  return [];
};

const DEVICE_RULES: readonly { readonly types: RegExp; readonly reason: string; readonly cure: string }[] = [
  {
    types: /^(vfio-|x-vfio|x-pci-proxy)/,
    reason: 'A passed-through device belongs to the QEMU that runs now, with its state.',
    cure: 'Use a virtio device instead.',
  },
  {
    types: /^vhost-/,
    reason: 'Its backend is connected to the QEMU that runs now, and holds part of the state.',
    cure: 'Use the device model inside QEMU (vhost=off; virtio-blk, virtio-scsi, virtio-serial).',
  },
  {
    types: /^(usb-host|usb-redir|usb-mtp|ccid-card-passthru|scsi-generic|scsi-block|ivshmem-doorbell)$/,
    reason: 'It passes hardware, files or a connection of this host through, which only one QEMU can have.',
    cure: 'Remove it (device_del) for the hand-over.',
  },
  {
    types: /^(virtio-9p|tpm-)/,
    reason: 'It keeps state outside QEMU that the new one would lack.',
    cure: 'Start the VM without it.',
  },
];

const deviceRefusals = (vm: VmDescription): Refusal[] => {
  const found = vm.devices.flatMap((device) => {
    const rule = DEVICE_RULES.find(({ types }) => types.test(device.type));
    return rule === undefined ? [] : [{ what: nameOf(device), reason: rule.reason, cure: rule.cure }];
  });
  const vhost = vm.netdevs
    .filter(({ vhost, type }) => vhost || type.startsWith('vhost-'))
    .map(({ id, type }) => ({
      what: `netdev ${id} (${type})`,
      reason: 'vhost keeps the queues of its device outside QEMU.',
      cure: 'Use -netdev tap,vhost=off.',
    }));
  const open = found.length > 0 || vhost.length > 0 ? [] : vm.hostDevices;
  return [
    ...new Map([...found, ...vhost].map((refusal) => [refusal.what, refusal])).values(),
    ...open.map((what) => ({
      what,
      reason: 'QEMU has this open: part of the VM runs outside QEMU.',
      cure: 'Remove the device that uses it.',
    })),
  ];
};

const nameOf = ({ id, type }: Device): string =>
  id === undefined ? `device ${type}` : `device ${id} (${type})`;

const wholeVmRefusals = (vm: VmDescription): Refusal[] => [
  ...vm.hotplugged.map((id) => ({
    what: `device ${id}`,
    reason:
      'It was added after the start, so the new QEMU, which is built from the command line, would lack it.',
    cure: 'Remove it (device_del, netdev_del), or give the whole command line after `--`.',
  })),
  ...(vm.confidentialGuest
    ? [
        {
          what: 'confidential guest (SEV, TDX)',
          reason: 'Its memory is encrypted with a key that belongs to the QEMU that runs now.',
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

const relayRefusals = ({ line, relays }: HandoffFacts): Refusal[] =>
  line.moves
    .filter(({ netdev }) => netdev !== undefined && !relays.some((relay) => relay.netdev === netdev))
    .map(({ netdev, path }) => ({
      what: `netdev ${netdev} (stream)`,
      reason: `No relay of Holdfast’s is connected to ${path}, and whatever is would not follow to the new QEMU.`,
      cure: `Start one: holdfast relay --netdev ${path} --tap NAME --pid-of-vm PID.`,
    }));

const DETACH_CURE = '`holdfast detach` first, and protect the VM again afterwards.';

const placeRefusals = ({ traces, sameNetwork, sameUser }: HandoffFacts): Refusal[] => [
  ...(traces.filters.length > 0 || traces.tracker
    ? [
        {
          what: 'protection',
          reason: 'The VM is protected, or was until its daemon was killed: the new QEMU would not be.',
          cure: `${DETACH_CURE} (After a kill: start \`holdfast primary\` once more, and detach.)`,
        },
      ]
    : []),
  ...(sameNetwork
    ? []
    : [
        {
          what: 'network namespace',
          reason: 'QEMU runs in another one than this command, and the new QEMU would be in this one.',
          cure: 'nsenter --net=/proc/PID/ns/net holdfast handoff …',
        },
      ]),
  ...(sameUser
    ? []
    : [
        {
          what: 'user',
          reason:
            'QEMU runs as another user than this command, and the new QEMU would have this one’s rights.',
          cure: 'Run this command as that user.',
        },
      ]),
];
