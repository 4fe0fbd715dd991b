/** The disk server as QEMU and the daemon meet it: a real nbdkit, real clients, the control socket, the ring. */

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { DiskControl } from '../../lib/disk/disk-control.js';
import { type DiskServerSpec, diskServerFiles, runningDiskServer } from '../../lib/disk/disk-files.js';
import { endDiskServer } from '../../lib/disk/disk-process.js';
import { packageRoot } from '../../lib/package-root.js';
import { execToEnd, LabProcess } from '../lab/process.js';
import { waitFor } from '../lab/wait.js';
import { blockBytes, Control, DiskServerLab, flag, loopDevice, MiB, plugin } from './disk-server-lab.js';
import { SmallQemu } from './primary-qemu.js';

const { ENOSPC, EAGAIN, EBUSY, ESRCH } = constants.errno;

test('01 what clients write is read back; trims and zeros are holes; what it can do is said', async () => {
  await using lab = await DiskServerLab.start();
  await lab.io([
    ...[
      'write -P 5 0 2M',
      'write -z 0 64k',
      'write -z -u 64k 64k',
      'discard 1M 512k',
      'write -f -P 7 4k 512',
    ],
    ...['flush', 'read -P 0 0 4k', 'read -P 7 4k 512', 'read -P 0 64k 64k', 'read -P 5 128k 896k'],
    ...['read -P 0 1M 512k', 'read -P 5 1536k 512k', 'write -P 9 67108352 512', 'read -P 9 67108352 512'],
  ]);
  expect(statSync(lab.image).blocks * 512).toBeLessThan(2 * MiB);
  const info = JSON.parse((await execToEnd('nbdinfo', ['--json', lab.uri])).stdout);
  expect(info.exports[0]).toMatchObject({
    'export-size': 64 * MiB,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    can_fast_zero: true,
    is_read_only: false,
  });
  const { stdout: extents } = await execToEnd('nbdinfo', ['--map', lab.uri]);
  expect(extents).toMatch(/^\s*131072\s+917504\s+0\s+data/m);
  expect(extents).toMatch(/^\s*1048576\s+524288\s+3\s+hole,zero/m);
  const control = await lab.control();
  expect(await control.stats()).toMatchObject({ errors: 0, flags: flag.active, imageBytes: 64 * MiB });
});

/** Commands of one client: close together, so that they meet those of others. */
const randomCommands = (seed: number, count: number): string[] => {
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  return Array.from({ length: count }, () => {
    const place = `${random(4096) * 512} ${(1 + random(80)) * 512}`;
    const kind = random(10);
    if (kind === 0) return `discard ${place}`;
    if (kind === 1) return `aio_write -z ${random(2) === 0 ? '-u ' : ''}${place}`;
    if (kind === 2) return 'aio_flush';
    return `aio_write ${random(20) === 0 ? '-f ' : ''}-P ${random(256)} ${place}`;
  });
};

test('02 the log of four clients that overlap, replayed on a copy, is the image', async () => {
  await using lab = await DiskServerLab.start({ imageMiB: 16, ringMiB: 128 });
  const source = join(lab.directory, 'source');
  writeFileSync(source, Buffer.alloc(4 * MiB, 'before the log. '));
  await execToEnd('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, lab.uri]);
  const control = await lab.control();
  await control.ask('mapClear');
  const disk = readFileSync(lab.image);
  expect(await control.ask('logStart')).toEqual({ error: 0, value: 0 });
  await Promise.all([1, 2, 3, 4].map((seed) => lab.io([...randomCommands(seed, 250), 'aio_flush'])));
  // And one client with four connections: 8 MiB over everything from 4 MiB on.
  writeFileSync(source, Buffer.alloc(12 * MiB, 'several connections '));
  await execToEnd('nbdcopy', ['--connections=4', '--flush', source, lab.uri]);
  await lab.io(randomCommands(5, 100));
  const records = lab.records();
  expect(new Set(records.map(({ kind }) => kind))).toEqual(new Set(['write', 'zero', 'trim']));
  const image = readFileSync(lab.image);
  expect(DiskServerLab.replay(records, disk).equals(image)).toBe(true);
  // Every block of which a record tells is marked, and no other.
  const written = new Set(
    records.flatMap(({ offset, length }) => {
      const first = Math.floor(offset / blockBytes);
      return Array.from(
        { length: Math.floor((offset + length - 1) / blockBytes) - first + 1 },
        (_, index) => first + index,
      );
    }),
  );
  expect(lab.readMap().marked).toEqual([...written].sort((a, b) => a - b));
  const stats = await control.stats();
  expect(stats).toMatchObject({ stalls: 0, errors: 0, loggedBytes: lab.head, markedBlocks: written.size });
});

test('03 a writer that finds no room waits, for the tail or the end of the log; readers do not', async () => {
  await using lab = await DiskServerLab.start({ ringMiB: 4 });
  const control = await lab.control();
  await control.ask('logStart');
  const stalled = () =>
    waitFor('the writer to wait', async () => ((await control.stats()).flags & flag.stalled) !== 0);
  const writer = lab.io(['write -P 3 0 6M']);
  await stalled();
  await lab.io(['read -P 0 32M 1M']);
  const before = lab.head;
  expect(before).toBeLessThanOrEqual(2 * MiB);
  await lab.free(before);
  await waitFor('the head to move', () => lab.head > before);
  await stalled();
  await control.ask('logStop');
  await writer;
  expect((await control.stats()).stalls).toBeGreaterThanOrEqual(2);
  expect(lab.head).toBeLessThan(6 * MiB);

  // The daemon dies: nobody ships the log.
  await control.ask('logStart');
  const second = lab.io(['write -P 4 0 6M', 'flush']);
  await stalled();
  control.close();
  await second;
  const next = await lab.control();
  expect(next.hello).toBe((1n << 32n) | BigInt(flag.active));
  await lab.io(['read -P 4 0 6M']);
});

test('04 a standby reads, its writers wait, and it is active only once nobody else is', async () => {
  await using lab = await DiskServerLab.start({ mode: 'standby' });
  const control = await lab.control();
  expect(control.hello).toBe(1n << 32n);
  expect((await control.ask('logStart')).error).toBe(EAGAIN);
  expect((await control.ask('mapRotate')).error).toBe(EAGAIN);
  await lab.io(['read -P 0 0 1M', 'flush']);
  expect(existsSync(lab.mapPath)).toBe(false);
  const writer = lab.io(['write -P 6 0 64k', 'flush']);
  await waitFor('the write to come', async () => (await control.stats()).writes === 1);
  await using other = await DiskServerLab.start({ image: lab.image });
  expect((await control.ask('activate')).error).toBe(EBUSY);
  await waitFor('the reason', () => /in use by another process/.test(lab.server.stderr));
  await other.end();
  expect(await control.ask('activate')).toEqual({ error: 0, value: 0 });
  await writer;
  expect((await control.stats()).flags).toBe(flag.active);
  await lab.io(['read -P 6 0 64k']);
});

test('05 a second active server of an image ends at once, and says why; so do wrong arguments', async () => {
  await using lab = await DiskServerLab.start();
  await using second = await DiskServerLab.start({ mode: 'standby' });
  const refused = async (args: readonly string[], why: RegExp) => {
    const { code, stderr } = await execToEnd('nbdkit', ['--foreground', '--unix', '-', plugin, ...args], {
      check: false,
    });
    expect(stderr).toMatch(why);
    expect(code).toBe(1);
  };
  const paths = [`image=${lab.image}`, `meta=${second.directory}/meta`, `ring=${second.ringPath}2`];
  await refused([...paths, `control=${second.directory}/control2`], /image is in use by another process/);
  await refused([...paths, `control=${lab.controlPath}`], /another process listens/);
  await refused(paths, /control=PATH is missing/);
  await refused([...paths, 'ring-bytes=5M'], /power of two/);
  await refused([...paths, 'mode=off'], /active or standby/);
  await refused(
    ['image=/nonexistent', 'meta=/tmp', `ring=${lab.shared}/x`, `control=${lab.shared}/c`],
    /No such file/,
  );
  writeFileSync(join(second.directory, 'meta/map'), 'no map');
  const control = await second.control();
  expect((await control.ask('activate')).error).toBe(117); // EUCLEAN
  await waitFor('the reason', () => /no map of a disk, or damaged/.test(second.server.stderr));
  await lab.io(['write 0 4k']);
});

test('06 flushes during a stop are answered early and paid; the loss of the daemon takes the stop back', async () => {
  await using lab = await DiskServerLab.start();
  const control = await lab.control();
  await control.ask('logStart');
  lab.setStopPending();
  await lab.io(['write -P 1 0 64k', 'flush', 'write -f -P 2 64k 64k', 'read -P 2 64k 64k']);
  // qemu-io flushes at its end, too.
  await waitFor('the flushes to be paid', () => lab.flushesPaid === lab.flushesOwed);
  expect(lab.flushesOwed).toBeGreaterThanOrEqual(2);
  const stats = await control.stats();
  expect(stats.flushesEarly).toBe(lab.flushesOwed);
  expect(stats.flushes).toBe(stats.flushesEarly);
  control.close();
  await waitFor('the log to end', () => !lab.stopPending);
  const next = await lab.control();
  await lab.io(['write -P 1 0 64k', 'flush']);
  expect((await next.stats()).flushesEarly).toBe(stats.flushesEarly);
});

test('07 a full file system is answered, counted, not logged, and its blocks stay marked', async () => {
  const directory = mkdtempSync('/dev/shm/holdfast-disk-');
  const image = join(directory, 'image');
  const before = [`mount -t tmpfs -o size=1m none ${directory}`, `truncate -s 16M ${image}`].join('\n');
  try {
    await using lab = await DiskServerLab.start({ image, before });
    const control = await lab.control();
    await control.ask('mapClear');
    await control.ask('logStart');
    expect(await lab.io(['write 0 8k', 'write 8M 4M', 'write 4k 4k'], false)).toMatch(
      /write failed: No space left on device/,
    );
    expect(await control.stats()).toMatchObject({ errors: 1, lastErrno: ENOSPC });
    expect(lab.records().map(({ offset }) => offset)).toEqual([0, 4096]);
    await control.ask('mapRotate');
    expect(await control.ask('mapRotate')).toEqual({ error: 0, value: (4 * MiB) / blockBytes });
    // There is room again: the guest's next attempt succeeds.
    await lab.io(['discard 8M 4M', 'write -P 8 8M 64k', 'read -P 8 8M 64k']);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('08 a device that loses a write: this flush fails, every later one, and the map is worth nothing', async (context) => {
  // A block device over a file that cannot grow: what it is given, it cannot keep.
  const directory = mkdtempSync('/dev/shm/holdfast-disk-');
  await execToEnd('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'none', directory]);
  const file = join(directory, 'file');
  writeFileSync(file, '');
  truncateSync(file, 16 * MiB);
  const device = loopDevice(file);
  try {
    if (device === undefined) return context.skip('no loop device can be made here');
    await using lab = await DiskServerLab.start({ image: device.path });
    const control = await lab.control();
    await control.ask('mapClear');
    await lab.io(['write -P 1 0 512k', 'flush', 'write -z -u 100 1000', 'discard 300k 1k']);
    await lab.io(['read -P 0 100 1000', 'read -P 1 2k 200k']);
    expect((await control.stats()).errors).toBe(0);
    const failure = /write failed: Input\/output error/;
    expect(await lab.io(['write -f 4M 8M'], false)).toMatch(failure);
    await lab.io(['write -P 2 0 4k']);
    expect(await lab.io(['write -f -P 2 0 4k'], false)).toMatch(failure);
    await lab.io(['read -P 2 0 4k']);
    const stats = await control.stats();
    expect(stats.flags).toBe(flag.active | flag.fault);
    expect(stats.errors).toBeGreaterThanOrEqual(1);
    expect(lab.readMap().fault).toBe(true);
    await lab.end();
    await lab.startServer();
    expect(lab.readMap().marked).toHaveLength((16 * MiB) / blockBytes);
  } finally {
    device?.remove();
    await execToEnd('umount', ['--lazy', directory]);
    rmSync(directory, { recursive: true });
  }
});

test('09 one controller, the newest; sync ids; nonsense ends the connection', async () => {
  await using lab = await DiskServerLab.start();
  const control = await lab.control();
  expect(control.hello).toBe((1n << 32n) | BigInt(flag.active));
  await control.ask('logStart');
  const next = await lab.control();
  await control.ended;
  expect(next.hello).toBe((1n << 32n) | BigInt(flag.active));
  expect((await next.stats()).flags).toBe(flag.active);

  // In pieces, and two requests in one.
  const id = Buffer.from('00112233445566778899aabbccddeeff', 'hex');
  next.socket.write(Buffer.concat([Control.message(5), id.subarray(0, 3)]));
  await waitFor('the first piece to be sent', () => next.socket.writableLength === 0);
  next.socket.write(Buffer.concat([id.subarray(3), Control.message(3)]));
  expect(await next.answer('syncIdSet')).toEqual({ error: 0, value: 0 });
  expect(await next.answer('mapRotate')).toEqual({ error: 0, value: (64 * MiB) / blockBytes });
  expect(lab.readMap().syncId).toBe(id.toString('hex'));

  await next.ask('logStart');
  next.socket.write(Control.message(99));
  await next.ended;
  const last = await lab.control();
  expect(last.hello).toBe((1n << 32n) | BigInt(flag.active));
  expect((await last.ask('bind', 2 ** 22 + 1)).error).toBe(ESRCH);
});

test('10 marks and data outlive a killed server; one that is ended leaves all closed', async () => {
  await using lab = await DiskServerLab.start();
  const control = await lab.control();
  await control.ask('mapClear');
  await lab.io(['write -P 1 1M 64k', 'write -P 2 5M 1k', 'flush']);
  await lab.end('SIGKILL');
  expect(lab.readMap()).toMatchObject({ marked: [16, 80], clean: false });
  await lab.startServer();
  expect((await (await lab.control()).stats()).markedBlocks).toBe(2);
  await lab.io(['read -P 1 1M 64k', 'read -P 2 5M 1k']);
  expect(await lab.end()).toEqual({ code: 0, signal: null });
  expect(lab.readMap()).toMatchObject({ marked: [16, 80], clean: true });
  expect(existsSync(lab.ringPath)).toBe(false);
  expect(existsSync(lab.controlPath)).toBe(false);
});

test('11 it ends with the VM to which it is bound, and with SIGTERM also while writers wait', async () => {
  await using lab = await DiskServerLab.start({ ringMiB: 4 });
  const vm = await LabProcess.start('sleep', ['1000']);
  const control = await lab.control();
  expect(await control.ask('bind', vm.pid)).toEqual({ error: 0, value: 0 });
  expect((await control.stats()).flags & flag.bound).toBe(flag.bound);
  await lab.io(['write -P 1 0 64k']);
  await vm.kill();
  expect(await lab.server.exited).toEqual({ code: 0, signal: null });
  expect(lab.readMap().clean).toBe(true);

  await lab.startServer();
  const again = await lab.control();
  await again.ask('logStart');
  const writer = lab.io(['write 0 8M'], false);
  await waitFor('the writer to wait', async () => ((await again.stats()).flags & flag.stalled) !== 0);
  expect(await lab.end()).toEqual({ code: 0, signal: null });
  await writer;

  await using standby = await DiskServerLab.start({ mode: 'standby' });
  const asked = await standby.control();
  const waiting = standby.io(['write 0 4k'], false);
  await waitFor('the write to come', async () => (await asked.stats()).writes === 1);
  expect(await standby.end()).toEqual({ code: 0, signal: null });
  await waiting;
});

test("12 QEMU's stop drains the writes, also those that wait for room, and its flush is answered early", async () => {
  await using lab = await DiskServerLab.start({ ringMiB: 4 });
  const control = await lab.control();
  const blockdev = {
    'node-name': 'disk0',
    driver: 'nbd',
    'reconnect-delay': 10,
    server: { type: 'unix', path: lab.socketPath },
  };
  const qemu = await SmallQemu.start(64, [
    ...['-blockdev', JSON.stringify(blockdev), '-device', 'virtio-blk-pci,drive=disk0,id=v0'],
  ]);
  try {
    const io = async (command: string) =>
      await qemu.qmp('human-monitor-command', {
        'command-line': `qemu-io -d /machine/peripheral/v0/virtio-backend "${command}"`,
      });
    expect(await control.ask('bind', qemu.pid)).toEqual({ error: 0, value: 0 });
    await control.ask('logStart');
    await io('write -P 1 0 1M');
    const before = await control.stats();

    lab.setStopPending();
    for (let index = 0; index < 6; index += 1) await io(`aio_write -P 2 ${4 * index * 65_536} 256k`);
    await qemu.qmp('stop');
    expect(await qemu.qmp('query-status')).toMatchObject({ running: false });
    const stopped = await control.stats();
    expect(stopped.writeBytes - before.writeBytes).toBe(6 * 256 * 1024);
    expect(stopped.flushesEarly - before.flushesEarly).toBeGreaterThanOrEqual(1);
    expect(stopped.flushes - before.flushes).toBe(stopped.flushesEarly - before.flushesEarly);
    // The boundary: everything that was written is in the log, past the half, and nothing comes any more.
    expect(stopped.ringUsedBytes).toBe(lab.head);
    expect(stopped.ringUsedBytes).toBeGreaterThan(2 * MiB);
    await qemu.qmp('cont');
    await waitFor('the flush to be paid', () => lab.flushesPaid === lab.flushesOwed);
    await lab.free(lab.head);
    await lab.io(['read -P 2 0 1536k']);

    // A server that is killed and started anew: QEMU asks again, and its VM has noticed nothing.
    await lab.end('SIGKILL');
    await lab.startServer();
    await io('write -P 4 1536k 64k');
    expect((await (await lab.control()).stats()).writes).toBe(1);
    // The same with one that is told to end, though QEMU stays connected.
    expect(await lab.end()).toEqual({ code: 0, signal: null });
    await lab.startServer();
    await io('write -P 5 2M 64k');
    await lab.io(['read -P 4 1536k 64k', 'read -P 5 2M 64k']);
  } finally {
    await qemu.kill();
  }
});

test('13 it outlives whoever started it', async () => {
  const dir = mkdtempSync('/tmp/holdfast-disk-');
  const imagePath = join(dir, 'image');
  const metaDir = join(dir, 'meta');
  const socket = join(dir, 'socket');
  try {
    writeFileSync(imagePath, Buffer.alloc(MiB));
    mkdirSync(metaDir);
    const spec: DiskServerSpec = {
      ...{ id: 'disk0', imagePath, imageBytes: MiB, metaDir, socket, ringBytes: 4 * MiB },
      ...{ mode: 'active', nbdkit: 'nbdkit', vm: null },
    };
    const program = `import { startDiskServer } from '${packageRoot()}/dist/lib/disk/disk-process.js';
      await startDiskServer(${JSON.stringify(spec)});
      process.exit(0);`;
    await execToEnd(process.execPath, ['--input-type=module', '--eval', program]);
    for (let n = 0; n < 20; n += 1) {
      await using control = await DiskControl.connect(diskServerFiles(socket).control);
      expect((await control.stats()).errors).toBe(0);
    }
    expect(await runningDiskServer(socket)).toBeDefined();
  } finally {
    await endDiskServer(socket);
    rmSync(dir, { recursive: true, force: true });
  }
});
