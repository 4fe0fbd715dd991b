/** The backup's disks as TypeScript sees them: what open() says, what it refuses, and what is left behind. */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type DiskStore, native, type ReplicaDiskOptions } from '../../lib/native.js';

const MiB = 2 ** 20;

let directory: string;
let stores: DiskStore[];

beforeEach(() => {
  directory = mkdtempSync('/dev/shm/holdfast-disk-store-');
  stores = [];
});

afterEach(async () => {
  for (const store of stores) await store.close();
  rmSync(directory, { recursive: true, force: true });
});

const disk = (id: string, more: Partial<ReplicaDiskOptions> = {}): ReplicaDiskOptions => {
  const metaDir = join(directory, id);
  mkdirSync(metaDir, { recursive: true });
  return { id, metaDir, imagePath: `${metaDir}.img`, imageBytes: 3 * MiB, journalBytes: 8 * MiB, ...more };
};

const storeOf = (...disks: readonly ReplicaDiskOptions[]): DiskStore => {
  const store = new native.DiskStore({ disks, onEvent: () => {} });
  stores.push(store);
  return store;
};

test('01 new images are sparse, known the next time, and nothing stays open', async () => {
  const store = storeOf(disk('a'), disk('b', { imageBytes: MiB }));
  expect(store.stats()).toEqual([]);
  expect(await store.open()).toMatchObject([
    { id: 'a', fresh: true, syncId: '0'.repeat(32), trusted: true, committedEpoch: 0, recovered: false },
    { id: 'b', fresh: true, markedBytes: MiB },
  ]);
  const { size, blocks } = statSync(join(directory, 'a.img'));
  expect({ size, blocks }).toEqual({ size: 3 * MiB, blocks: 0 });
  expect(store.stats()).toMatchObject([
    { id: 'a', journalBytes: 8 * MiB, journalUsedBytes: 0, durableEpoch: 0, merging: false },
    { id: 'b' },
  ]);
  expect(await store.open()).toMatchObject([{ id: 'a' }, { id: 'b' }]);
  await store.close();
  await expect(store.open()).rejects.toMatchObject({ code: 'HOLDFAST_E_CANCELLED' });
  expect(await storeOf(disk('a'), disk('b', { imageBytes: MiB })).open()).toMatchObject([
    { fresh: true },
    { fresh: true },
  ]);
  for (const each of stores) await each.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

test("02 what is somebody else's, of another size, in use or too small is refused, and not touched", async () => {
  writeFileSync(join(directory, 'a.img'), 'precious');
  truncateSync(join(directory, 'a.img'), 3 * MiB);
  await expect(storeOf(disk('a')).open()).rejects.toMatchObject({
    code: 'HOLDFAST_E_DISK_FOREIGN',
    message: expect.stringContaining('a.img'),
  });
  await expect(storeOf(disk('a', { imageBytes: 4 * MiB })).open()).rejects.toMatchObject({
    code: 'HOLDFAST_E_DISK',
    message: expect.stringContaining('3145728 bytes'),
  });
  expect(readFileSync(join(directory, 'a.img')).subarray(0, 8).toString()).toBe('precious');
  const adopting = storeOf(disk('a', { adopt: true }));
  expect(await adopting.open()).toMatchObject([{ fresh: false, markedBytes: 3 * MiB }]);
  await expect(storeOf(disk('a')).open()).rejects.toMatchObject({
    code: 'HOLDFAST_E_DISK',
    message: expect.stringContaining('in use'),
  });
  await expect(storeOf(disk('b', { journalBytes: MiB })).open()).rejects.toMatchObject({
    code: 'HOLDFAST_E_LIMIT',
  });
  await expect(storeOf(disk('c', { metaDir: '/nonexistent' })).open()).rejects.toMatchObject({
    code: 'HOLDFAST_E_SYSCALL',
    errno: 2,
  });
});

test('03 retired, the images are let go, and the store has nothing any more', async () => {
  const store = storeOf(disk('a'));
  await expect(store.retire()).rejects.toMatchObject({ code: 'HOLDFAST_E_DISK' });
  await store.open();
  await store.retire();
  await store.retire();
  await expect(store.open()).rejects.toMatchObject({ code: 'HOLDFAST_E_DISK' });
  // The image was a VM's since: what it is nobody here knows.
  expect(await storeOf(disk('a')).open()).toMatchObject([{ committedEpoch: 0, recovered: false }]);
});

test('04 wrong arguments are a TypeError', async () => {
  const wrong = (options: unknown) => () => new native.DiskStore(options as never);
  expect(wrong({ disks: [] })).toThrow(TypeError);
  expect(wrong({ disks: {}, onEvent: () => {} })).toThrow(TypeError);
  expect(wrong({ disks: [{ id: 'a' }], onEvent: () => {} })).toThrow(TypeError);
  const receiver = new native.Receiver({ host: '127.0.0.1', port: 0, onEvent: () => {} });
  const session = {
    token: new Uint8Array(32),
    ramPath: join(directory, 'ram'),
    ramBytes: MiB,
    pageSize: 4096,
    epochBytesMax: MiB,
    deviceBytesMax: MiB,
  };
  expect(() => receiver.openSession({ ...session, disks: receiver as never })).toThrow(TypeError);
  await receiver.close();
});
