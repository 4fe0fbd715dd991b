import { describe, expect, it } from 'vitest';
import { UnsupportedVmError } from '../../lib/errors.js';
import { assertHandoff, type HandoffFacts, handoffRefusals } from '../../lib/handoff/preflight.js';
import type { MemoryBackend, VmDescription } from '../../lib/vm/describe.js';

const backend: MemoryBackend = {
  id: 'ram',
  type: 'memory-backend-file',
  sizeBytes: 1 << 26,
  shared: true,
  path: '/dev/shm/a',
  mapping: {
    hostAddress: 0n,
    sizeBytes: 1 << 26,
    fileOffset: 0,
    path: '/dev/shm/a',
    deleted: false,
    shared: true,
    pageSize: 4096,
  },
  fileSystem: 'tmpfs',
};

const vm: VmDescription = {
  process: { pid: 1, startTicks: '1' },
  binary: '/usr/bin/qemu-system-x86_64',
  argv: [],
  cwd: '/',
  qemuVersion: '7.2.22',
  accelerator: 'tcg',
  vcpus: 1,
  vcpuThreads: [{ 'cpu-index': 0, 'thread-id': 1 }],
  machineType: 'pc-q35-7.2',
  ramBytes: 1 << 26,
  memoryBackends: [backend],
  ramBlocks: [{ name: 'vga.vram', usedBytes: 1 << 24 }],
  drives: [],
  devices: [{ id: 'nic', type: 'virtio-net-pci', builtIn: false }],
  nics: [],
  netdevs: [],
  chardevs: [],
  memoryDevices: [],
  hostDevices: [],
  hotplugged: [],
  confidentialGuest: false,
  migrationBlockers: [],
};

const facts: HandoffFacts = {
  vm,
  line: { known: [], moves: [], refused: [] },
  relays: [],
  traces: { filters: [], tracker: false },
  sameNetwork: true,
  sameUser: true,
};

const refused = (changed: Partial<VmDescription>, others: Partial<HandoffFacts> = {}): string[] =>
  handoffRefusals({ ...facts, ...others, vm: { ...vm, ...changed } }).map(({ what }) => what);

describe('what cannot be handed over', () => {
  it('is nothing of a plain VM, not even one with a display adapter', () => {
    expect(refused({})).toEqual([]);
    expect(() => assertHandoff(facts)).not.toThrow();
  });

  it('is RAM that another process cannot map, or that would travel', () => {
    expect(refused({ memoryBackends: [] })).toEqual(['guest RAM']);
    expect(refused({ memoryBackends: [backend, { ...backend, id: 'b' }] })).toEqual([
      'memory backends ram, b',
    ]);
    expect(refused({ memoryBackends: [{ ...backend, shared: false }] })).toHaveLength(1);
    const memfd: MemoryBackend = { ...backend, type: 'memory-backend-memfd', path: undefined };
    expect(refused({ memoryBackends: [memfd] })).toEqual([]);
    expect(refused({ memoryBackends: [memfd], qemuVersion: '8.1.0' })).toEqual([
      'memory backend ram (memory-backend-memfd)',
    ]);
    expect(refused({ memoryBackends: [{ ...backend, fileSystem: 'other' }] })).toEqual([]);
  });

  it('is what has state outside QEMU', () => {
    for (const type of ['vfio-pci', 'vhost-user-blk-pci', 'usb-host', 'tpm-tis', 'virtio-9p-pci']) {
      expect(refused({ devices: [{ id: 'x', type, builtIn: false }] })).toEqual([`device x (${type})`]);
    }
    const netdev = { id: 'n', type: 'tap', queues: 1, vhost: true };
    // Its own device file is explained by it.
    expect(refused({ netdevs: [netdev], hostDevices: ['/dev/vhost-net'] })).toEqual(['netdev n (tap)']);
    expect(refused({ hostDevices: ['/dev/vfio/1'] })).toEqual(['/dev/vfio/1']);
    expect(refused({ confidentialGuest: true, migrationBlockers: ['no'], hotplugged: ['d'] })).toEqual([
      'device d',
      'confidential guest (SEV, TDX)',
      'QEMU',
    ]);
  });

  it('is a disk that is not what the command line says', () => {
    const drive = { name: 'vda', readOnly: false, format: 'raw', file: '/vm/a.raw' };
    const knowing = (...known: readonly string[]) => ({ line: { known, moves: [], refused: [] } });
    for (const known of [
      ['-drive', 'file=a.raw,format=raw,id=vda'],
      ['-blockdev', 'driver=raw,node-name=x,file.driver=file,file.filename=/vm/a.raw'],
      ['-blockdev', '{"driver":"file","node-name":"x","filename":"/vm/a.raw"}'],
      ['-hda', 'a.raw'],
      ['-drive', 'file=file:a.raw,format=raw'],
    ]) {
      expect(refused({ cwd: '/vm', drives: [drive] }, knowing(...known))).toEqual([]);
      const overlay = { ...drive, format: 'qcow2', file: '/vm/a.raw.overlay' };
      expect(refused({ cwd: '/vm', drives: [overlay] }, knowing(...known))).toEqual([
        'drive vda (/vm/a.raw.overlay)',
      ]);
      // Moved to a server beneath the guest.
      const served = { ...drive, file: 'nbd+unix://?socket=/run/vda.sock' };
      expect(refused({ cwd: '/vm', drives: [served] }, knowing(...known))).toHaveLength(1);
    }
    const server = 'file.driver=nbd,file.server.type=unix,file.server.path=/run/vda.sock,format=raw';
    const served = { ...drive, file: 'nbd+unix://?socket=/run/vda.sock' };
    expect(refused({ drives: [served] }, knowing('-drive', server))).toEqual([]);
    expect(refused({ drives: [{ ...drive, file: 'null-co://' }] })).toEqual([]);
  });

  it('is a stream socket without a relay of ours', () => {
    const move = { kind: 'socket', path: '/n', temporary: '/n.new', netdev: 'net0' } as const;
    const line = { known: [], moves: [move], refused: [] };
    expect(refused({}, { line })).toEqual(['netdev net0 (stream)']);
    const relay = {
      netdev: 'net0',
      socket: '/n',
      control: '/n.ctl',
      target: { tap: 'tap0' },
      heldBytesMax: 1,
      vm: null,
    };
    expect(refused({}, { line, relays: [relay] })).toEqual([]);
  });

  it('is a VM that is protected, or out of reach', () => {
    expect(refused({}, { traces: { filters: ['f1'], tracker: false } })).toEqual(['protection']);
    expect(refused({}, { traces: { filters: [], tracker: true } })).toEqual(['protection']);
    expect(refused({}, { sameNetwork: false, sameUser: false })).toEqual(['network namespace', 'user']);
  });

  it('is told all at once', () => {
    const several = { ...facts, sameUser: false, vm: { ...vm, hotplugged: ['d'] } };
    const told = () => assertHandoff(several);
    expect(told).toThrow(UnsupportedVmError);
    expect(told).toThrow(/nothing was changed\n {2}- device d: [\s\S]*\n {2}- user: /);
  });
});
