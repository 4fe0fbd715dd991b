/** Disks from disk servers to a store: epochs of RAM and disks, committed as one, over loopback. */

import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  type DiskStore,
  type DiskStoreEvent,
  native,
  type PeerDisk,
  type PrimaryDisk,
} from '../../lib/native.js';
import { type Control, DiskServerLab, loopDevice, MiB } from './disk-server-lab.js';
import { Pair } from './primary-pair.js';
import { SmallQemu, until } from './primary-qemu.js';

const zeroId = '0'.repeat(32);
const syncIds = { first: '1'.repeat(32), second: '2'.repeat(32) };

interface Served {
  readonly server: DiskServerLab;
  readonly control: Control;
  readonly disk: PrimaryDisk;
}

let qemu: SmallQemu;
let served: Served[];
let directory: string;
let store: DiskStore;
let events: DiskStoreEvent[];
let pair: Pair;

const replicaPath = (id: string): string => join(directory, id, 'image');

const serve = async (id: string, imageMiB: number, image?: string): Promise<Served> => {
  const server = await DiskServerLab.start(image === undefined ? { imageMiB } : { image });
  const { image: imagePath, mapPath, ringPath } = server;
  const disk = { id, imagePath, mapPath, ringPath, imageBytes: imageMiB * MiB };
  return { server, control: await server.control(), disk };
};

const openStore = async (): Promise<void> => {
  store = new native.DiskStore({
    disks: served.map(({ disk: { id, imageBytes } }) => ({
      ...{ id, imageBytes, imagePath: replicaPath(id), metaDir: join(directory, id) },
      journalBytes: 16 * MiB,
    })),
    onEvent: (event) => events.push(event),
  });
  await store.open();
};

/** A connection with its disks known, and not synchronised. */
const connect = async (): Promise<readonly PeerDisk[]> => {
  pair = new Pair(qemu, { disks: served.map(({ disk }) => disk), store });
  await pair.engine.attach();
  await pair.connect();
  return await pair.engine.connectDisks();
};

const ask = async (request: 'logStart' | 'logStop'): Promise<void> => {
  for (const { control } of served) expect(await control.ask(request)).toMatchObject({ error: 0 });
};

const plans = (what: 'all' | 'changed') => served.map(({ disk: { id } }) => ({ id, what }));

// Not the contents themselves: they are millions of elements to expect().
const digest = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');
const contents = (): readonly string[] => served.map(({ disk }) => digest(disk.imagePath));
const replicas = (): readonly string[] => served.map(({ disk: { id } }) => digest(replicaPath(id)));

beforeEach(async () => {
  events = [];
  directory = mkdtempSync(join(tmpdir(), 'holdfast-replica-'));
  qemu = await SmallQemu.start();
  await qemu.qmp('stop');
  served = [await serve('boot', 8), await serve('data', 3)];
  await served[0]!.server.io(['write -P 0x11 1M 2M']);
  for (const { disk } of served) mkdirSync(join(directory, disk.id));
  await openStore();
});

afterEach(async () => {
  await pair?.close();
  await store.close();
  for (const { server } of served) await server[Symbol.asyncDispose]();
  await qemu.kill();
  rmSync(directory, { recursive: true, force: true });
});

describe('disks in the checkpoint', () => {
  test('base, log and boundaries: the replica is the epoch that was committed last', async () => {
    const found = await connect();
    expect(found).toMatchObject([
      { id: 'boot', syncId: zeroId, fresh: true, localTrusted: true },
      { id: 'data', syncId: zeroId, fresh: true, localTrusted: true },
    ]);
    await expect(pair.epoch(1, 'staged')).rejects.toMatchObject({ code: 'HOLDFAST_E_PROTOCOL' });
    await pair.close();

    await connect();
    await ask('logStart');
    await served[1]!.server.io(['write -P 0x22 0 64k']);
    const synced = await pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first });
    expect(synced.bytes + synced.holeBytes).toBe(11 * MiB);
    expect(synced.bytes).toBeLessThan(3 * MiB);
    expect(pair.engine.diskProgress()).toBeUndefined();

    await served[0]!.server.io(['write -P 0x33 5M 1M', 'discard 1M 64k', 'write -z 2M 64k']);
    const first = await pair.epoch(1, 'staged');
    expect(first.diskBytes).toBeGreaterThan(MiB);
    await served[1]!.server.io(['write -P 0x44 2M 512', 'flush']);
    qemu.writePages([3], 1);
    const atBoundary = contents();
    const captured = await pair.engine.capture({ epoch: 2, mode: 'staged' });
    await served[1]!.server.io(['write -P 0x55 0 1M']);
    const sent = await pair.send(2);
    expect(captured.diskBytes).toBeLessThan(MiB);
    expect(sent.diskBytes).toBe(captured.diskBytes);

    const fenced = await pair.receiver.fence();
    expect(fenced.epoch).toBe(2);
    expect(replicas()).toEqual(atBoundary);
    expect(events.filter(({ type }) => type === 'fault')).toEqual([]);
    const stats = pair.engine.diskStats();
    expect(stats.map(({ copiedBytes }) => copiedBytes)).toEqual([0, 0]);
  });

  test('an epoch that is given up leaves its writes to the next', async () => {
    await connect();
    await ask('logStart');
    await pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first });
    await pair.epoch(1, 'staged');
    await served[0]!.server.io(['write -P 0x66 0 4k']);
    const given = await pair.engine.capture({ epoch: 2, mode: 'staged' });
    await pair.engine.abort(2);
    await served[0]!.server.io(['write -P 0x77 4k 4k']);
    const again = await pair.epoch(2, 'staged');
    expect(again.diskBytes).toBe(2 * given.diskBytes);
    const atBoundary = contents();
    await pair.receiver.fence();
    expect(replicas()).toEqual(atBoundary);
  });

  test('what is written while nobody is connected travels as changed blocks', async () => {
    await connect();
    await ask('logStart');
    await pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first });
    await pair.epoch(1, 'staged');
    for (const { control } of served) {
      await control.ask('syncIdSet', 0, Buffer.from(syncIds.first, 'hex'));
      await control.ask('mapClear');
    }
    await pair.close();
    await ask('logStop');
    await served[0]!.server.io(['write -P 0x12 7M 100k']);
    await served[0]!.server.io(['write -P 0x13 1M 1M']);

    const found = await connect();
    expect(found).toMatchObject([
      { id: 'boot', syncId: syncIds.first, localSyncId: syncIds.first, trusted: true, localTrusted: true },
      { id: 'data', syncId: syncIds.first, localSyncId: syncIds.first, localMarkedBytes: 0 },
    ]);
    await ask('logStart');
    const synced = await pair.engine.syncDisks({ plans: plans('changed'), syncId: syncIds.second });
    expect(synced.bytes + synced.holeBytes).toBeGreaterThan(MiB);
    await pair.epoch(2, 'staged');
    const atBoundary = contents();
    expect((await pair.receiver.fence()).epoch).toBe(2);
    expect(replicas()).toEqual(atBoundary);
  });

  test('a block device knows no holes: what is zero does not travel', async (context) => {
    const file = join(directory, 'device');
    writeFileSync(file, '');
    truncateSync(file, 3 * MiB);
    const device = loopDevice(file);
    if (device === undefined) return context.skip('no loop device can be made here');
    try {
      const other = served[1]!;
      served[1] = await serve('data', 3, device.path);
      await other.server[Symbol.asyncDispose]();
      await served[1].server.io(['write -P 1 1M 100k']);
      await connect();
      await ask('logStart');
      const { bytes } = await pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first });
      expect(bytes).toBe(2 * MiB + 2 * 64 * 1024);
      await served[1].server.io(['write -P 2 2M 64k', 'write -z 1M 4k', 'flush']);
      await pair.epoch(1, 'staged');
      const atBoundary = contents();
      await pair.receiver.fence();
      expect(replicas()).toEqual(atBoundary);
    } finally {
      await served[1]?.server.end();
      device.remove();
    }
  });

  test('a disk server that died ends the connection, and no epoch', async () => {
    await connect();
    await ask('logStart');
    await pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first });
    await pair.epoch(1, 'staged');
    await served[1]!.control.ask('logStop');
    await expect(pair.epoch(2, 'staged')).rejects.toMatchObject({
      code: 'HOLDFAST_E_PEER_LOST',
      message: expect.stringContaining('no longer logs') as string,
    });
    await until('the end of the connection', () => pair.events.some(({ type }) => type === 'disconnected'));
    expect((await pair.receiver.fence()).epoch).toBe(1);
    expect(pair.engine.diskStats()).toEqual([]);
  });

  test('an end in the middle of a copy: disconnect() and close()', async () => {
    for (const end of ['disconnect', 'close'] as const) {
      await connect();
      await ask('logStart');
      const outcome = pair.engine.syncDisks({ plans: plans('all'), syncId: syncIds.first }).then(
        () => 'synced',
        (error: { code: string }) => error.code,
      );
      await pair.engine[end]();
      expect(['synced', 'HOLDFAST_E_CANCELLED']).toContain(await outcome);
      expect(pair.engine.diskStats()).toEqual([]);
      await pair.receiver.closeSession();
      await ask('logStop');
      if (end === 'disconnect') await pair.close();
    }
  });

  test('wrong arguments are told at once', async () => {
    await connect();
    const engine = pair.engine;
    expect(() => engine.syncDisks({ plans: plans('all'), syncId: 'abc' })).toThrow(/syncId/);
    expect(() =>
      engine.syncDisks({ plans: [{ id: 'boot', what: 'some' as 'all' }], syncId: zeroId }),
    ).toThrow(/what/);
    await expect(engine.syncDisks({ plans: plans('all'), syncId: zeroId })).rejects.toMatchObject({
      code: 'HOLDFAST_E_PROTOCOL',
    });
    await expect(engine.connectDisks()).rejects.toMatchObject({ code: 'HOLDFAST_E_LIMIT' });
  });
});
