/**
 * Disks of a running VM moved to disk servers, while the guest writes: the Linux guest's file system with
 * diskchurn and SQLite on it, which notice every block that is not what was last written.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DiskSet } from '../../lib/disk/disk-set.js';
import { moveDisks } from '../../lib/disk/move-disks.js';
import { movedDisksDir, removeLeftDisksDirs } from '../../lib/disk/moved-disks-dir.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { native } from '../../lib/native.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import { forPrimary } from '../../lib/vm/command-line.js';
import { describeVm, type VmDescription } from '../../lib/vm/describe.js';
import { movableDrives } from '../../lib/vm/movable-drives.js';
import { refusals } from '../../lib/vm/preflight.js';
import { isAlive } from '../../lib/vm/process.js';
import { DiskService } from '../campaign/disk-service.js';
import { PATIENCE_MS } from '../campaign/service.js';
import { startBackup, startPrimary } from '../lab/daemons.js';
import { checkImage, createDisk, diskPath } from '../lab/disk.js';
import { guestArgs, guestReadyText } from '../lab/guest.js';
import { checkDiskchurn, readDiskchurn } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import type { LabProcess } from '../lab/process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import { calm, isRunning, remainsOf, serialReplacement, withQmp } from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('moved');

const DISK_MIB = 48;
const SPARE_MIB = 8;

let lab: Lab;
let qemu: LabProcess;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'move' });
  const images = [
    await createDisk(diskPath(lab, 'a', 0), DISK_MIB),
    await createDisk(diskPath(lab, 'a', 1), SPARE_MIB),
  ];
  qemu = await lab.host('a').spawn('qemu-system-x86_64', [
    ...guestArgs({
      ...{
        workload: 'disk',
        churnStepsPerSecond: 50,
        ramMb: 192,
        serialPath: lab.path('serial-a'),
        mountOptions: 'discard',
      },
      ...{ qmpPath: lab.path('qmp'), ramPath: lab.sharedMemoryPath('ram') },
      disks: [{ path: images[0]!, properties: 'cache=none,aio=native' }],
    }),
    // The other way to say it: nodes with names, which stay until they are told to go.
    ...['-blockdev', `driver=file,node-name=file1,filename=${images[1]},discard=unmap`],
    ...['-blockdev', 'driver=raw,node-name=disk1,file=file1', '-object', 'iothread,id=io1'],
    ...['-device', 'virtio-blk-pci,id=blk1,drive=disk1,iothread=io1'],
  ]);
  await waitForText(lab.path('serial-a'), guestReadyText, { timeoutMs: 90_000 });
}, 120_000);

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

const describeIt = (qmp: QmpClient): Promise<VmDescription> =>
  describeVm({ qmp, pid: qemu.pid, findRamMappings: native.findRamMappings });

const filesOpenBy = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return []; // closed meanwhile
    }
  });

const stepsPassed = async (steps: number): Promise<void> => {
  const begin = await readDiskchurn(lab.client);
  await waitFor(
    'diskchurn to go on',
    async () => (await readDiskchurn(lab.client)).steps >= begin.steps + steps,
  );
};

test('01 two disks are moved under load; the guest notices nothing', { timeout: 120_000 }, async () => {
  await stepsPassed(20);
  await withQmp(lab.path('qmp'), async (qmp) => {
    const vm = await describeIt(qmp);
    expect(movableDrives(vm).map(({ disk }) => disk.id)).toEqual(['disk0', 'disk1']);
    expect(refusals(vm).map(({ cure }) => cure)).toEqual(
      Array(2).fill(expect.stringMatching(/--move-disks on/)),
    );
    const dir = movedDisksDir(lab.path('run-a'), vm.process);
    const placement = { dir, diskDir: lab.path('known'), ringBytes: 4 << 20 };
    const moved = await moveDisks({ vm, qmp, placement, log: NOTHING_LOGGED });
    expect(moved?.disks.map(({ id, image }) => [id, image])).toEqual([
      ['disk0', diskPath(lab, 'a', 0)],
      ['disk1', diskPath(lab, 'a', 1)],
    ]);
    const after = await describeIt(qmp);
    expect(refusals(after)).toEqual([]);
    expect(after.drives.map(({ server }) => server?.id)).toEqual(['disk0', 'disk1']);
    expect(await moveDisks({ vm: after, qmp, placement, log: NOTHING_LOGGED })).toBeUndefined();
    // Nobody but the servers has the images open.
    expect(filesOpenBy(qemu.pid).filter((path) => path.startsWith(lab.path('disk')))).toEqual([]);
    expect(await qmp.execute('query-status')).toMatchObject({ running: true });
  });
  await stepsPassed(20);
  expect(await checkDiskchurn(lab.client)).toMatchObject({ errors: 0 });
});

test('02 a server that is killed under load is replaced by whoever protects the VM', {
  timeout: 120_000,
}, async () => {
  await withQmp(lab.path('qmp'), async (qmp) => {
    const vm = await describeIt(qmp);
    await using set = (await DiskSet.adopt({ vm, log: NOTHING_LOGGED }))!;
    // A standby's QEMU has all disks on servers, though this one's command line names the images.
    expect(set.portableArgv(vm.argv).join(' ')).toMatch(/holdfast-disk:disk0.*holdfast-disk:disk1/);
    let losses = 0;
    set.onLost(() => {
      losses += 1;
    });
    process.kill(vm.drives[0]!.server!.process.pid, 'SIGKILL');
    await waitFor(
      'the loss, and another server',
      async () => losses === 1 && (await set.counts()).length === 2,
    );
    await stepsPassed(20);
    expect(await checkDiskchurn(lab.client)).toMatchObject({ errors: 0 });
    expect(losses).toBe(1);
  });
});

test('03 the servers end with the VM, and what it wrote is whole', { timeout: 60_000 }, async () => {
  const servers = await withQmp(lab.path('qmp'), async (qmp) =>
    (await describeIt(qmp)).drives.map(({ server }) => server!.process),
  );
  await qemu.kill('SIGKILL');
  for (const server of servers) await waitFor('a server to end', async () => !(await isAlive(server)));
  await removeLeftDisksDirs(lab.path('run-a'));
  expect(readdirSync(lab.path('run-a')).filter((name) => name.startsWith('disks-'))).toEqual([]);
  expect(await checkImage(lab, diskPath(lab, 'a'))).toMatchObject({ clean: true });
});

test('04 a VM that was started without Holdfast is protected with its disk, and outlives its host', {
  timeout: 180_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  await service.boot();
  const [binary = '', ...args] = service.commandLine;
  const own = forPrimary(args, { ramPath: lab.sharedMemoryPath('ram'), qmpPath: lab.path('qmp') });
  const { pid } = await lab.host('a').spawn(binary, own.argv);
  await service.ready();
  const backup = await startBackup(lab, 'b', [...serialReplacement(lab, 'b'), ...service.backupArgs('b')]);
  const protect = (move: readonly string[]): Promise<JsonProcess> =>
    startPrimary(lab, {
      ...{ host: 'a', backup: 'b', vm: ['--qmp', lab.path('qmp')] },
      args: [...calm, ...service.primaryArgs('a'), ...move],
    });
  const refused = await protect([]);
  expect((await refused.ended()).code).toBe(3);
  expect(JSON.stringify(refused.failure)).toMatch(/--move-disks on/);

  const load = await service.startLoad();
  await load.advance();
  const primary = await protect(['--move-disks', 'on']);
  expect(await primary.message('disks-moved')).toMatchObject({ disks: [{ image: diskPath(lab, 'a') }] });
  await primary.message('protected', { timeoutMs: PATIENCE_MS });
  await load.advance();
  lab.host('a').die();
  await waitFor('QEMU to end', () => !isRunning(pid));
  await backup.message('took-over', { timeoutMs: PATIENCE_MS });
  await load.advance();
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
});
