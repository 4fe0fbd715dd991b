/** The lab's guest with a disk, without Holdfast: its loads and checks work, and notice damage. */

import { open } from 'node:fs/promises';
import { afterEach, expect, test } from 'vitest';
import { checkImage, createDisk, diskPath } from './lab/disk.js';
import { guestArgs, guestReadyText } from './lab/guest.js';
import { checkDiskchurn, guestOutput } from './lab/guest-shell.js';
import { Lab } from './lab/lab.js';
import { RedisLoad } from './lab/redis-load-process.js';
import { SqliteLoad } from './lab/sqlite-load-process.js';
import { countInFile, waitFor, waitForText } from './lab/wait.js';

let lab: Lab | undefined;
afterEach(async () => {
  await lab?.close();
  lab = undefined;
});

/** Overwrites a part of every 4 KiB block of an image that looks so; returns how many there were. */
const damageBlocks = async (path: string, looksSo: (block: Buffer) => boolean): Promise<number> => {
  const file = await open(path, 'r+');
  let damaged = 0;
  try {
    const { size } = await file.stat();
    const block = Buffer.alloc(4096);
    for (let at = 0; at < size; at += block.length) {
      await file.read(block, 0, block.length, at);
      if (!looksSo(block)) continue;
      await file.write(Buffer.alloc(64, 0xa5), 0, 64, at + 2048);
      damaged += 1;
    }
  } finally {
    await file.close();
  }
  return damaged;
};

test('redis, SQLite and files on a disk survive the loss of the VM, and damage is noticed', {
  timeout: 120_000,
}, async () => {
  lab = await Lab.create({ tag: 'disk' });
  const { client } = lab;
  const path = await createDisk(diskPath(lab, 'a'), 64);
  const serialPath = lab.path('serial.log');
  const options = { serialPath, ramMb: 192, workload: 'disk', disks: [{ path }] } as const;
  const boot = { ...options, mountOptions: 'discard', churnStepsPerSecond: 30 };
  const qemu = await lab.host('a').spawn('qemu-system-x86_64', guestArgs(boot));
  await waitForText(serialPath, guestReadyText);

  const redis = await RedisLoad.start(client, { connections: 2 });
  const sqlite = await SqliteLoad.start(client);
  await Promise.all([redis.advance(50), sqlite.advance(60)]);
  const churn = await waitFor('trims', async () => {
    const report = await checkDiskchurn(client);
    return report.trims > 0 && report;
  });
  expect(churn.errors).toBe(0);
  expect(churn.checked).toBeGreaterThan(0);
  expect(churn.fsyncs).toBeGreaterThan(0);
  const [counted, inserted] = [await redis.stop(), await sqlite.stop()];
  expect(counted).toMatchObject({ ok: true, lost: 0 });
  expect(inserted).toMatchObject({ ok: true, lost: 0, violations: [] });
  expect(inserted.acknowledged).toBeGreaterThanOrEqual(60);
  // Rows were deleted, too.
  expect(inserted.found!.rows).toBeLessThan(inserted.acknowledged);
  // What redis acknowledged is in its file, not only in its memory.
  const fileText = await guestOutput(
    client,
    'echo 3 > /proc/sys/vm/drop_caches; cat /disk/redis/appendonlydir/*.aof',
  );
  const increments = fileText.split('\r\n').filter((line) => line.toUpperCase() === 'INCR').length;
  expect(increments).toBeGreaterThanOrEqual(counted.acknowledged);
  expect(countInFile(serialPath, 'ERROR')).toBe(0);

  // Blocks of its files change on the disk, behind the guest's back.
  const stampedBlock = (block: Buffer): boolean => {
    const [sequence, first, second] = [0, 8, 16].map((at) => block.readBigUInt64LE(at));
    return sequence !== 0n && BigInt.asUintN(64, second! - first!) === sequence;
  };
  expect(await damageBlocks(path, stampedBlock)).toBeGreaterThan(0);
  await waitFor('diskchurn to notice', async () => (await checkDiskchurn(client)).errors > 0);

  await qemu.kill();
  const image = await checkImage(lab, path);
  expect(image.report).toContain('(0)');
  expect(image).toMatchObject({ clean: true, rows: inserted.found });
  // Pages of the database (leaves of a table), then the file system's own structures.
  const leafPage = (block: Buffer): boolean =>
    block[0] === 13 && block.readUInt16BE(3) - 1 < 50 && block.readUInt16BE(5) - 64 < 1900 && block[7]! <= 60;
  expect(await damageBlocks(path, leafPage)).toBeGreaterThan(0);
  await expect(checkImage(lab, path)).rejects.toThrow(/database/);
  const file = await open(path, 'r+');
  await file.write(Buffer.alloc(4096, 0xff), 0, 4096, 16 * 4096);
  await file.close();
  const spoilt = await checkImage(lab, path).catch((error: Error) => error);
  expect(spoilt instanceof Error || !spoilt.clean).toBe(true);
});
