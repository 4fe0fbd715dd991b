/**
 * QEMU over real disk servers, without a guest: what `qemu-io` in QEMU's monitor writes takes the way that a
 * guest's writes take. Launching, finding again, a server that is killed, a standby's servers.
 */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { LaunchedVm } from '../../lib/cli/launched-vm.js';
import {
  diskMetaDir,
  diskServerFiles,
  readDiskServerRecord,
  writeDiskServerRecord,
} from '../../lib/disk/disk-files.js';
import { endDiskServer, startDiskServer } from '../../lib/disk/disk-process.js';
import { DiskSet } from '../../lib/disk/disk-set.js';
import { findDiskServers } from '../../lib/disk/found-servers.js';
import { reviveDiskServers } from '../../lib/disk/revive-servers.js';
import { StandbyDisks } from '../../lib/disk/standby-disks.js';
import { type HoldfastError, UnsupportedVmError } from '../../lib/errors.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { native } from '../../lib/native.js';
import { QmpClient } from '../../lib/qmp/client.js';
import { describeVm, type VmDescription } from '../../lib/vm/describe.js';
import { launchVm, quitVm } from '../../lib/vm/launch.js';
import { refusals } from '../../lib/vm/preflight.js';
import { isAlive } from '../../lib/vm/process.js';
import { waitFor } from '../lab/wait.js';

const IMAGE_BYTES = 16 << 20;
const BLOCK_BYTES = 64 << 10;

let dir: string;
const cleanUp: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  dir = await mkdtemp('/dev/shm/holdfast-disks-');
});

afterEach(async () => {
  for (const undo of cleanUp.splice(0).reverse()) await undo();
  await rm(dir, { recursive: true, force: true });
}, 30_000);

const makeImage = async (name: string): Promise<string> => {
  const path = join(dir, name);
  await writeFile(path, '');
  await truncate(path, IMAGE_BYTES);
  return path;
};

const bare = ['-M', 'q35', '-accel', 'tcg', '-m', '64', '-nodefaults', '-vga', 'none', '-display', 'none'];

const launch = async (argv: readonly string[]): Promise<LaunchedVm> => {
  const vm = await LaunchedVm.ensure({
    ...{ runDir: join(dir, 'run'), ramDir: dir, name: 'vm', diskDir: join(dir, 'known') },
    commandLine: ['qemu-system-x86_64', ...bare, ...argv],
    ...{ gate: 'none', heldBytesMax: 1 << 20, ringBytes: 4 << 20, native },
  });
  if (vm.isNew) cleanUp.push(() => vm.quit());
  return vm;
};

const connect = async (path: string): Promise<QmpClient> => {
  const qmp = await QmpClient.connect(path, { timeoutMs: 5_000 });
  cleanUp.push(() => qmp.close());
  return qmp;
};

const describeIt = async (qmp: QmpClient): Promise<VmDescription> =>
  describeVm({ qmp, pid: native.peerPid(qmp.socketFd), findRamMappings: native.findRamMappings });

/** Block n of the disk gets a byte of its own; the write is under way when this settles. */
const writeBlocks = async (qmp: QmpClient, drive: string, from: number, to: number): Promise<void> => {
  const lines = Array.from({ length: to - from }, (_, index) => {
    const block = from + index;
    return `qemu-io ${drive} "aio_write -P ${patternOf(block)} ${block * BLOCK_BYTES} ${BLOCK_BYTES}"`;
  });
  for (const line of lines) await qmp.execute('human-monitor-command', { 'command-line': line });
};

const patternOf = (block: number): number => (block % 255) + 1;

const expectBlocks = async (image: string, count: number): Promise<void> => {
  const bytes = await readFile(image);
  for (let block = 0; block < count; block++) {
    const found = bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    expect(found.equals(Buffer.alloc(BLOCK_BYTES, patternOf(block)))).toBe(true);
  }
};

/** `stop` drains and flushes all that is under way. */
const settle = async (qmp: QmpClient): Promise<void> => {
  await qmp.execute('stop');
  await qmp.execute('cont');
};

const adopt = async (vm: VmDescription): Promise<{ set: DiskSet; lost: HoldfastError[] }> => {
  const set = await DiskSet.adopt({ vm, log: NOTHING_LOGGED });
  if (set === undefined) throw new Error('the VM has no disks');
  cleanUp.push(() => set.close());
  const lost: HoldfastError[] = [];
  set.onLost((reason) => lost.push(reason));
  return { set, lost };
};

/** Firmware that resets its disk waits for the writes under way, with QEMU's lock: no monitor would answer. */
const HALTED = ['-S'];

const driveOf = (image: string, id: string): string[] => [
  ...['-drive', `file=${image},format=raw,if=none,id=${id},cache=none,aio=native,discard=unmap`],
  ...['-device', `virtio-blk-pci,drive=${id}`],
];

test('01 a launched VM has its writable disks on servers, and is found again with them', async () => {
  const [a, b, readOnly] = [await makeImage('a.raw'), await makeImage('b.raw'), await makeImage('c.raw')];
  const argv = [
    ...driveOf(a, 'vda'),
    ...['-blockdev', JSON.stringify({ driver: 'file', 'node-name': 'f', filename: b })],
    ...['-blockdev', 'driver=raw,node-name=vdb,file=f', '-device', 'virtio-blk-pci,drive=vdb'],
    ...[
      '-drive',
      `file=${readOnly},format=raw,readonly=on,if=none,id=ro`,
      '-device',
      'virtio-blk-pci,drive=ro',
    ],
  ];
  const launched = await launch(argv);
  expect(launched.disks.map(({ id, image }) => [id, image])).toEqual([
    ['vda', a],
    ['vdb', b],
  ]);
  const qmp = await connect(launched.qmpPath);
  const vm = await describeIt(qmp);
  expect(refusals(vm)).toEqual([]);
  expect(vm.drives.flatMap(({ server }) => server?.id ?? [])).toEqual(['vda', 'vdb']);
  await writeBlocks(qmp, 'vda', 0, 20);
  await settle(qmp);
  await expectBlocks(a, 20);

  const { set } = await adopt(vm);
  expect(set.disks).toMatchObject([
    { id: 'vda', imagePath: a, imageBytes: IMAGE_BYTES, mapPath: `${a}.holdfast/map` },
    { id: 'vdb', imagePath: b, imageBytes: IMAGE_BYTES },
  ]);
  await set.startLogs();
  await writeBlocks(qmp, 'vda', 20, 30);
  await settle(qmp);
  await set.setSyncId('00112233445566778899aabbccddeeff');
  await set.rotateMaps();
  await set.rotateMaps();
  const [counts] = await set.counts();
  expect(counts).toMatchObject({ id: 'vda', writeBytes: 30 * BLOCK_BYTES, errors: 0, markedBytes: 0 });
  await set.stopLogs();

  const again = await launch(argv);
  expect(again.isNew).toBe(false);
  expect(again.disks).toEqual(launched.disks);
});

test('02 a server that is killed under load is replaced, and no write is lost', async () => {
  const image = await makeImage('a.raw');
  const { qmpPath, disks } = await launch(driveOf(image, 'vda'));
  const qmp = await connect(qmpPath);
  const vm = await describeIt(qmp);
  const { set, lost } = await adopt(vm);
  const { socket } = disks[0]!;
  let written = 0;
  for (let kill = 1; kill <= 2; kill++) {
    await writeBlocks(qmp, 'vda', written, written + 50);
    const { process: old } = (await readDiskServerRecord(socket))!;
    process.kill(old.pid, 'SIGKILL');
    await writeBlocks(qmp, 'vda', written + 50, written + 100);
    written += 100;
    await waitFor('the loss to be told', () => lost.length === kill);
    await waitFor('another server', async () => (await set.counts()).length === 1);
    const next = (await readDiskServerRecord(socket))!;
    expect(next.process.pid).not.toBe(old.pid);
    expect(next.vm).toEqual(vm.process);
  }
  // Of the server that is there now; off again, for nobody ships what it would log.
  await set.startLogs();
  await set.stopLogs();
  await settle(qmp);
  await expectBlocks(image, written);
});

test('03 servers end with their VM, and leave what is known of the image', async () => {
  const image = await makeImage('a.raw');
  const launched = await launch(driveOf(image, 'vda'));
  const { socket } = launched.disks[0]!;
  const record = (await readDiskServerRecord(socket))!;
  process.kill(launched.pid, 'SIGKILL');
  await waitFor('the server to end', async () => !(await isAlive(record.process)));
  expect(existsSync(diskServerFiles(socket).ring)).toBe(false);
  await launched.quit();
  expect(existsSync(join(dir, 'run/vm-vm'))).toBe(false);
  expect(existsSync(`${image}.holdfast/map`)).toBe(true);
});

test('04 what cannot be replicated is refused before anything is started', async () => {
  const image = await makeImage('a.raw');
  const file = await open(image, 'r+');
  await file.write('QFI\u00fb', 0, 'latin1');
  await file.close();
  const launching = launch(['-hda', image, '-hdb', join(dir, 'none')]);
  await expect(launching).rejects.toThrow(UnsupportedVmError);
  await expect(launching).rejects.toThrow(/disk0 .*format is qcow2.*qemu-img convert -O raw/);
  await expect(launching).rejects.toThrow(/disk1 .*ENOENT.*qemu-img create/);
  expect(await readdir(join(dir, 'run/vm-vm'))).toEqual([]);
});

test('05 an image has one server that writes to it', async () => {
  const image = await makeImage('a.raw');
  const spec = {
    ...{ id: 'vda', imagePath: image, imageBytes: IMAGE_BYTES, metaDir: await diskMetaDir(dir, image) },
    ...({ ringBytes: 4 << 20, mode: 'active', nbdkit: 'nbdkit', vm: null } as const),
  };
  const first = await startDiskServer({ ...spec, socket: join(dir, 'first.sock') });
  cleanUp.push(() => endDiskServer(join(dir, 'first.sock')));
  await expect(startDiskServer({ ...spec, socket: join(dir, 'first.sock') })).rejects.toThrow(/already/);
  await expect(startDiskServer({ ...spec, socket: join(dir, 'second.sock') })).rejects.toThrow(
    /ended before it was ready:.*a\.raw/s,
  );
  await expect(
    startDiskServer({ ...spec, socket: join(dir, 'third.sock'), nbdkit: 'no-such-nbdkit' }),
  ).rejects.toThrow(/there is no no-such-nbdkit/);
  await first.control.close();
});

test('06 a standby’s servers answer reads, hold writes until activated, and stay with the VM', async () => {
  const [primary, replica] = [await makeImage('a.raw'), await makeImage('b.raw')];
  const launched = await launch(driveOf(primary, 'vda'));
  const { set } = await adopt(await describeIt(await connect(launched.qmpPath)));
  const runDir = join(dir, 'standby');
  await mkdir(runDir);
  const [disk] = set.disks;
  const metaDir = await diskMetaDir(dir, replica);
  const disks = new StandbyDisks({
    disks: [{ id: disk!.id, imageBytes: disk!.imageBytes, imagePath: replica, metaDir }],
    ...{ dir: runDir, launch: 1, log: NOTHING_LOGGED },
  });
  const argv = disks.over(set.portableArgv([...bare, ...driveOf(primary, 'vda')]));
  await disks.start();
  cleanUp.push(() => disks.end());
  const qmpPath = join(runDir, 'qmp');
  const vm = await launchVm({
    binary: 'qemu-system-x86_64',
    argv: [...argv, ...HALTED, '-qmp', `unix:${qmpPath},server=on,wait=off`],
    ...{ qmpPath, logPath: join(runDir, 'log') },
    beside: (process) => disks.bind(process),
  });
  cleanUp.push(() => quitVm(vm));
  await writeBlocks(vm.qmp, 'vda', 0, 10);
  const before = await findDiskServers(disks.sockets);
  expect(before).toMatchObject([{ id: 'vda', imagePath: replica, isActive: false }]);
  expect((await readFile(replica)).every((byte) => byte === 0)).toBe(true);
  await disks.activate();
  await settle(vm.qmp);
  await expectBlocks(replica, 10);
  await disks.activate();
  expect(await findDiskServers(disks.sockets)).toMatchObject([{ isActive: true }]);
  // As if whoever activated it had not lived to write that down.
  const record = (await readDiskServerRecord(disks.sockets[0]!))!;
  await writeDiskServerRecord({ ...record, mode: 'standby' });
  const [found] = await findDiskServers(disks.sockets);
  expect(found).toMatchObject({ isActive: true });
  await found!.activate();
  expect(await readDiskServerRecord(disks.sockets[0]!)).toEqual(record);

  // One that dies now is the standby's to replace, until a primary looks after it; then it is either's.
  const old = (await readDiskServerRecord(disks.sockets[0]!))!;
  const { lost } = await adopt(await describeIt(vm.qmp));
  process.kill(old.process.pid, 'SIGKILL');
  await waitFor('the primary to see it', () => lost.length === 1);
  await writeBlocks(vm.qmp, 'vda', 10, 20);
  await settle(vm.qmp);
  await expectBlocks(replica, 20);
  expect(lost).toHaveLength(1);
});

test('07 one that died while nobody watched is started again, also when the monitor waits for it', async () => {
  const image = await makeImage('a.raw');
  const { qmpPath, disks } = await launch([...driveOf(image, 'vda'), ...HALTED]);
  const qmp = await connect(qmpPath);
  const { socket } = disks[0]!;
  const { process: old } = (await readDiskServerRecord(socket))!;
  process.kill(old.pid, 'SIGKILL');
  await waitFor('the server to be gone', async () => !(await isAlive(old)));
  await writeBlocks(qmp, 'vda', 0, 10);
  qmp.execute('cont').catch(() => {}); // may be answered, or wait as `stop` does
  let isStopped = false;
  const stopping = qmp.execute('stop').then(() => {
    isStopped = true;
  });
  // Nothing is answered any more: who asks for the VM's disks to find their servers would wait for ever.
  const asking = qmp.execute('query-status', undefined, { timeoutMs: 500 });
  await expect(asking).rejects.toThrow();
  expect(isStopped).toBe(false);
  await reviveDiskServers(qmpPath, join(dir, 'run'), NOTHING_LOGGED);
  await stopping;
  const next = (await readDiskServerRecord(socket))!;
  expect(next).toMatchObject({ mode: 'active', vm: (await describeIt(qmp)).process });
  await expectBlocks(image, 10);
  await reviveDiskServers(qmpPath, join(dir, 'run'), NOTHING_LOGGED);
  expect((await readDiskServerRecord(socket))!.process).toEqual(next.process);
});
