/**
 * A VM with everything on a disk: its host dies, it is protected back onto the image it came from, and moves
 * there on request. After each step redis, SQLite and the files on the disk are read back.
 */

import { existsSync } from 'node:fs';
import { expect, test } from 'vitest';
import { DiskService } from '../campaign/disk-service.js';
import { PATIENCE_MS } from '../campaign/service.js';
import { backupStatus, holdfast, primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { diskPath } from '../lab/disk.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { calm, killOrphan, otherHost, type RunningVm, serialReplacement } from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('disk');

/** What a message of the primary says of its disk. */
interface Plan {
  readonly what: string;
  readonly changedBytesMax?: number;
}

const backupOn = (lab: Lab, service: DiskService, host: 'a' | 'b'): Promise<JsonProcess> =>
  startBackup(lab, host, [...serialReplacement(lab, host), ...service.backupArgs(host)]);

const primaryOn = (
  lab: Lab,
  service: DiskService,
  host: 'a' | 'b',
  vm: readonly string[],
): Promise<JsonProcess> =>
  startPrimary(lab, { host, backup: otherHost(host), args: [...calm, ...service.primaryArgs(host)], vm });

const launch = async (
  lab: Lab,
  service: DiskService,
): Promise<{ backup: JsonProcess; primary: JsonProcess; vm: RunningVm }> => {
  await service.boot();
  const backup = await backupOn(lab, service, 'b');
  const primary = await primaryOn(lab, service, 'a', ['--', ...service.commandLine]);
  const { pid, qmp } = await primary.message('launched');
  await service.ready();
  await primary.message('protected', { timeoutMs: PATIENCE_MS });
  return { backup, primary, vm: { host: 'a', pid: Number(pid), qmpPath: String(qmp) } };
};

test('a VM with a disk outlives its host, is protected back by what changed, and moves home', {
  timeout: 240_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  const first = await launch(lab, service);
  const plan = (await first.primary.message('disk-plan')) as unknown as Plan;
  expect(plan.what).toBe('all'); // of a disk that was never anywhere else
  expect(existsSync(diskPath(lab, 'b'))).toBe(true);
  const [disk] = (await primaryStatus(lab)).disks ?? [];
  expect(disk).toMatchObject({ image: diskPath(lab, 'a') });
  expect((await backupStatus(lab)).disks).toMatchObject([{ id: disk!.id, image: diskPath(lab, 'b') }]);

  const load = await service.startLoad();
  await load.advance();
  lab.host('a').die();
  const took = await first.backup.message('took-over', { timeoutMs: PATIENCE_MS });
  expect(took.disksMs).toBeGreaterThanOrEqual(0);
  await load.advance();
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });

  // Back: the old primary's image is the replica, and only what changed on either host travels.
  const home = await backupOn(lab, service, 'a');
  const back = await primaryOn(lab, service, 'b', ['--qmp', String(took.qmp)]);
  await back.message('protected', { timeoutMs: PATIENCE_MS });
  const changed = (await back.message('disk-plan')) as unknown as Plan;
  expect(changed.what).toBe('changed');
  const { bytes } = await back.message('disks-copied');
  expect(Number(bytes)).toBeLessThanOrEqual(changed.changedBytesMax!);
  expect(Number(bytes)).toBeLessThan(disk!.imageBytes / 2);

  const second = await service.startLoad();
  await second.advance();
  expect((await holdfast(lab, 'b', ['switchover'], { timeoutMs: PATIENCE_MS })).code).toBe(0);
  const moved = await home.message('took-over', { timeoutMs: PATIENCE_MS });
  await second.advance();
  expect(await second.stop()).toMatchObject({ lost: 0, violations: [] });
  await killOrphan(Number(took.pid));
  expect((await back.ended(PATIENCE_MS)).code).toBe(0);
  expect(await service.finish({ host: 'a', pid: Number(moved.pid), qmpPath: String(moved.qmp) })).toEqual([]);
});

test('a primary daemon that is killed comes back to its disks, and sends what changed', {
  timeout: 180_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  await service.boot();
  const backup = await startBackup(lab, 'b', [
    ...serialReplacement(lab, 'b'),
    ...service.backupArgs('b'),
    ...['--connection-grace', '5s'],
  ]);
  const killed = await primaryOn(lab, service, 'a', ['--', ...service.commandLine]);
  await killed.message('launched');
  await service.ready();
  await killed.message('protected', { timeoutMs: PATIENCE_MS });
  const load = await service.startLoad();
  await load.advance();
  await killed.process.kill();
  await backup.message('grace');
  const again = await primaryOn(lab, service, 'a', ['--', ...service.commandLine]);
  await again.message('protected', { timeoutMs: PATIENCE_MS });
  expect(await again.message('disk-plan')).toMatchObject({ what: 'changed' });
  await load.advance();
  lab.host('a').die();
  await backup.message('took-over', { timeoutMs: PATIENCE_MS });
  await load.advance();
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
});

test('a backup daemon that is killed comes back to its replica, and gets what changed', {
  timeout: 180_000,
}, async () => {
  const lab = await makeLab();
  const service = new DiskService(lab);
  const { backup, primary } = await launch(lab, service);
  const load = await service.startLoad();
  await load.advance();
  await backup.process.kill();
  await primary.message('waiting', { timeoutMs: PATIENCE_MS });
  const next = await backupOn(lab, service, 'b');
  await primary.message('protected', { count: 2, timeoutMs: PATIENCE_MS });
  expect(await primary.message('disk-plan', { count: 2 })).toMatchObject({ what: 'changed' });
  await load.advance();
  lab.host('a').die();
  await next.message('took-over', { timeoutMs: PATIENCE_MS });
  await load.advance();
  expect(await load.stop()).toMatchObject({ lost: 0, violations: [] });
  await waitFor('host a to be empty', () => lab.host('a').pids.length === 0);
});
