/** Checkpoints whose writer is killed anywhere: those that were there stay, the VM too, and the next run tidies up. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Checkpointing } from '../../lib/checkpoint/checkpointing.js';
import { listCheckpoints } from '../../lib/checkpoint/directory.js';
import { restoreCheckpoint } from '../../lib/checkpoint/restore.js';
import { layerFilesOf, selectCheckpoint } from '../../lib/checkpoint/select.js';
import { verifyCheckpoints } from '../../lib/checkpoint/verify.js';
import { native } from '../../lib/native.js';
import { killVm } from '../../lib/vm/launch.js';
import { repositoryRoot } from '../lab/guest.js';
import { crashPoints } from './checkpoint-points.js';
import { pageBytes, SmallQemu } from './primary-qemu.js';

const RAM_MIB = 16;
const IMAGE_BYTES = 4 << 20;
const KEPT = 2;

let scratch: string;
let dir: string;
let image: string;
let qmpPath: string;
let qemu: SmallQemu;
beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'holdfast-crash-'));
  dir = join(scratch, 'checkpoints');
  image = join(scratch, 'disk.raw');
  qmpPath = join(scratch, 'qmp');
  writeFileSync(image, '');
  truncateSync(image, IMAGE_BYTES);
  qemu = await SmallQemu.start(RAM_MIB, [
    ...['-drive', `file=${image},format=raw,if=none,id=d0`, '-device', 'virtio-blk-pci,drive=d0'],
    ...['-qmp', `unix:${qmpPath},server=on,wait=off`],
  ]);
});
afterAll(async () => {
  await qemu.kill();
  rmSync(scratch, { recursive: true, force: true });
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

/** Memory and disk get something new. */
let written = 0;
const write = async (): Promise<void> => {
  written += 1;
  qemu.writePages([500 + (written % 7), 600], written);
  qemu.clearPages([500 + ((written + 3) % 7)]);
  // A VM that was left standing still after its ROMs were taken has given its disk up: QEMU aborts at a write.
  if (await isRunning()) await writeDisk(written % 200, (written % 60) << 16);
};
const isRunning = async (): Promise<boolean> =>
  ((await qemu.qmp('query-status')) as { readonly running: boolean }).running;
const writeDisk = async (pattern: number, at: number): Promise<void> => {
  const said = await qemu.qmp('human-monitor-command', {
    'command-line': `qemu-io d0 "write -P ${pattern + 1} ${at} 64k"`,
  });
  expect(String(said)).not.toContain('rror');
};

/** @returns how it ended: a signal's name, or an exit code. */
const run = async (count: number, crash = ''): Promise<string | number | null> => {
  const child = spawn(
    process.execPath,
    [
      join(repositoryRoot(), 'dist/test/native/checkpoint-child.js'),
      qmpPath,
      dir,
      scratch,
      String(count),
      crash,
    ],
    {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, HOLDFAST_TEST_COPY: `${qemu.ramPath}:${image}` },
    },
  );
  let said = '';
  child.stderr.on('data', (text: Buffer) => {
    said += text.toString();
  });
  const [code, signal] = (await once(child, 'exit')) as [number | null, string | null];
  if (code !== null && code !== 0) throw new Error(said);
  return signal ?? code;
};

const kept = async (): Promise<number[]> =>
  existsSync(dir)
    ? (await listCheckpoints(dir)).entries.filter(({ isRetired }) => !isRetired).map(({ epoch }) => epoch)
    : [];

/** All that are kept are what memory and disk were in their pauses. */
const expectAllWhole = async (): Promise<void> => {
  for await (const { damage } of verifyCheckpoints(dir)) expect(damage).toEqual([]);
  const listing = await listCheckpoints(dir);
  for (const epoch of await kept()) {
    const { entry, layers } = selectCheckpoint(listing, dir, epoch);
    const path = join(scratch, 'assembled');
    await native.assembleRam({ layers: layerFilesOf(layers), path });
    const ram = join(scratch, `ram-at-${epoch}`);
    expect(await native.compareFiles(path, ram, RAM_MIB << 20, pageBytes, 5)).toEqual([]);
    rmSync(path);
    const [disk] = entry.manifest.disks;
    const copy = readFileSync(join(entry.dir, disk!.file));
    expect(copy.equals(readFileSync(join(scratch, `disk-at-${epoch}`)))).toBe(true);
  }
};

test('01 killed at any point', { timeout: 120_000 }, async () => {
  await write();
  expect(await run(3)).toBe(0);
  expect(await kept()).toEqual([2, 3]);
  await expectAllWhole();
  for (const crash of [...crashPoints, 'paused:2', 'merging:2', 'merged:2']) {
    const before = await kept();
    await write();
    // Its first checkpoint is a full one; those after it are increments, and merge what was there.
    const end = await run(4, crash);
    expect(end, crash).toBe('SIGKILL');
    // In the first pause of a run, over its overlay: the next run can only commit that when the VM runs.
    if (crash === 'paused') {
      expect(await qemu.qmp('query-status')).toMatchObject({ status: 'postmigrate' });
      expect(existsSync(`${image}.holdfast-overlay`)).toBe(true);
    }
    const after = await kept();
    expect(after.length, crash).toBeGreaterThanOrEqual(KEPT);
    expect(after.at(-1), crash).toBeGreaterThanOrEqual(before.at(-1)!);
    await expectAllWhole();
  }
  await write();
  expect(await run(1)).toBe(0);
  await expectAllWhole();
  expect(await kept()).toHaveLength(KEPT);
  expect(readdirSync(dir).toSorted()).toHaveLength(KEPT + 1);
  expect(existsSync(`${image}.holdfast-overlay`)).toBe(false);
  expect(await qemu.qmp('query-status')).toMatchObject({ running: true });
  expect(qemu.userfaults()).toBe(0);
});

test('02 what is written after the pause is in the image, and not in the checkpoint', async () => {
  const another = join(scratch, 'another');
  await using running = await Checkpointing.start({
    ...{ qmp: qmpPath, dir: another, runDir: scratch },
    // Not in the first pause, in which the ROMs are taken: the disk is given up then.
    whileStopped: async (epoch) => (epoch === 1 ? undefined : writeDisk(76, 1 << 20)),
  });
  await running.take();
  await running.idle();
  await writeDisk(70, 1 << 20);
  await running.take();
  await writeDisk(80, 2 << 20);
  await running.idle();
  expect(existsSync(`${image}.holdfast-overlay`)).toBe(false);
  const copied = readFileSync(join(another, 'epoch-000002', 'disk-0.raw'));
  expect(copied[1 << 20]).toBe(71);
  expect(copied[2 << 20]).not.toBe(81);
  await qemu.qmp('human-monitor-command', { 'command-line': 'qemu-io d0 "flush"' });
  const now = readFileSync(image);
  expect([now[1 << 20], now[2 << 20]]).toEqual([77, 81]);
});

test('03 a VM that is restored from it has that disk, elsewhere', async () => {
  const another = join(scratch, 'another');
  const place = join(scratch, 'restored.raw');
  const ramPath = `/dev/shm/holdfast-crash-${process.pid}`;
  const options = {
    ...{ dir: another, ramPath, qmpPath: join(scratch, 'restored-qmp') },
    ...{ logPath: join(scratch, 'restored-log'), scratchDir: scratch },
  };
  await expect(restoreCheckpoint(options)).rejects.toThrow(`the image ${image} is there already`);
  const commandLine = ['qemu-system-x86_64', '-M', 'q35', '-nodefaults', '-m', String(RAM_MIB), '-machine'];
  const ram = [
    'memory-backend=ram',
    '-object',
    `memory-backend-file,id=ram,size=${RAM_MIB}M,share=on,mem-path=x`,
  ];
  const diskless = {
    ...options,
    commandLine: [...commandLine, ...ram],
    replace: [{ from: image, to: place }],
  };
  await expect(restoreCheckpoint(diskless)).rejects.toThrow(`no drive over ${place}`);
  expect(existsSync(place)).toBe(false);
  const { vm, complete } = await restoreCheckpoint({
    ...options,
    // The monitor of the one that was just killed may still be closing.
    qmpPath: join(scratch, 'restored-again-qmp'),
    replace: [{ from: image, to: place }],
  });
  try {
    await complete;
    expect(readFileSync(place).equals(readFileSync(join(another, 'epoch-000002', 'disk-0.raw')))).toBe(true);
    const open = readdirSync(`/proc/${vm.pid}/fd`).map((fd) => readlinkSync(`/proc/${vm.pid}/fd/${fd}`));
    expect(open).toContain(place);
    expect(open).not.toContain(image);
  } finally {
    await killVm(vm.identity);
    rmSync(ramPath, { force: true });
  }
});

test('04 an overlay that lies there: an empty one goes, one with writes is refused unless the image has them', async () => {
  const overlay = `${image}.holdfast-overlay`;
  execFileSync('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-b', image, '-F', 'raw', overlay, '4M']);
  const options = { qmp: qmpPath, dir: join(scratch, 'overlaid'), runDir: scratch };
  await using running = await Checkpointing.start(options);
  await running.take();
  await running.idle();
  expect(existsSync(overlay)).toBe(false);
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, '4M']);
  execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write 0 64k', overlay]);
  execFileSync('qemu-img', ['rebase', '-u', '-b', image, '-F', 'raw', overlay]);
  await expect(running.take()).rejects.toThrow(`${overlay} is there already`);
  expect(existsSync(overlay)).toBe(true);
  await writeDisk(0xcc, 0); // one more: what qemu-io writes on its own
  await running.take();
  await running.idle();
  expect(existsSync(overlay)).toBe(false);
});

test('05 one directory, one writer', async () => {
  const another = join(scratch, 'claimed');
  await using _running = await Checkpointing.start({ qmp: qmpPath, dir: another, runDir: scratch });
  const claim = await import('../../lib/checkpoint/claims.js');
  await expect(claim.claimWriting(another)).rejects.toThrow(`process ${process.pid} writes checkpoints`);
});
