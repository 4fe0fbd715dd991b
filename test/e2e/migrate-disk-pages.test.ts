/** `holdfast migrate --skip-disk-pages`: what the page cache holds of disks that both hosts have is read there. */

import { randomBytes } from 'node:crypto';
import { open, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { startMigration } from '../lab/daemons.js';
import { createDisk, diskPath, diskReplacements } from '../lab/disk.js';
import { guestArgs, guestReadyText } from '../lab/guest.js';
import { checkDiskchurn, checkMemwriter, guestOutput, startMemwriter } from '../lab/guest-shell.js';
import type { JsonProcess } from '../lab/json-process.js';
import type { Lab } from '../lab/lab.js';
import { waitForText } from '../lab/wait.js';
import { type RunningVm, startBackupFor } from './support/lab.js';
import { labPerTest } from './support/lab-test.js';

const makeLab = labPerTest('migp');

const BLOCK_BYTES = 4_096;
const FILES_BLOCKS = 12_288;
/** Of the image on the destination, these differ. */
const DIFFERENT_BLOCKS = 500;

/** Blocks of an image of files, attached read-only; the other host's has something else in some of them. */
const makeFiles = async (lab: Lab): Promise<string> => {
  const content = randomBytes(FILES_BLOCKS * BLOCK_BYTES);
  const path = diskPath(lab, 'a', 1);
  await Promise.all([writeFile(path, content), writeFile(diskPath(lab, 'b', 1), content)]);
  const other = await open(diskPath(lab, 'b', 1), 'r+');
  await other.write(randomBytes(DIFFERENT_BLOCKS * BLOCK_BYTES), 0, undefined, 5_000 * BLOCK_BYTES);
  await other.close();
  return path;
};

/** A busy disk of its own, and one of files that it has read. */
const bootReadingGuest = async (lab: Lab): Promise<RunningVm> => {
  const qmpPath = lab.path('qmp');
  const serialPath = lab.path('serial-a');
  const disks = [
    { path: await createDisk(diskPath(lab, 'a'), 48) },
    { path: await makeFiles(lab), properties: 'readonly=on' },
  ];
  const args = guestArgs({
    ...{ workload: 'disk', churnStepsPerSecond: 20, ramMb: 256, serialPath },
    ...{ qmpPath, ramPath: lab.sharedMemoryPath('ram'), disks },
  });
  const qemu = await lab.host('a').spawn('qemu-system-x86_64', args);
  await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  // A device that nobody has open is in no page cache.
  await guestOutput(lab.client, 'sleep 3600 < /dev/vdb > /dev/null 2>&1 &');
  return { host: 'a', pid: qemu.pid, qmpPath };
};

const digestOfFiles = async (lab: Lab): Promise<string> =>
  await guestOutput(lab.client, 'md5sum /dev/vdb', { timeoutMs: 60_000 });

test('pages on disks of both hosts are read there, and those that differ there are sent', async () => {
  const lab = await makeLab();
  const vm = await bootReadingGuest(lab);
  const digest = await digestOfFiles(lab);
  await startMemwriter(lab.client, { pagesPerSecond: 1_000, workingSetPages: 2_048 });
  const backup = await startBackupFor(lab, vm, diskReplacements(lab, 'a', 'b', 2));
  const migrate = async (args: readonly string[]): Promise<JsonProcess> =>
    await startMigration(lab, { host: 'a', to: 'b', qmpPath: vm.qmpPath, args });

  // Without: only the first round counts, and then it is given up.
  const endless = ['--policy', 'fixed', '--downtime', '1ms', '--rounds-max', '10000'];
  const plain = await migrate([...endless, '--move-disks', 'on']);
  const whole = await plain.message('round');
  expect(whole).not.toHaveProperty('diskPages');
  plain.process.child.kill('SIGINT');
  expect(await plain.ended()).toEqual({ code: 130, signal: null });
  await backup.message('idle', { count: 2 });

  const skipping = await migrate(['--skip-disk-pages']);
  expect(await skipping.ended()).toEqual({ code: 0, signal: null });
  expect(await backup.message('took-over')).toMatchObject({ planned: true });
  expect(await digestOfFiles(lab)).toBe(digest);
  expect((await checkMemwriter(lab.client)).errors).toBe(0);
  expect((await checkDiskchurn(lab.client)).errors).toBe(0);

  expect(skipping.of('warning')).toEqual([]);
  const [indexed] = skipping.of('disks-indexed');
  expect(indexed).toMatchObject({ ended: true, images: [diskPath(lab, 'a'), diskPath(lab, 'a', 1)] });
  expect(Number(indexed?.blocks)).toBeGreaterThan(FILES_BLOCKS);
  const [first] = skipping.of('round');
  const pages = Object(first?.diskPages) as Record<string, number>;
  expect(pages.mismatched).toBeGreaterThanOrEqual(DIFFERENT_BLOCKS);
  expect(pages.verified).toBeGreaterThan(0.8 * (FILES_BLOCKS - DIFFERENT_BLOCKS));
  expect(pages.resent).toBe(pages.mismatched! + pages.unread!);
  expect(pages.referenced).toBe(pages.verified! + pages.resent!);
  expect(Number(first?.bytes)).toBeLessThan(Number(whole.bytes) - 0.9 * pages.savedBytes!);

  const outcome = Object(skipping.of('ended')[0]?.outcome) as Record<string, object>;
  const all = [...skipping.of('round'), ...skipping.of('final')].map(({ diskPages }) => Object(diskPages));
  const verified = all.reduce((sum: number, each) => sum + Number(each.verified), 0);
  expect(outcome.diskPages).toMatchObject({ verified });
});
