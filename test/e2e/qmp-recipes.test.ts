/**
 * The QMP client and recipes against real QEMU: a bare SeaBIOS guest is saved
 * on one process and resumes on another, over a copy of its RAM.
 */

import { once } from 'node:events';
import { copyFile, mkdtemp, open, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { QmpConnectionError, QmpError, StandbyError } from '../../lib/errors.js';
import { native } from '../../lib/native.js';
import { FileMigration, migrateToFile } from '../../lib/qmp/file-migration.js';
import {
  announceSelf,
  enableMigrationCapabilities,
  prepareIncoming,
  queryVm,
  saveDeviceState,
  waitRunning,
} from '../../lib/qmp/recipes.js';
import { forPrimary, forStandby } from '../../lib/vm/command-line.js';
import { describeVm } from '../../lib/vm/describe.js';
import { type LaunchedVm, launchVm, quitVm } from '../../lib/vm/launch.js';
import { checkDeviceStateHeader, parseMigrationPrefix } from '../../lib/vm/migration-stream.js';

const BINARY = 'qemu-system-x86_64';
const RAM_ROOT = '/dev/shm';
/** First line SeaBIOS writes to its debug port on every start. */
const BIOS_BANNER = 'SeaBIOS (version';

let dir: string;
const running: LaunchedVm[] = [];

beforeEach(async () => {
  dir = await mkdtemp(join(RAM_ROOT, 'holdfast-test-'));
});

afterEach(async () => {
  for (const vm of running.splice(0)) await quitVm(vm);
  await rm(dir, { recursive: true, force: true });
}, 30_000);

const start = async (name: string, argv: readonly string[]): Promise<LaunchedVm> => {
  const vm = await launchVm({
    binary: BINARY,
    argv,
    qmpPath: join(dir, `${name}.qmp`),
    logPath: join(dir, `${name}.log`),
    peerPid: native.peerPid,
    sendWithFd: native.sendWithFd,
  });
  running.push(vm);
  return vm;
};

const guest = (biosLog: string): string[] => [
  ...['-M', 'q35', '-accel', 'tcg', '-m', '64', '-nodefaults', '-vga', 'none', '-display', 'none'],
  ...['-netdev', 'user,id=net0', '-device', 'virtio-net-pci,netdev=net0,romfile='],
  ...['-chardev', `file,id=bios,path=${biosLog}`, '-device', 'isa-debugcon,iobase=0x402,chardev=bios'],
];

const startPrimary = async (): Promise<LaunchedVm> => {
  const line = forPrimary(guest(join(dir, 'primary.bios')), {
    ramPath: join(dir, 'primary.ram'),
    qmpPath: join(dir, 'primary.qmp'),
  });
  const vm = await start('primary', line.argv);
  await contains(join(dir, 'primary.bios'), 'No bootable device');
  return vm;
};

const startStandby = async (primary: LaunchedVm): Promise<LaunchedVm> => {
  const { machineType } = await describeVm({
    qmp: primary.qmp,
    pid: primary.pid,
    findRamMappings: native.findRamMappings,
  });
  const argv = forStandby(primary.argv, {
    ramPath: join(dir, 'replica.ram'),
    qmpPath: join(dir, 'standby.qmp'),
    machineType,
    replacements: [{ from: join(dir, 'primary.bios'), to: join(dir, 'standby.bios') }],
  });
  const vm = await start('standby', argv);
  await prepareIncoming(vm.qmp, join(dir, 'incoming.sock'));
  return vm;
};

/** Polls until the file holds the text `times` times. */
const contains = async (path: string, text: string, times = 1): Promise<void> => {
  const deadline = performance.now() + 20_000;
  for (;;) {
    const content = await readFile(path, 'utf8').catch(() => '');
    if (content.split(text).length > times) return;
    if (performance.now() > deadline) throw new Error(`'${text}' did not appear in ${path}:\n${content}`);
    await delay(20);
  }
};

const write = async (socketPath: string, parts: readonly Uint8Array[]): Promise<void> => {
  const socket = createConnection({ path: socketPath });
  socket.on('error', () => {});
  for (const part of parts) socket.write(part);
  socket.end();
  await once(socket, 'close');
};

interface Checkpoint {
  readonly prefix: Uint8Array;
  readonly devices: Uint8Array;
}

/** Stops the primary, takes prefix, device state and a copy of RAM, and resumes it. */
const checkpoint = async (primary: LaunchedVm): Promise<Checkpoint> => {
  const prefixPath = join(dir, 'prefix');
  const statePath = join(dir, 'state');
  await primary.qmp.execute('stop');
  await migrateToFile(primary.qmp, prefixPath);
  await saveDeviceState(primary.qmp, statePath);
  await copyFile(join(dir, 'primary.ram'), join(dir, 'replica.ram'));
  await primary.qmp.execute('cont');
  const stream = await readFile(prefixPath);
  const state = await readFile(statePath);
  return {
    prefix: stream.subarray(0, parseMigrationPrefix(stream).bytes),
    devices: state.subarray(checkDeviceStateHeader(state)),
  };
};

describe('01 a VM moves to a standby', { timeout: 60_000 }, () => {
  test('prefix and device state resume it, and it can reboot there', async () => {
    const primary = await startPrimary();
    const { prefix, devices } = await checkpoint(primary);
    expect((await queryVm(primary.qmp)).status).toBe('running');

    const standby = await startStandby(primary);
    const resumed = waitRunning(standby.qmp);
    await write(join(dir, 'incoming.sock'), [prefix, devices]);
    await resumed;
    await announceSelf(standby.qmp);
    expect(await queryVm(standby.qmp)).toEqual({
      running: true,
      status: 'running',
      version: expect.stringMatching(/^\d+\.\d+\.\d+$/),
      accelerator: 'tcg',
      vcpus: 1,
    });

    // It did not start anew: the BIOS speaks only after the reset, in full.
    await expect(readFile(join(dir, 'standby.bios'), 'utf8')).resolves.not.toContain(BIOS_BANNER);
    await standby.qmp.execute('system_reset');
    await contains(join(dir, 'standby.bios'), BIOS_BANNER);
    await contains(join(dir, 'standby.bios'), 'No bootable device');
    expect((await queryVm(standby.qmp)).running).toBe(true);
  });

  test('without the ROM blocks of the prefix it cannot reboot', async () => {
    const primary = await startPrimary();
    const { prefix, devices } = await checkpoint(primary);
    const standby = await startStandby(primary);
    const resumed = waitRunning(standby.qmp);
    await write(join(dir, 'incoming.sock'), [headerAndConfiguration(prefix), devices]);
    await resumed;
    const reset = standby.qmp.once('RESET', { timeoutMs: 5000 });
    await standby.qmp.execute('system_reset');
    await reset;
    // Ten times as long as the BIOS takes where it can start.
    await delay(1000);
    await expect(readFile(join(dir, 'standby.bios'), 'utf8')).resolves.not.toContain(BIOS_BANNER);
  });

  test('a truncated stream is reported, not waited for', async () => {
    const primary = await startPrimary();
    const { prefix, devices } = await checkpoint(primary);
    const standby = await startStandby(primary);
    const resumed = waitRunning(standby.qmp);
    resumed.catch(() => {});
    await write(join(dir, 'incoming.sock'), [prefix, devices.subarray(0, 4000)]);
    await expect(resumed).rejects.toThrow(StandbyError);
    await standby.exited;
  });
});

/** The stream up to the ram section: what a naive composite would start with. */
const headerAndConfiguration = (prefix: Uint8Array): Uint8Array => {
  const ram = Buffer.from(prefix.buffer, prefix.byteOffset, prefix.byteLength).indexOf(
    '\x03ram',
    0,
    'latin1',
  );
  return prefix.subarray(0, ram - 5);
};

describe('02 migration to a descriptor', { timeout: 60_000 }, () => {
  test('is repeatable in one process and ends resumable each time', async () => {
    const primary = await startPrimary();
    await enableMigrationCapabilities(primary.qmp);
    let first: number | undefined;
    for (let round = 0; round < 20; round++) {
      const path = join(dir, 'stream');
      await primary.qmp.execute('stop');
      const bytes = await migrateToFile(primary.qmp, path, { capabilitiesEnabled: true });
      expect((await queryVm(primary.qmp)).status).toBe('postmigrate');
      await primary.qmp.execute('cont');
      const prefix = parseMigrationPrefix(await readFile(path));
      expect(prefix.machineType).toMatch(/^pc-q35-/);
      first ??= prefix.bytes;
      expect(prefix.bytes).toBe(first);
      expect(bytes).toBeGreaterThan(prefix.bytes);
      expect(prefix.blocks.find((block) => block.id === 'ram')).toMatchObject({ pages: 0 });
      expect(prefix.blocks.find((block) => block.id === 'pc.bios')?.pages).toBe(64);
    }
  });

  test('is prepared while the VM runs; what turns out not to be needed leaves nothing', async () => {
    const primary = await startPrimary();
    const capabilities = await primary.qmp.execute('query-migrate-capabilities');
    const path = join(dir, 'stream');
    for (const isNeeded of [true, false]) {
      await using migration = await FileMigration.prepare(primary.qmp, path);
      expect((await queryVm(primary.qmp)).running).toBe(true);
      if (!isNeeded) continue;
      await primary.qmp.execute('stop');
      await migration.run();
      await primary.qmp.execute('cont');
      expect(parseMigrationPrefix(await readFile(path)).machineType).toMatch(/^pc-q35-/);
    }
    expect(await primary.qmp.execute('query-migrate-capabilities')).toEqual(capabilities);
    const open = await Promise.all(
      (await readdir(`/proc/${primary.pid}/fd`)).map((fd) =>
        readlink(`/proc/${primary.pid}/fd/${fd}`).catch(() => ''),
      ),
    );
    expect(open).not.toContain(path);
  });

  test('a descriptor that cannot be written fails with the reason, and the VM can resume', async () => {
    const primary = await startPrimary();
    await primary.qmp.execute('stop');
    const readOnly = await open('/dev/null', 'r');
    await primary.qmp.passDescriptor('readonly', readOnly.fd);
    await readOnly.close();
    const failed = primary.qmp.once('MIGRATION', {
      timeoutMs: 5000,
      where: (event) => event.data.status === 'failed',
    });
    await enableMigrationCapabilities(primary.qmp);
    await primary.qmp.execute('migrate', { uri: 'fd:readonly' });
    await failed;
    await primary.qmp.execute('cont');
    expect((await queryVm(primary.qmp)).running).toBe(true);
  });
});

describe('03 the client on a real monitor', { timeout: 30_000 }, () => {
  const bare = ['-M', 'none', '-nodefaults', '-display', 'none'];
  const startBare = (): Promise<LaunchedVm> =>
    start('bare', [...bare, '-qmp', `unix:${join(dir, 'bare.qmp')},server=on,wait=off`]);

  test('errors carry command, class and description', async () => {
    const { qmp } = await startBare();
    await expect(qmp.execute('qom-get', { path: '/nowhere', property: 'x' })).rejects.toMatchObject({
      constructor: QmpError,
      details: { command: 'qom-get', class: 'DeviceNotFound' },
    });
  });

  test('a pipeline is answered in order, also after a failing command', async () => {
    const { qmp } = await startBare();
    const answered: string[] = [];
    const [status, failing, version] = qmp.pipeline([
      { execute: 'query-status' },
      { execute: 'qom-get', arguments: { path: '/nowhere', property: 'x' } },
      { execute: 'query-version' },
    ]);
    await Promise.all([
      status.then(() => answered.push('status')),
      failing.catch(() => answered.push('failing')),
      version.then(() => answered.push('version')),
    ]);
    expect(answered).toEqual(['status', 'failing', 'version']);
  });

  test('the death of QEMU rejects what is pending and settles closed', async () => {
    const vm = await startBare();
    process.kill(vm.pid, 'SIGSTOP');
    const pending = vm.qmp.execute('query-status');
    process.kill(vm.pid, 'SIGKILL');
    await expect(pending).rejects.toThrow(QmpConnectionError);
    await expect(vm.qmp.closed).resolves.toMatchObject({ kind: 'lost' });
    await expect(vm.exited).resolves.toMatchObject({ signal: 'SIGKILL' });
  });
});
