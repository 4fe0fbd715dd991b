/**
 * What goes wrong with the disks of a protected VM: the replica's file system fills up, a disk server dies, the
 * local image fails, a daemon dies in the middle of a takeover. The guest's clients judge what is lost: nothing.
 */

import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { runningDiskServer } from '../../lib/disk/disk-files.js';
import { DiskService } from '../campaign/disk-service.js';
import { PATIENCE_MS } from '../campaign/service.js';
import {
  backupStatus,
  holdfast,
  insideTmpfs,
  primaryStatus,
  runDirOf,
  type SmallTmpfs,
  startBackup,
  startPrimary,
} from '../lab/daemons.js';
import { createDisk, diskPath } from '../lab/disk.js';
import { guestCommand, guestOutput } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { execToEnd } from '../lab/process.js';
import { waitFor } from '../lab/wait.js';
import {
  calm,
  killOrphan,
  otherHost,
  type RunningVm,
  redisGuestArgs,
  serialReplacement,
  withQmp,
} from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('dfault');

type Host = 'a' | 'b';

/** A second disk of the guest: /dev/vdb. A failure is answered to the guest, as on a machine of metal. */
const secondDisk = (path: string): string[] => [
  ...['-drive', `if=none,id=disk1,format=raw,file=${path},discard=unmap,werror=report,rerror=report`],
  ...['-device', 'virtio-blk-pci,id=blk1,drive=disk1'],
];

/** A third: /dev/vdc, with QEMU's default. Where there is no room for a write it stops the VM. */
const thirdDisk = (path: string): string[] => [
  ...['-drive', `if=none,id=disk2,format=raw,file=${path}`, '-device', 'virtio-blk-pci,id=blk2,drive=disk2'],
];

/** Writes `mebibytes` of noise to /dev/vdb, past the guest's page cache, and returns their checksum. */
const writeSecondDisk = async (lab: Lab, mebibytes: number): Promise<string> =>
  await guestOutput(
    lab.client,
    `dd if=/dev/urandom of=/run/noise bs=1M count=${mebibytes} 2> /dev/null &&
    dd if=/run/noise of=/dev/vdb bs=1M conv=fsync 2> /dev/null && sha256sum < /run/noise && rm /run/noise`,
    { timeoutMs: PATIENCE_MS },
  );

const readSecondDisk = async (lab: Lab, mebibytes: number): Promise<string> =>
  await guestOutput(
    lab.client,
    `echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=1M count=${mebibytes} 2> /dev/null | sha256sum`,
    { timeoutMs: PATIENCE_MS },
  );

const protectFrom = async (
  lab: Lab,
  host: Host,
  vm: readonly string[],
  args: readonly string[] = [],
  tmpfs?: SmallTmpfs,
): Promise<JsonProcess> =>
  await startPrimary(lab, {
    host,
    backup: otherHost(host),
    args: [...calm, ...args],
    vm,
    ...(tmpfs === undefined ? {} : { tmpfs }),
  });

const backupOn = async (lab: Lab, host: Host, args: readonly string[]): Promise<JsonProcess> =>
  await startBackup(lab, host, [...serialReplacement(lab, host), ...args]);

const protectedVm = async (service: DiskService, primary: JsonProcess): Promise<RunningVm> => {
  const { pid, qmp } = await primary.message('launched', { timeoutMs: PATIENCE_MS });
  await service.ready();
  await primary.message('protected', { timeoutMs: PATIENCE_MS });
  return { host: 'a', pid: Number(pid), qmpPath: String(qmp) };
};

const vmStatus = async (qmpPath: string): Promise<string> =>
  await withQmp(qmpPath, async (qmp) => (await qmp.execute('query-status')).status);

test('nobody listens where the backup should be: the VM that was launched for it is gone, with all its servers', {
  timeout: 60_000,
}, async () => {
  const lab = await makeLab();
  const image = await createDisk(diskPath(lab, 'a'), 64);
  const qemu = ['qemu-system-x86_64', ...redisGuestArgs(lab, { disks: [{ path: image }] })];
  const primary = await protectFrom(lab, 'a', ['--', ...qemu], ['--disk-dir', lab.path('disks-a')]);
  const { pid, relays, disks } = await primary.message('launched', { timeoutMs: PATIENCE_MS });
  expect(await primary.ended()).toEqual({ code: 5, signal: null });
  expect(primary.failure).toMatchObject({
    code: 'HOLDFAST_E_CONNECT',
    exitCode: 5,
    cure: expect.stringContaining('holdfast backup'),
  });
  // They were there, and each of them lived in this host.
  expect(pid).toBeGreaterThan(0);
  expect([relays, disks]).toMatchObject([[{ netdev: 'net0' }], [{ id: 'disk0', image }]]);
  await waitFor('host a to be empty', () => lab.host('a').pids.length === 0);
  // Nor RAM, sockets or logs. Who was active in which term stays known until the host's next boot.
  const left = readdirSync(lab.sharedMemoryDir, { recursive: true, encoding: 'utf8' });
  expect(left.filter((path) => !path.startsWith('run-a/vms/'))).toEqual(['run-a', 'run-a/vms']);
});

test('a replica without room: protection ends, the checkpoint stays, and both come back with room', {
  timeout: 300_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  await service.boot();
  // Image and journal of the replica are in a file system that is filled up, and emptied again.
  const dir = lab.path('replica');
  mkdirSync(dir);
  const backup = await startBackup(
    lab,
    'b',
    [
      ...serialReplacement(lab, 'b'),
      ...['--replace', `${diskPath(lab, 'a')}=${join(dir, 'disk.img')}`],
      ...['--disk-dir', lab.path('disks-b'), '--journal-size', '64M'],
    ],
    { dir, sizeMb: 144 },
  );
  const ballast = insideTmpfs(backup.pid, join(dir, 'ballast'));
  const fill = async (): Promise<void> => {
    const { stderr } = await execToEnd('dd', ['if=/dev/zero', `of=${ballast}`, 'bs=1M'], { check: false });
    expect(stderr).toMatch(/No space left/);
  };
  const grow = async (): Promise<void> => {
    await guestCommand(
      lab.client,
      'dd if=/dev/urandom of=/disk/grown bs=1M count=8 conv=fsync; rm /disk/grown',
    );
  };
  const faultOf = async (): Promise<string | undefined> => (await backupStatus(lab)).disks?.[0]?.fault;

  const releasing = await protectFrom(
    lab,
    'a',
    ['--', ...service.commandLine],
    [...service.primaryArgs('a'), '--on-backup-lost', 'release', '--retry', '1s'],
  );
  const vm = await protectedVm(service, releasing);
  const load = await service.startLoad();
  await load.advance();
  await fill();
  await grow();
  const { reason } = await releasing.message('waiting', { timeoutMs: PATIENCE_MS });
  expect(reason).toMatch(/disk0.*space|space.*disk0/i);
  expect(backup.process.stderr).toMatch(/ENOSPC|no space/i);
  // The checkpoint is void, and nobody has the replica open but for moments: what is wrong is still said.
  await waitFor('the backup to say why', async () => /space/i.test((await faultOf()) ?? ''));
  await load.advance(); // nobody waits for a replica that is full
  expect(releasing.of('protected')).toHaveLength(1);
  await rm(ballast);
  await releasing.message('protected', { count: 2, timeoutMs: PATIENCE_MS });
  expect(await faultOf()).toBeUndefined();
  await load.advance();
  expect((await holdfast(lab, 'a', ['detach'], { timeoutMs: PATIENCE_MS })).code).toBe(0);
  await releasing.ended(PATIENCE_MS);

  // Under the policy `hold` the VM stands still; its host dies, and the checkpoint is run once there is room.
  const holding = await protectFrom(lab, 'a', ['--qmp', vm.qmpPath], service.primaryArgs('a'));
  await holding.message('protected', { timeoutMs: PATIENCE_MS });
  await load.advance();
  await fill();
  const growing = grow().catch(() => {}); // its answer is held
  await holding.message('waiting', { timeoutMs: PATIENCE_MS });
  // Here the checkpoint stands, so its replica is open, and says in the status what is wrong with it.
  await waitFor('the backup to say why', async () => /space/i.test((await faultOf()) ?? ''));
  lab.host('a').die();
  await growing;
  const failed = await backup.message('takeover-failed', { timeoutMs: PATIENCE_MS });
  expect(JSON.stringify(failed)).toMatch(/space/i);
  await rm(ballast);
  expect((await holdfast(lab, 'b', ['takeover'], { timeoutMs: PATIENCE_MS })).code).toBe(0);
  const { qmp } = await backup.message('took-over', { timeoutMs: PATIENCE_MS });
  expect(await vmStatus(String(qmp))).toBe('running');
  await load.advance();
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
});

test('a killed disk server costs nothing; of a full image the guest is told, or its VM stops and is moved', {
  timeout: 240_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  await service.boot();
  const dir = lab.path('small');
  mkdirSync(dir);
  const [second, third] = [join(dir, 'disk1.img'), join(dir, 'disk2.img')];
  const backup = await backupOn(lab, 'b', [
    ...service.backupArgs('b'),
    ...['--replace', `${second}=${diskPath(lab, 'b', 1)}`],
    ...['--replace', `${third}=${diskPath(lab, 'b', 2)}`],
  ]);
  const primary = await protectFrom(
    lab,
    'a',
    ['--', ...service.commandLine, ...secondDisk(second), ...thirdDisk(third)],
    service.primaryArgs('a'),
    {
      ...{ dir, sizeMb: 16 },
      images: { names: ['disk1.img', 'disk2.img'], sizeMb: 64 },
    },
  );
  await protectedVm(service, primary);
  const load = await service.startLoad();
  await load.advance();

  const server = await serverOf(lab, 'a', 'disk0');
  process.kill(server.process.pid, 'SIGKILL');
  await primary.message('protected', { count: 2, timeoutMs: PATIENCE_MS });
  expect((await serverOf(lab, 'a', 'disk0')).process.pid).not.toBe(server.process.pid);
  await load.advance();
  expect((await guestOutput(lab.client, 'dmesg')).match(/I\/O error/g)).toBeNull();

  const ballast = insideTmpfs(primary.pid, join(dir, 'ballast'));
  writeFileSync(ballast, Buffer.alloc(2 << 20));
  const sum = await writeSecondDisk(lab, 8);
  const tooMuch = await guestCommand(
    lab.client,
    'dd if=/dev/zero of=/dev/vdb bs=1M seek=10 count=20 conv=fsync',
    {
      timeoutMs: PATIENCE_MS,
    },
  );
  expect(tooMuch.code).not.toBe(0);
  await waitFor('the status to warn', async () => {
    const { stdout } = await holdfast(lab, 'a', ['status'], { check: false });
    return /disk1.*FAILS: \d+ errors, last ENOSPC/.test(stdout);
  });
  expect(primary.process.stderr).toMatch(/disk1.*ENOSPC/);
  expect((await primaryStatus(lab)).phase).toBe('protected');
  await load.advance();

  // Nobody asks the guest here: its VM stops, goes on when there is room, stops again, and is moved as it is.
  const growing = guestCommand(
    lab.client,
    'dd if=/dev/urandom of=/dev/vdc bs=1M count=8 conv=fsync 2> /dev/null',
    { timeoutMs: PATIENCE_MS },
  );
  expect(await primary.message('vm-stopped')).toMatchObject({ id: 'disk2', image: third, isFull: true });
  const { stdout: said } = await holdfast(lab, 'a', ['status']);
  expect(said).toMatch(
    /process \d+, stopped\n.*its disk disk2, .*disk2\.img, is full\. Make room.*switchover/,
  );
  await rm(ballast);
  await primary.message('vm-goes-on');
  await primary.message('vm-stopped', { count: 2 });
  expect((await primaryStatus(lab)).vm).toMatchObject({ running: false });
  expect((await holdfast(lab, 'a', ['switchover'], { timeoutMs: PATIENCE_MS })).code).toBe(0);
  await backup.message('took-over', { timeoutMs: PATIENCE_MS });
  expect((await growing).code).toBe(0);
  await load.advance();
  expect(await readSecondDisk(lab, 8)).toBe(sum);
  await guestOutput(
    lab.client,
    'dd if=/dev/urandom of=/dev/vdb bs=1M seek=10 count=20 conv=fsync 2> /dev/null',
    {
      timeoutMs: PATIENCE_MS,
    },
  );
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
});

test('two disks go there and back three times; then a takeover is finished by the next daemon', {
  timeout: 300_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  await service.boot();
  await createDisk(diskPath(lab, 'a', 1), 32);
  const backupArgs = (host: Host): string[] => [
    ...service.backupArgs(host),
    ...['--replace', `${diskPath(lab, otherHost(host), 1)}=${diskPath(lab, host, 1)}`],
  ];
  let backup = await backupOn(lab, 'b', backupArgs('b'));
  let primary = await protectFrom(
    lab,
    'a',
    ['--', ...service.commandLine, ...secondDisk(diskPath(lab, 'a', 1))],
    service.primaryArgs('a'),
  );
  let vm = await protectedVm(service, primary);
  const load = await service.startLoad();
  for (const move of [1, 2, 3]) {
    const from = vm.host;
    const to = otherHost(from);
    const sum = await writeSecondDisk(lab, 4 + move);
    await load.advance();
    expect((await holdfast(lab, from, ['switchover'], { timeoutMs: PATIENCE_MS })).code).toBe(0);
    const { pid, qmp } = await backup.message('took-over', { timeoutMs: PATIENCE_MS });
    const old = vm.pid;
    vm = { host: to, pid: Number(pid), qmpPath: String(qmp) };
    await primary.ended(PATIENCE_MS);
    await killOrphan(old);
    expect(await readSecondDisk(lab, 4 + move)).toBe(sum);
    // The daemon that has moved it stays as its monitor, in the way of the next one of that name.
    await backup.process.kill('SIGTERM');
    await backup.ended(PATIENCE_MS);
    backup = await backupOn(lab, from, backupArgs(from));
    primary = await protectFrom(lab, to, ['--qmp', vm.qmpPath], service.primaryArgs(to));
    await primary.message('protected', { timeoutMs: PATIENCE_MS });
    expect(primary.of('disk-plan').map(({ what }) => what)).toEqual(['changed', 'changed']);
    await load.advance();
  }

  // Host b dies. The server of the standby is made to stand still: the VM runs, its writes are not let
  // through, and the daemon that would do that is killed.
  const server = await serverOf(lab, 'a', 'disk0');
  expect(server.mode).toBe('standby');
  process.kill(server.process.pid, 'SIGSTOP');
  lab.host('b').die();
  await waitFor('the VM to run', async () => (await backupStatus(lab, 'a')).phase === 'active', {
    timeoutMs: PATIENCE_MS,
  });
  await backup.process.kill();
  expect(backup.of('took-over')).toEqual([]); // which is told when the disks take writes
  process.kill(server.process.pid, 'SIGCONT');
  await backupOn(lab, 'a', backupArgs('a'));
  await load.advance();
  await writeSecondDisk(lab, 4);
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
});

const serverOf = async (lab: Lab, host: Host, id: string) => {
  const record = await waitFor(`a server of ${id}`, async () => {
    const { stdout } = await execToEnd('find', [runDirOf(lab, host), '-name', `${id}*.sock`]);
    for (const socket of stdout.split('\n').filter((line) => line !== '')) {
      const found = await runningDiskServer(socket);
      if (found !== undefined) return found;
    }
    return undefined;
  });
  return record;
};
