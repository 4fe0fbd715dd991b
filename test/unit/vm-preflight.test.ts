/** Pre-flight rules on descriptions; real VMs are in test/e2e/qmp-describe.test.ts. */

import { describe, expect, test } from 'vitest';
import { UnsupportedVmError } from '../../lib/errors.js';
import { parseArguments } from '../../lib/vm/command-line.js';
import { parseNetwork, parseRamBlocks, type VmDescription } from '../../lib/vm/describe.js';
import { assertProtectable, refusals } from '../../lib/vm/preflight.js';

const good: VmDescription = {
  process: { pid: 1, startTicks: '1' },
  binary: '/usr/bin/qemu-system-x86_64',
  argv: [],
  cwd: '/',
  qemuVersion: '7.2.22',
  accelerator: 'kvm',
  vcpus: 1,
  vcpuThreads: [{ 'cpu-index': 0, 'thread-id': 1 }],
  machineType: 'pc-q35-7.2',
  ramBytes: 1 << 26,
  memoryBackends: [
    {
      id: 'ram',
      type: 'memory-backend-file',
      sizeBytes: 1 << 26,
      shared: true,
      path: '/dev/shm/ram',
      mapping: {
        hostAddress: 4096n,
        sizeBytes: 1 << 26,
        fileOffset: 0,
        path: '/dev/shm/ram',
        deleted: false,
        shared: true,
        pageSize: 4096,
      },
      fileSystem: 'tmpfs',
    },
  ],
  ramBlocks: [
    { name: 'ram', usedBytes: 1 << 26 },
    { name: 'pc.bios', usedBytes: 1 << 18 },
    { name: 'pc.rom', usedBytes: 1 << 17 },
    { name: '/rom@etc/acpi/tables', usedBytes: 1 << 17 },
    { name: '0000:00:01.0/virtio-net-pci.rom', usedBytes: 1 << 18 },
  ],
  drives: [{ name: 'cd', readOnly: true, format: 'raw', file: '/x.iso' }],
  devices: [
    { id: 'nic0', type: 'virtio-net-pci', builtIn: false },
    { type: 'hpet', builtIn: true },
  ],
  nics: [{ name: 'nic0', model: 'virtio-net-pci', queues: 1 }],
  netdevs: [{ id: 'net0', type: 'tap', queues: 1, vhost: false }],
  chardevs: [],
  memoryDevices: [],
  hostDevices: [],
  hotplugged: [],
  confidentialGuest: false,
  migrationBlockers: [],
};

const backend = good.memoryBackends[0]!;
const device = (type: string): Partial<VmDescription> => ({ devices: [{ id: 'd0', type, builtIn: false }] });
const tap = { id: 'n0', type: 'tap', queues: 1, vhost: false };

describe('01 rules', () => {
  test('a VM without any of it', () => expect(refusals(good)).toEqual([]));

  for (const [what, change, expected] of [
    ['no backend', { memoryBackends: [], ramBlocks: [] }, /no memory backend/],
    ['two backends', { memoryBackends: [backend, backend] }, /several memory backends/],
    ['memfd', { memoryBackends: [{ ...backend, type: 'memory-backend-memfd' }] }, /named file/],
    ['private memory', { memoryBackends: [{ ...backend, type: 'memory-backend-ram' }] }, /private memory/],
    ['private mapping', { memoryBackends: [{ ...backend, shared: false }] }, /share=off/],
    ['hidden mapping', { memoryBackends: [{ ...backend, mapping: undefined }] }, /was not found/],
    ['file on a disk', { memoryBackends: [{ ...backend, fileSystem: 'other' as const }] }, /not on tmpfs/],
    ['VGA memory', { ramBlocks: [{ name: '0000:00:02.0/vga.vram', usedBytes: 1 }] }, /display adapter/],
    ['UEFI flash', { ramBlocks: [{ name: 'system.flash1', usedBytes: 1 }] }, /Firmware flash/],
    ['unknown block', { ramBlocks: [{ name: 'acpi-erst', usedBytes: 1 }] }, /outside the device state/],
    ['VFIO', device('vfio-pci'), /silently left out/],
    ['vhost-user', device('vhost-user-blk-pci'), /its own mapping/],
    ['vhost-scsi', device('vhost-scsi-pci'), /its own mapping/],
    ['virtiofs', device('vhost-user-fs-pci'), /virtiofs/],
    ['balloon', device('virtio-balloon-pci'), /punch holes/],
    ['nvdimm', device('nvdimm'), /in slots/],
    ['virtio-mem', device('virtio-mem-pci'), /in slots/],
    ['9p', device('virtio-9p-pci'), /9p keeps open files/],
    ['ivshmem', device('ivshmem-plain'), /other processes/],
    ['USB host device', device('usb-host'), /passes hardware/],
    ['TPM', device('tpm-tis'), /TPM/],
    ['plugged memory', { memoryDevices: ['dimm'] }, /in slots/],
    ['vhost=on', { netdevs: [{ ...tap, vhost: true }] }, /vhost=on/],
    ['netdev vhost-user', { netdevs: [{ ...tap, type: 'vhost-user' }] }, /its own mapping/],
    ['several queues', { netdevs: [{ ...tap, queues: 4 }] }, /several queues/],
    ['vhost that only the open file shows', { hostDevices: ['/dev/vhost-net'] }, /outside QEMU/],
    [
      'writable drive that can be moved',
      {
        argv: ['-drive', 'file=/d,format=raw,id=d'],
        drives: [{ name: 'd', readOnly: false, format: 'raw', file: '/d', nodeName: '#block1' }],
      },
      /QEMU writes to the image by itself/,
    ],
    [
      'writable drive that the command line does not name',
      { drives: [{ name: 'd', readOnly: false, format: 'raw', file: '/d', nodeName: '#block1' }] },
      /memory and disk would not match/,
    ],
    [
      'more disks than can be',
      {
        drives: Array.from({ length: 17 }, (_, index) => ({
          ...{ name: `d${index}`, readOnly: false, format: 'raw', file: 'nbd+unix://?socket=/s' },
          server: {} as never,
        })),
      },
      /At most 16/,
    ],
    [
      'qcow2',
      { drives: [{ name: 'd', readOnly: false, format: 'qcow2', file: '/d', nodeName: '#block1' }] },
      /format is qcow2/,
    ],
    ['hotplug', { hotplugged: ['d9'] }, /added after the start/],
    ['SEV', { confidentialGuest: true }, /encrypted/],
    ["QEMU's own reasons", { migrationBlockers: ['State blocked by x'] }, /State blocked by x\./],
  ] as const satisfies readonly (readonly [string, Partial<VmDescription>, RegExp])[]) {
    test(what, () => {
      const found = refusals({ ...good, ...change });
      expect(found).toHaveLength(1);
      expect(found[0]!.reason).toMatch(expected);
      expect(found[0]!.reason).toMatch(/\.$/);
      expect(found[0]!.cure).toMatch(/\.$/);
    });
  }

  test('all are reported at once, in the error too', () => {
    const bad = { ...good, ...device('vfio-pci'), confidentialGuest: true, hotplugged: ['x'] };
    expect(refusals(bad)).toHaveLength(3);
    expect(() => assertProtectable(bad)).toThrow(UnsupportedVmError);
    expect(() => assertProtectable(bad)).toThrow(/vfio-pci[\s\S]*SEV/);
  });

  test('vhost is reported once, by the netdev that has it', () => {
    const found = refusals({ ...good, netdevs: [{ ...tap, vhost: true }], hostDevices: ['/dev/vhost-net'] });
    expect(found).toHaveLength(1);
  });
});

describe('02 HMP tables', () => {
  test('RAM blocks, in the format of 7.2 and of 8.2', () => {
    const old =
      '     Block Name    PSize   Offset  Used  Total\r\n  ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000\r\n';
    const recent =
      '  Block Name    PSize   Offset  Used  Total  HVA  RO\n 0000:00:01.0/a b.rom    2 MiB  0x0000000000000000 0x0000000000001000 0x0000000000010000 0x00007f0000000000 ro\n';
    expect(parseRamBlocks(old)).toEqual([{ name: 'ram', usedBytes: 0x4000000 }]);
    expect(parseRamBlocks(recent)).toEqual([{ name: '0000:00:01.0/a b.rom', usedBytes: 0x1000 }]);
  });

  test('NICs and netdevs, with queues and vhost', () => {
    const table = [
      'nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56',
      ' \\ n0: index=0,type=tap,ifname=tap0,script=no,downscript=no',
      'nic0: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56',
      ' \\ n0: index=1,type=tap,ifname=tap0,script=no,downscript=no',
      'filters:',
      '  - f1: type=filter-buffer,interval=4294967295',
      'n1: index=0,type=user,net=10.0.2.0,restrict=off',
    ].join('\r\n');
    expect(parseNetwork(table, parseArguments(['-netdev', 'tap,id=n0,vhost=on']))).toEqual({
      nics: [{ name: 'nic0', model: 'virtio-net-pci', queues: 2 }],
      netdevs: [
        { id: 'n0', type: 'tap', queues: 2, vhost: true },
        { id: 'n1', type: 'user', queues: 1, vhost: false },
      ],
    });
  });
});
