/** A primary, or a migration, that cannot start leaves the VM as it found it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { native } from '../../lib/native.js';
import { Primary } from '../../lib/primary/primary.js';
import { SmallQemu } from './primary-qemu.js';

// The last thing that can fail before the VM is attached to for good.
vi.mock('../../lib/primary/page-disks.js', async (original) => ({
  ...(await original<object>()),
  pageDisksOf: () => Promise.reject(new Error('made to fail')),
}));

let runDir = '';
let qmpPath = '';
let qemu: SmallQemu;

beforeAll(async () => {
  runDir = mkdtempSync('/dev/shm/holdfast-start-');
  qmpPath = join(runDir, 'qmp');
  qemu = await SmallQemu.start(16, ['-qmp', `unix:${qmpPath},server=on,wait=off`]);
});
afterAll(async () => {
  await qemu.kill();
  rmSync(runDir, { recursive: true, force: true });
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

const start = () =>
  Primary.start(
    { key: Buffer.alloc(16, 1), qmp: qmpPath, runDir, backup: '127.0.0.1:1', name: 'start', gate: 'none' },
    {
      afterRound: () => () => 'stop-and-copy',
      resumeEarly: 'never',
      earlyWaitMs: 1_000,
      skipDiskPages: true,
    },
  );

test('the tracker that it made is taken out', async () => {
  await expect(start()).rejects.toThrow('made to fail');
  expect(qemu.userfaults()).toBe(0);
});

test('the tracker that another one left stays: it says that the VM may have been handed over', async () => {
  const left = new native.PrimaryEngine({
    pid: qemu.pid,
    ram: qemu.ram,
    stagingBytesMax: 16 << 20,
    strategy: 'copy',
    copyThreads: 1,
  });
  await left.attach();
  await left.close();
  await expect(start()).rejects.toThrow('made to fail');
  expect(qemu.userfaults()).toBe(1);
});
