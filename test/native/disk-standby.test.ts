/** The servers of a standby that has become the VM: they stay active, whoever starts them again. */

import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { DiskControl } from '../../lib/disk/disk-control.js';
import { diskServerFiles, readDiskServerRecord } from '../../lib/disk/disk-files.js';
import { StandbyDisks } from '../../lib/disk/standby-disks.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { identifyProcess } from '../../lib/vm/process.js';
import { LabProcess } from '../lab/process.js';
import { waitFor } from '../lab/wait.js';

test('a server that is started again after activate() takes writes, though its record was lost', async () => {
  const dir = mkdtempSync('/dev/shm/holdfast-standby-');
  const imagePath = join(dir, 'image');
  const metaDir = join(dir, 'meta');
  writeFileSync(imagePath, '');
  truncateSync(imagePath, 1 << 20);
  mkdirSync(metaDir);
  const vm = await LabProcess.start('sleep', ['1000']);
  const disks = new StandbyDisks({
    disks: [{ id: 'vda', imagePath, imageBytes: 1 << 20, metaDir }],
    ...{ dir, launch: 1, log: NOTHING_LOGGED },
  });
  const [socket] = disks.sockets;
  const files = diskServerFiles(socket!);
  /** Whether the server takes writes that has taken the place of `killed`. */
  const isNextActive = async (killed: number): Promise<boolean> => {
    const { isActive } = await waitFor('another server', async () => {
      const record = await readDiskServerRecord(socket!);
      if (record === undefined || record.process.pid === killed) return undefined;
      await using control = await DiskControl.connect(files.control).catch(() => undefined);
      return control && { isActive: control.isActive };
    });
    return isActive;
  };
  try {
    await disks.start();
    await disks.bind(await identifyProcess(vm.pid));
    const first = (await readDiskServerRecord(socket!))!;
    expect(first.mode).toBe('standby');
    process.kill(first.process.pid, 'SIGKILL');
    expect(await isNextActive(first.process.pid)).toBe(false);

    await disks.activate();
    const second = (await readDiskServerRecord(socket!))!;
    expect(second.mode).toBe('active');
    rmSync(files.record);
    process.kill(second.process.pid, 'SIGKILL');
    expect(await isNextActive(second.process.pid)).toBe(true);
    expect((await readDiskServerRecord(socket!))?.mode).toBe('active');
  } finally {
    await vm.kill();
    await disks.end();
    rmSync(dir, { recursive: true, force: true });
  }
});
