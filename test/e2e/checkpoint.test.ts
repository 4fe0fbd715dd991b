/**
 * Checkpoints on disk of a Linux guest that checks its own memory: each that is kept is the VM as it was at its
 * pause, it goes on from there, and whatever is killed in between leaves those that were there.
 */
import {
  copyFileSync,
  existsSync,
  linkSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Checkpointing, type CheckpointReport } from '../../lib/checkpoint/checkpointing.js';
import { listCheckpoints } from '../../lib/checkpoint/directory.js';
import { OVERLAY_SUFFIX } from '../../lib/checkpoint/overlay-file.js';
import { type RestoredVm, restoreCheckpoint } from '../../lib/checkpoint/restore.js';
import { layerFilesOf, selectCheckpoint } from '../../lib/checkpoint/select.js';
import { verifyCheckpoints } from '../../lib/checkpoint/verify.js';
import { native } from '../../lib/native.js';
import { runDirOf } from '../lab/daemons.js';
import { createDisk, diskPath } from '../lab/disk.js';
import { guestReadyText, repositoryRoot } from '../lab/guest.js';
import { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { countInFile, waitForText } from '../lab/wait.js';
import { killOrphan, withQmp } from './support/lab.js';
import {
  type MemoryGuest,
  pageBytes,
  startWriter,
  writerProgress,
  writerReport,
} from './support/memory-guest.js';

const cli = (): string => join(repositoryRoot(), 'dist/lib/cli/main.js');

let lab: Lab;
let guest: MemoryGuest;
const restored: RestoredVm[] = [];
beforeAll(async () => {
  lab = await Lab.create({ tag: 'ckpt' });
  const disks = [{ path: await createDisk(diskPath(lab, 'a'), 1) }];
  guest = await startWriter(lab, { pagesPerSecond: 4_000, workingSetPages: 4_096, randomOrder: true, disks });
});
afterEach(async () => {
  for (const { vm, complete } of restored.splice(0)) {
    await killOrphan(vm.pid);
    await complete.catch(() => {});
  }
});
afterAll(async () => {
  await lab.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

/** Guest RAM as it was in the pause of each checkpoint. */
const ramAt = (epoch: number): string => lab.path(`ram-at-${epoch}`);

const startCheckpoints = (dir: string, keep?: number): Promise<Checkpointing> =>
  Checkpointing.start({
    qmp: guest.qmpPath,
    dir,
    runDir: runDirOf(lab, 'a'),
    ...(keep === undefined ? {} : { keep }),
    whileStopped: async (epoch) => copyFileSync(guest.ramPath, ramAt(epoch)),
  });

const expectAsAtPause = async (dir: string, epoch: number): Promise<void> => {
  const { layers } = selectCheckpoint(await listCheckpoints(dir), dir, epoch);
  const path = lab.sharedMemoryPath(`assembled-${epoch}`);
  await native.assembleRam({ layers: layerFilesOf(layers), path });
  expect(await native.compareFiles(path, ramAt(epoch), guest.ramBytes, pageBytes, 10)).toEqual([]);
  rmSync(path);
};

const kept = async (dir: string): Promise<number[]> =>
  (await listCheckpoints(dir)).entries.filter(({ isRetired }) => !isRetired).map(({ epoch }) => epoch);

const damagedOnes = async (dir: string): Promise<number[]> => {
  const found: number[] = [];
  for await (const { epoch, isWhole } of verifyCheckpoints(dir)) if (!isWhole) found.push(epoch);
  return found;
};

let restores = 0;
const restore = async (dir: string, at?: number, onDemand = true) => {
  const id = ++restores;
  const paths = {
    ramPath: lab.sharedMemoryPath(`restored-${id}`),
    qmpPath: lab.path(`restored-qmp-${id}`),
    serialPath: lab.path(`restored-serial-${id}`),
    disk: lab.path(`restored-disk-${id}`),
  };
  const vm = await restoreCheckpoint({
    ...{ dir, at, onDemand, ramPath: paths.ramPath, qmpPath: paths.qmpPath },
    logPath: lab.path(`restored-log-${id}`),
    scratchDir: lab.dir,
    replace: [
      { from: guest.serialPath, to: paths.serialPath },
      { from: diskPath(lab, 'a'), to: paths.disk },
    ],
  });
  restored.push(vm);
  return { ...paths, ...vm };
};

/** The file of a VM's RAM, though it has no name any more. */
const ramOf = (pid: number): string => {
  const fds = readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`);
  return fds.find((path) => /\.holdfast\.ram \(deleted\)$/.test(readlinkSync(path)))!;
};

const expectRuns = async (): Promise<void> => {
  expect((await writerProgress(guest.ramPath, 500)).errors).toBe(0);
  const fds = readdirSync(`/proc/${guest.process.pid}/fd`);
  const targets = fds.map((fd) => readlinkSync(`/proc/${guest.process.pid}/fd/${fd}`));
  expect(targets).not.toContain('anon_inode:[userfaultfd]');
};

describe('01 a chain', () => {
  let dir: string;
  const reports: CheckpointReport[] = [];
  beforeAll(async () => {
    dir = lab.path('chain');
    await using running = await startCheckpoints(dir, 3);
    for (let n = 0; n < 5; n++) {
      reports.push(await running.take());
      await writerProgress(guest.ramPath, 300);
    }
    await running.idle();
  });

  test('first all of RAM, then what has changed; the oldest are merged', async () => {
    expect(reports.map(({ full, parent }) => [full, parent])).toEqual([
      [true, null],
      ...[1, 2, 3, 4].map((parent) => [false, parent]),
    ]);
    expect(reports[1]!.pages).toBeLessThan(reports[0]!.pages);
    expect(await kept(dir)).toEqual([3, 4, 5]);
    expect(readdirSync(dir).toSorted()).toEqual(['.holders', 'epoch-000003', 'epoch-000004', 'epoch-000005']);
    expect(await damagedOnes(dir)).toEqual([]);
  });

  test('each is the VM as it was at its pause', async () => {
    for (const epoch of [3, 4, 5]) await expectAsAtPause(dir, epoch);
  });

  test('the VM runs on, untracked', expectRuns);

  test.each([
    { at: 3, onDemand: true },
    { at: 4, onDemand: false },
  ])('a guest that was restored finds its memory as it left it, on demand: $onDemand', async (one) => {
    const before = await writerReport(ramAt(one.at));
    const { ramPath, serialPath, epoch, complete } = await restore(dir, one.at, one.onDemand);
    expect(epoch).toBe(one.at);
    const { pages, demandedPages } = await complete;
    // It was the guest who asked for some of them.
    expect(demandedPages > 0 && pages > demandedPages).toBe(one.onDemand);
    const after = await writerProgress(ramPath, 5_000);
    expect(after.errors).toBe(0);
    expect(after.written).toBeGreaterThan(before!.written);
    expect(countInFile(serialPath, guestReadyText)).toBe(0);
  });

  test('it reboots, and can be checkpointed again', async () => {
    const { vm, disk, qmpPath, serialPath, complete } = await restore(dir, 3);
    await complete;
    await withQmp(qmpPath, (qmp) => qmp.execute('system_reset'));
    await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
    const options = { qmp: qmpPath, dir: lab.path('again'), runDir: runDirOf(lab, 'a') };
    await using again = await Checkpointing.start(options);
    expect(await again.take()).toMatchObject({ epoch: 1, full: true });
    await again.idle();
    expect(existsSync(`${disk}${OVERLAY_SUFFIX}`)).toBe(false);

    // QEMU ends when its disk is on an overlay: nothing is committed, and somebody is told.
    const events: unknown[] = [];
    again.on('committed', (event) => events.push(event));
    again.on('warning', (event) => events.push(event));
    again.once('taken', () => process.kill(vm.pid, 'SIGKILL'));
    await again.take();
    await again.idle();
    expect(events).toMatchObject([
      { code: 'HOLDFAST_E_DISK', details: { overlays: [`${disk}${OVERLAY_SUFFIX}`] } },
    ]);
  });

  test('a damaged one is refused by its number, the others are not', async () => {
    const page = (await native.compareFiles(ramAt(4), ramAt(5), guest.ramBytes, pageBytes, 1))[0]!;
    const { layers } = selectCheckpoint(await listCheckpoints(dir), dir, 5);
    const path = layerFilesOf(layers).at(-1)!.ram;
    const bytes = readFileSync(path);
    bytes[page * pageBytes]! ^= 1;
    writeFileSync(path, bytes);
    expect(await damagedOnes(dir)).toEqual([5]);
    const refused = restore(dir, 5, false);
    await expect(refused).rejects.toMatchObject({ code: 'HOLDFAST_E_DAMAGED', exitCode: 14 });
    await expect(refused).rejects.toThrow(`checkpoint 5 is refused: ${path}: page ${page}`);
    // On demand it may be found late; the guest never sees it.
    const found = restore(dir).then(({ complete }) => complete);
    await expect(found).rejects.toThrow(`checkpoint 5 is refused: ${path}: page ${page}`);
    const device = join(dir, 'epoch-000004', 'device');
    const state = readFileSync(device);
    writeFileSync(device, state.subarray(1));
    expect(await damagedOnes(dir)).toEqual([4, 5]);
    await expect(restore(dir, 4)).rejects.toThrow(/^checkpoint 4 is refused: .*device is damaged/);
    writeFileSync(join(dir, 'epoch-000003', 'manifest.json'), '{}');
    expect(await damagedOnes(dir)).toEqual([3, 4, 5]);
    await expect(restore(dir, 3)).rejects.toThrow(/^checkpoint 3 is refused: .*manifest\.json is damaged/);
    await expect(restore(dir, 9)).rejects.toThrow('there is no checkpoint 9');
  });
});

/** The command line, on host a; `end` are the arguments that come last. */
const argsOf = (command: string, end: readonly string[]): string[] => {
  const common = command === 'restore' || command === 'checkpoint' ? ['--run-dir', runDirOf(lab, 'a')] : [];
  return [cli(), command, '--json', ...common, ...end];
};

const run = async (command: string, ...end: string[]) => {
  const { code, stdout } = await lab
    .host('a')
    .exec(process.execPath, argsOf(command, end), { check: false, timeoutMs: 60_000 });
  const said = stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  return { code, said, of: (event: string) => said.filter((each) => each.event === event) };
};

test('02 the commands', { timeout: 120_000 }, async () => {
  const dir = lab.path('commands');
  const every = new JsonProcess(
    await lab
      .host('a')
      .spawn(
        process.execPath,
        argsOf('checkpoint', ['--qmp', guest.qmpPath, '--every', '200ms', '--keep', '2', dir]),
      ),
  );
  await every.message('taken', { count: 4 });
  every.process.child.kill('SIGINT');
  expect(await every.ended()).toEqual({ code: 0, signal: null });
  expect(every.of('upkeep').map(({ kind }) => kind)).toEqual(
    expect.arrayContaining(['retire', 'merge', 'remove']),
  );
  await expectRuns();

  const listed = (await run('checkpoints', dir)).of('checkpoint');
  const epochs = listed.map(({ epoch }) => Number(epoch));
  expect(epochs.length).toBeGreaterThanOrEqual(2);
  expect(epochs.at(-1)).toBeGreaterThanOrEqual(4);
  expect(await run('verify', dir)).toMatchObject({
    code: 0,
    said: epochs.map((epoch) => ({ epoch, isWhole: true })),
  });

  const serialPath = lab.path('commands-serial');
  const asRestored = [
    ...[
      '--ram-dir',
      lab.sharedMemoryDir,
      '--replace',
      `${guest.serialPath}=${serialPath}`,
      '--replace',
      `${diskPath(lab, 'a')}=${lab.path('commands-disk')}`,
      '--name',
      'again',
    ],
  ];
  const restoring = await run('restore', ...asRestored, dir);
  // It has ended when all of the memory was there, not before.
  expect(restoring).toMatchObject({ code: 0, said: [{ event: 'restored' }, { event: 'complete' }] });
  const [vm] = restoring.of('restored');
  expect(vm).toMatchObject({ epoch: epochs.at(-1), name: 'again' });
  const pid = Number(vm?.pid);
  try {
    expect((await writerProgress(ramOf(pid), 2_000)).errors).toBe(0);
    // It is one that Holdfast launched: known by its name, which is taken.
    expect(await run('restore', ...asRestored, dir)).toMatchObject({
      code: 2,
      said: [{ error: { message: expect.stringContaining("the VM 'again' runs already") } }],
    });
    const again = await run('checkpoint', '--vm', 'again', lab.path('commands-again'));
    expect(again).toMatchObject({ code: 0 });
    expect(again.of('taken')).toMatchObject([{ epoch: 1, full: true }]);
    // Its disk, behind the only one: told before the command ends.
    expect(again.of('committed')).toMatchObject([{ epoch: 1 }]);
    expect(existsSync(lab.path(`commands-disk${OVERLAY_SUFFIX}`))).toBe(false);
  } finally {
    await killOrphan(pid);
  }

  const newest = join(dir, `epoch-${String(epochs.at(-1)).padStart(6, '0')}`);
  writeFileSync(join(newest, 'device'), '');
  const { code, said } = await run('verify', dir);
  expect(code).toBe(14);
  expect(said.at(-1)).toMatchObject({
    error: { code: 'HOLDFAST_E_DAMAGED', details: { damaged: [epochs.at(-1)] } },
  });
  expect(await run('restore', ...asRestored, dir)).toMatchObject({ code: 14 });
});

test('03 --method handoff: the VM as it was when its old QEMU stopped', { timeout: 90_000 }, async () => {
  const dir = lab.path('handed');
  const method = ['--qmp', guest.qmpPath, '--method', 'handoff'];
  expect(await run('checkpoint', ...method, '--every', '1s', dir)).toMatchObject({
    code: 2,
    said: [{ error: { message: expect.stringContaining('--every'), cure: expect.any(String) } }],
  });
  // The old QEMU changes nothing after its stop, and then ends: by a second name its RAM stays to be looked at.
  const atPause = lab.sharedMemoryPath('ram-at-handoff');
  linkSync(guest.ramPath, atPause);
  const { code, said, of } = await run('checkpoint', ...method, dir);
  expect(code, JSON.stringify(said.at(-1))).toBe(0);
  const [taken] = of('taken');
  const to = taken?.to as { readonly pid: number };
  try {
    expect(taken).toMatchObject({ method: 'handoff', epoch: 1, full: true, parent: null });
    const phases = ['saveStateMs', 'copyFileMs', 'commitMs', 'migrateMs'] as const;
    const ms = taken as unknown as Readonly<Record<'allMs' | 'pauseMs' | (typeof phases)[number], number>>;
    for (const phase of phases) expect(ms[phase], phase).toBeGreaterThan(0);
    expect(phases.reduce((sum, phase) => sum + ms[phase], 0)).toBeLessThan(ms.allMs);
    expect(ms.pauseMs).toBe(ms.migrateMs);
    // The RAM that it goes on in is another file, by the VM's own name.
    expect(existsSync(`${guest.ramPath}.handed`)).toBe(false);
    expect(statSync(guest.ramPath).ino).not.toBe(statSync(atPause).ino);
    expect((await writerProgress(guest.ramPath, 500)).errors).toBe(0);

    expect((await run('checkpoints', dir)).of('checkpoint')).toMatchObject([{ epoch: 1 }]);
    expect((await run('verify', dir)).code).toBe(0);
    const { layers } = selectCheckpoint(await listCheckpoints(dir), dir, 1);
    const assembled = lab.sharedMemoryPath('assembled-handoff');
    await native.assembleRam({ layers: layerFilesOf(layers), path: assembled });
    expect(await native.compareFiles(assembled, atPause, guest.ramBytes, pageBytes, 10)).toEqual([]);
    rmSync(assembled);

    const before = await writerReport(atPause);
    const { ramPath: again, qmpPath, serialPath, complete } = await restore(dir);
    await complete;
    const after = await writerProgress(again, 2_000);
    expect(after.errors).toBe(0);
    expect(after.written).toBeGreaterThan(before!.written);
    await withQmp(qmpPath, (qmp) => qmp.execute('system_reset')); // its ROMs are there
    await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  } finally {
    await killOrphan(to.pid);
  }
});
