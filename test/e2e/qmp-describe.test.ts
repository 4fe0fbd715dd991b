/**
 * Descriptions and pre-flight of real VMs: one that can be protected, and one
 * each for what cannot.
 */

import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { runDoctor } from '../../lib/doctor/doctor.js';
import { UnsupportedVmError, VmGoneError } from '../../lib/errors.js';
import { native } from '../../lib/native.js';
import { forPrimary } from '../../lib/vm/command-line.js';
import { describeVm, type VmDescription } from '../../lib/vm/describe.js';
import { type LaunchedVm, launchVm, quitVm } from '../../lib/vm/launch.js';
import { assertProtectable, refusals } from '../../lib/vm/preflight.js';
import { isAlive, waitForExit } from '../../lib/vm/process.js';

let dir: string;
const running: LaunchedVm[] = [];

beforeEach(async () => {
  dir = await mkdtemp(join('/dev/shm', 'holdfast-test-'));
});

afterEach(async () => {
  for (const vm of running.splice(0)) await quitVm(vm);
  await rm(dir, { recursive: true, force: true });
}, 30_000);

const bare = ['-accel', 'tcg', '-m', '64', '-nodefaults', '-vga', 'none', '-display', 'none'];
const file = (): string => `memory-backend-file,id=ram,size=64M,share=on,mem-path=${join(dir, 'ram')}`;

const start = async (argv: readonly string[]): Promise<LaunchedVm> => {
  const vm = await launchVm({
    binary: 'qemu-system-x86_64',
    argv,
    qmpPath: join(dir, 'qmp'),
    logPath: join(dir, 'log'),
    peerPid: native.peerPid,
  });
  running.push(vm);
  return vm;
};

const monitor = (): string[] => ['-qmp', `unix:${join(dir, 'qmp')},server=on,wait=off`];

const describeRunning = async (vm: LaunchedVm): Promise<VmDescription> =>
  describeVm({ qmp: vm.qmp, pid: native.peerPid(vm.qmp.socketFd), findRamMappings: native.findRamMappings });

const refusedFor = async (argv: readonly string[]): Promise<string[]> => {
  const vm = await start([...argv, ...monitor()]);
  return refusals(await describeRunning(vm)).map(({ what }) => what);
};

describe('01 a VM that can be protected', { timeout: 30_000 }, () => {
  for (const [machine, version] of [
    ['q35', /^pc-q35-\d+\.\d+$/],
    ['pc', /^pc-i440fx-\d+\.\d+$/],
    ['microvm', /^microvm$/],
  ] as const) {
    test(`${machine}: nothing is refused, and the parts are named`, async () => {
      const disk = join(dir, 'disk.raw');
      await writeFile(disk, '');
      await truncate(disk, 1 << 20);
      const bus = machine === 'microvm' ? 'device' : 'pci';
      const line = forPrimary(
        [
          ...['-M', machine, ...bare, '-smp', '2'],
          ...['-netdev', 'user,id=net0', '-device', `virtio-net-${bus},netdev=net0,id=nic0`],
          ...['-drive', `if=none,id=disk0,file=${disk},format=raw,readonly=on`],
          ...['-device', `virtio-blk-${bus},drive=disk0`],
          ...['-chardev', 'null,id=con0', '-serial', 'chardev:con0'],
        ],
        { ramPath: join(dir, 'ram'), qmpPath: join(dir, 'qmp') },
      );
      const vm = await start(line.argv);
      const description = await describeRunning(vm);
      expect(refusals(description)).toEqual([]);
      expect(() => assertProtectable(description)).not.toThrow();
      expect(description).toMatchObject({
        process: vm.identity,
        argv: line.argv,
        accelerator: 'tcg',
        vcpus: 2,
        machineType: expect.stringMatching(version),
        ramBytes: 64 << 20,
        memoryBackends: [
          {
            id: 'ram',
            type: 'memory-backend-file',
            sizeBytes: 64 << 20,
            shared: true,
            path: join(dir, 'ram'),
            mapping: { path: join(dir, 'ram'), sizeBytes: 64 << 20, shared: true, fileOffset: 0 },
            fileSystem: 'tmpfs',
          },
        ],
        drives: [{ name: 'disk0', readOnly: true, file: disk }],
        netdevs: [{ id: 'net0', type: 'user', queues: 1, vhost: false }],
        nics: [{ queues: 1 }],
        hotplugged: [],
        hostDevices: [],
        confidentialGuest: false,
        migrationBlockers: [],
      });
      expect(description.devices).toContainEqual({ id: 'nic0', type: `virtio-net-${bus}`, builtIn: false });
      expect(description.chardevs.map(({ id }) => id)).toContain('con0');
    });
  }
});

describe('02 VMs that cannot', { timeout: 30_000 }, () => {
  test('private RAM', async () => {
    expect(await refusedFor(['-M', 'q35', ...bare])).toEqual(['memory backend pc.ram (memory-backend-ram)']);
  });

  test('a memfd', async () => {
    const argv = [
      '-M',
      'q35,memory-backend=m',
      ...bare,
      '-object',
      'memory-backend-memfd,id=m,size=64M,share=on',
    ];
    expect(await refusedFor(argv)).toEqual(['memory backend m (memory-backend-memfd)']);
  });

  test('a private mapping', async () => {
    const argv = [
      '-M',
      'q35,memory-backend=ram',
      ...bare,
      '-object',
      file().replace('share=on', 'share=off'),
    ];
    expect(await refusedFor(argv)).toEqual(['memory backend ram (memory-backend-file)']);
  });

  test('everything at once: VGA, balloon, writable disk, slots, several queues, 9p', async () => {
    const disk = join(dir, 'disk.raw');
    await writeFile(disk, '');
    await truncate(disk, 1 << 20);
    const found = await refusedFor([
      ...['-M', 'q35,memory-backend=ram', ...bare, '-m', '64M,slots=2,maxmem=1G', '-object', file()],
      ...['-device', 'VGA', '-device', 'virtio-balloon-pci,id=balloon0,free-page-reporting=on'],
      ...['-drive', `file=${disk},format=raw,if=virtio`],
      ...['-object', 'memory-backend-ram,id=dimm0m,size=64M', '-device', 'pc-dimm,id=dimm0,memdev=dimm0m'],
      ...['-fsdev', `local,id=fs0,path=${dir},security_model=none`],
      ...['-device', 'virtio-9p-pci,fsdev=fs0,mount_tag=t'],
    ]);
    expect(found).toEqual(
      expect.arrayContaining([
        'memory backends dimm0m, ram',
        expect.stringContaining('memory block 0000:00:'),
        'device balloon0 (virtio-balloon-pci)',
        `drive virtio0 (${disk})`,
        'device dimm0 (pc-dimm)',
        'device virtio-9p-pci',
      ]),
    );
  });

  test('what was plugged in later', async () => {
    const vm = await start(['-M', 'pc,memory-backend=ram', ...bare, '-object', file(), ...monitor()]);
    await vm.qmp.executeAny('netdev_add', { type: 'user', id: 'late0' });
    await vm.qmp.executeAny('device_add', { driver: 'virtio-net-pci', id: 'late1', netdev: 'late0' });
    const description = await describeRunning(vm);
    expect(description.hotplugged).toEqual(['late1', 'late0']);
    expect(() => assertProtectable(description)).toThrow(UnsupportedVmError);
  });
});

describe('03 processes', { timeout: 30_000 }, () => {
  test('a QEMU that ends at once is reported with its own words', async () => {
    await expect(start(['-M', 'no-such-machine', ...monitor()])).rejects.toMatchObject({
      constructor: VmGoneError,
      message: expect.stringContaining('unsupported machine type'),
      details: { exitCode: 1 },
    });
  });

  test('a binary that is not there', async () => {
    const missing = {
      binary: join(dir, 'none'),
      argv: [],
      qmpPath: join(dir, 'qmp'),
      logPath: join(dir, 'log'),
    };
    await expect(launchVm(missing)).rejects.toMatchObject({ code: 'HOLDFAST_E_CONFIG' });
  });

  test('a monitor that another VM holds is refused, and that VM keeps running', async () => {
    const first = await start(['-M', 'none', ...monitor()]);
    await expect(start(['-M', 'none', ...monitor()])).rejects.toMatchObject({ code: 'HOLDFAST_E_CONFIG' });
    expect(await isAlive(first.identity)).toBe(true);
  });

  test('quitting tells what it took, and watching sees it', async () => {
    const vm = await start(['-M', 'none', '-nodefaults', '-display', 'none', ...monitor()]);
    const watched = waitForExit(vm.identity, { hint: vm.qmp.closed });
    process.kill(vm.pid, 'SIGSTOP');
    expect(await quitVm(vm, { quitMs: 100, terminateMs: 100 })).toBe('SIGKILL');
    await watched;
    expect(await quitVm(vm)).toBe('gone');
  });
});

describe('04 doctor', { timeout: 30_000 }, () => {
  test('finds QEMU and its features', async () => {
    const report = await runDoctor({ native });
    for (const id of ['qemu', 'qemu-device-state', 'qemu-output', 'qemu-shared-ram', 'ram-dir']) {
      expect(report.checks.find((check) => check.id === id)).toMatchObject({ status: 'ok' });
    }
  });

  test('says what to do when QEMU is missing', async () => {
    const report = await runDoctor({ native, qemuBinary: join(dir, 'none') });
    expect(report.ok).toBe(false);
    expect(report.checks.find(({ id }) => id === 'qemu')).toMatchObject({
      status: 'fail',
      cure: expect.stringContaining('Install QEMU'),
    });
  });
});
