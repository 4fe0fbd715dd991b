/**
 * Errors and delays by nbdkit's own filters. Before our plugin (as HOLDFAST_NBDKIT puts them) they answer, or
 * hold back, what the plugin never sees: that shows what clients and QEMU make of it, and that nothing of it gets
 * into the log. What our own code does about a disk that fails or is slow needs them below it: there the image
 * is a file that nbdfuse makes of another nbdkit (filtered-image.ts).
 */

import { chmodSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { randomSource } from '../campaign/random.js';
import { waitFor } from '../lab/wait.js';
import { blockBytes, DiskServerLab, flag, loopDevice, MiB } from './disk-server-lab.js';
import { FilteredImage } from './filtered-image.js';
import { SmallQemu } from './primary-qemu.js';

const IMAGE_BYTES = 16 * MiB;
const IO_ERROR = /Input\/output error/;
const NO_FUSE = 'no file system of user space can be mounted here';

/** Commands of one client, of up to 40 KiB each: many are under way at a time, and meet those of others. */
const randomCommands = (seed: number, count: number, unit = 512, unitsMax = 80): string[] => {
  const random = randomSource(seed);
  const below = (bound: number): number => Math.floor(random() * bound);
  return Array.from({ length: count }, () => {
    const length = unit * (1 + below(unitsMax));
    const place = `${unit * below((IMAGE_BYTES - length) / unit)} ${length}`;
    const kind = below(10);
    if (kind === 0) return `discard ${place}`;
    if (kind === 1) return `aio_write -z -u ${place}`;
    return `aio_write -P ${1 + below(255)} ${place}`;
  });
};

const differingBlocks = (one: Buffer, other: Buffer): number[] =>
  Array.from({ length: IMAGE_BYTES / blockBytes }, (_, block) => block).filter((block) => {
    const range = [block * blockBytes, (block + 1) * blockBytes] as const;
    return !one.subarray(...range).equals(other.subarray(...range));
  });

/** What the log makes of an empty disk. */
const replayed = (lab: DiskServerLab): Buffer =>
  DiskServerLab.replay(lab.records(), Buffer.alloc(IMAGE_BYTES));

const startLog = async (lab: DiskServerLab) => {
  const control = await lab.control();
  await control.ask('mapClear');
  await control.ask('logStart');
  return control;
};

test('01 errors below, at random: who asked is told, image and log stay alike, then all goes on', async (context) => {
  await using image = await FilteredImage.make({
    ...{ bytes: IMAGE_BYTES, filters: ['error'] },
    settings: (trigger) => ['error=EIO', 'error-rate=10%', `error-file=${trigger}`],
  });
  if (image === undefined) return context.skip(NO_FUSE);
  await using lab = await DiskServerLab.start({ image: image.path, ringMiB: 64 });
  const control = await startLog(lab);
  image.fail();
  const clients = (unit: number, unitsMax: number, seed = 0) =>
    Promise.all([1, 2, 3].map((of) => lab.io(randomCommands(seed + of, 150, unit, unitsMax), false)));
  expect((await clients(4096, 1)).join('')).toMatch(IO_ERROR);
  const { errors, flags } = await control.stats();
  expect(errors).toBeGreaterThan(0);
  expect(flags).toBe(flag.active | flag.logging);
  // A page fails as a whole: neither image nor log has it.
  expect(differingBlocks(replayed(lab), readFileSync(image.bytesPath))).toEqual([]);

  // What is larger fails half way: that is in no log, but its blocks stay marked, whatever is forgotten. Where
  // later writes cover all that, more are tried.
  let differing: number[] = [];
  for (let seed = 1; differing.length === 0 && seed <= 5; seed += 1) {
    expect((await clients(512, 80, 10 * seed)).join('')).toMatch(IO_ERROR);
    differing = differingBlocks(replayed(lab), readFileSync(image.bytesPath));
  }
  image.heal();
  for (let window = 0; window < 2; window += 1) await control.ask('mapRotate');
  const { marked } = lab.readMap();
  expect(marked.length).toBeGreaterThan(0);
  expect(differing.length).toBeGreaterThan(0);
  expect(differing.filter((block) => !marked.includes(block))).toEqual([]);

  await lab.io(['write -P 9 0 16M', 'flush', 'read -P 9 0 16M']);
  expect(differingBlocks(replayed(lab), readFileSync(image.bytesPath))).toEqual([]);
});

test('02 a flush that was answered early, and then fails, is told with the next one, until another server', async (context) => {
  // The cache takes the writes; what it cannot put away at a flush, it says then.
  await using image = await FilteredImage.make({
    ...{ bytes: IMAGE_BYTES, filters: ['cache', 'error'] },
    settings: (trigger) => ['error-pwrite=EIO', 'error-pwrite-rate=100%', `error-pwrite-file=${trigger}`],
  });
  if (image === undefined) return context.skip(NO_FUSE);
  await using lab = await DiskServerLab.start({ image: image.path });
  const control = await startLog(lab);
  image.fail();
  lab.setStopPending();
  await lab.io(['write -P 1 0 64k', 'flush']);
  await waitFor('the flush to fail', async () => ((await control.stats()).flags & flag.fault) !== 0);
  await control.ask('logStop'); // takes the stop back
  // qemu-io says nothing of a flush that fails, but of one with a write.
  expect(await lab.io(['write -f -P 2 64k 64k'], false)).toMatch(IO_ERROR);
  image.heal();
  await lab.io(['write -P 2 64k 64k', 'read -P 1 0 64k', 'read -P 2 64k 64k']);
  expect(await lab.io(['write -f -P 2 64k 64k'], false)).toMatch(IO_ERROR);
  expect(lab.readMap().fault).toBe(true);

  await lab.end();
  await lab.startServer();
  expect(lab.readMap().marked).toHaveLength(IMAGE_BYTES / blockBytes);
  await lab.io(['write -f -P 3 128k 64k']);
  const bytes = readFileSync(image.bytesPath);
  expect([bytes[0], bytes[64 << 10], bytes[128 << 10]]).toEqual([1, 2, 3]);
});

test('03 a slow flush that is owed: no write gets into image and log before it is paid', async (context) => {
  await using image = await FilteredImage.make({
    ...{ bytes: IMAGE_BYTES, filters: ['cache', 'delay'] },
    settings: () => ['delay-write=300ms'],
  });
  if (image === undefined) return context.skip(NO_FUSE);
  // A file of FUSE makes writes wait for a flush by itself; a block device does not.
  const device = loopDevice(image.path);
  if (device === undefined) return context.skip('no loop device can be made here');
  try {
    await using lab = await DiskServerLab.start({ image: device.path });
    const control = await startLog(lab);
    lab.setStopPending();
    await lab.io(['write -P 1 0 64k', 'flush']);
    const { head, flushesOwed } = lab;
    let isWritten = false;
    const writer = lab.io(['write -P 2 64k 64k']).then(() => {
      isWritten = true;
    });
    while (!isWritten) {
      const seen = lab.head; // first: what is paid afterwards may not have been then
      if (lab.flushesPaid < flushesOwed) expect(seen).toBe(head);
      await control.stats();
    }
    await writer;
    expect(lab.flushesPaid).toBeGreaterThanOrEqual(flushesOwed);
    await lab.io(['read -P 1 0 64k', 'read -P 2 64k 64k']);
    expect((await control.stats()).errors).toBe(0);
  } finally {
    device.remove();
  }
});

test('04 a server that is killed amid slow writes has marked what image and log may not both have', async (context) => {
  await using image = await FilteredImage.make({
    ...{ bytes: IMAGE_BYTES, filters: ['delay'] },
    settings: () => ['wdelay=20ms'],
  });
  if (image === undefined) return context.skip(NO_FUSE);
  await using lab = await DiskServerLab.start({ image: image.path, ringMiB: 64 });
  const control = await startLog(lab);
  const clients = [1, 2, 3].map((seed) => lab.io(randomCommands(seed, 150), false));
  await waitFor('writes', async () => (await control.stats()).writes >= 40);
  // All that is in the log is forgotten; what is under way is not.
  for (let window = 0; window < 2; window += 1) await control.ask('mapRotate');
  await lab.end('SIGKILL');
  await Promise.all(clients);
  const { marked } = lab.readMap();
  const differing = differingBlocks(replayed(lab), readFileSync(image.bytesPath));
  expect(differing.filter((block) => !marked.includes(block))).toEqual([]);
  expect(marked.length).toBeLessThan(IMAGE_BYTES / blockBytes);
  await lab.startServer();
  await lab.io(['write -P 5 0 1M', 'flush', 'read -P 5 0 1M']);
});

test('05 filters before the plugin: what they refuse nobody logs, and a stop waits for what they hold back', async () => {
  await using place = await DiskServerLab.start();
  const trigger = join(place.directory, 'trigger');
  const nbdkit = join(place.directory, 'nbdkit-with-filters');
  const settings = `error-pwrite=ENOSPC error-pwrite-rate=20% error-pwrite-file=${trigger} wdelay=5ms`;
  writeFileSync(nbdkit, `#!/bin/sh\nexec nbdkit --filter=error --filter=delay "$@" ${settings}\n`);
  chmodSync(nbdkit, 0o755);
  await using lab = await DiskServerLab.start({ nbdkit, imageMiB: IMAGE_BYTES / MiB, ringMiB: 64 });
  const control = await startLog(lab);
  writeFileSync(trigger, '');
  const said = await Promise.all([1, 2].map((seed) => lab.io(randomCommands(seed, 100), false)));
  expect(said.join('')).toMatch(/No space left/);
  rmSync(trigger);
  const { errors, writes } = await control.stats();
  expect(errors).toBe(0);
  expect(lab.records().filter(({ kind }) => kind === 'write')).toHaveLength(writes);
  expect(differingBlocks(replayed(lab), readFileSync(lab.image))).toEqual([]);

  const blockdev = {
    ...{ 'node-name': 'disk0', driver: 'nbd', 'reconnect-delay': 10 },
    server: { type: 'unix', path: lab.socketPath },
  };
  const qemu = await SmallQemu.start(64, [
    ...['-blockdev', JSON.stringify(blockdev), '-device', 'virtio-blk-pci,drive=disk0,id=v0'],
  ]);
  try {
    lab.setStopPending();
    for (let index = 0; index < 8; index += 1) {
      const command = `aio_write -P 3 ${index * 65_536} 64k`;
      await qemu.qmp('human-monitor-command', {
        'command-line': `qemu-io -d /machine/peripheral/v0/virtio-backend "${command}"`,
      });
    }
    await qemu.qmp('stop');
    expect((await control.stats()).writes).toBe(writes + 8);
    expect(differingBlocks(replayed(lab), readFileSync(lab.image))).toEqual([]);
  } finally {
    await qemu.kill();
  }
});
