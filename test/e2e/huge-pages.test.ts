/**
 * Guest RAM on huge pages. On a hugetlbfs, of which neither sendfile nor splice takes anything and which cannot
 * say what it holds: protected, compared, and failed over twice in a row. And on transparent ones.
 */

import { rmSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { killVm } from '../../lib/index.js';
import { type NativeCaptureMode, native, type SenderStrategy } from '../../lib/native.js';
import { Lab } from '../lab/lab.js';
import { countInFile } from '../lab/wait.js';
import { FailoverChain, runningVm } from './support/failover-chain.js';
import { HugePages, HugeTmpfs, hugePageBytes } from './support/huge-pages.js';
import { type MemoryGuest, pageBytes, startWriter, writerProgress } from './support/memory-guest.js';
import { assertIdentical, MemoryPair } from './support/memory-pair.js';

const EPOCHS = 12;
const RUN_MS = 8;
const RAM_MB = 160;
const WORKING_SET_PAGES = 4096;
/** One guest, and the replicas of two generations; and some for the kernel's own sake. */
const RESERVED_BYTES = (3 * RAM_MB + 32) << 20;

const modes: readonly NativeCaptureMode[] = ['staged', 'direct'];
const strategies: readonly SenderStrategy[] = ['copy', 'sendfile', 'splice', 'vmsplice', 'zerocopy', 'uring'];
/** Never copied: where a hugetlbfs refuses what takes pages from a file, they are lent from the mapping. */
const byReference: readonly SenderStrategy[] = ['sendfile', 'splice', 'vmsplice'];

let lab: Lab;
let huge: HugePages | undefined;
let guest: MemoryGuest;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'huge' });
  huge = await HugePages.reserve(lab, RESERVED_BYTES);
});
afterAll(async () => {
  await lab.close();
  await huge?.[Symbol.asyncDispose]();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

const startOn = async (ramDir: string): Promise<MemoryGuest> =>
  await startWriter(lab, {
    ramDir,
    ramMb: RAM_MB,
    pagesPerSecond: 10_000,
    workingSetPages: WORKING_SET_PAGES,
    randomOrder: true,
  });

/** Every epoch's replica is what guest RAM was, and the dirty pages are counted in the file system's own. */
const checkIdentity = async (
  mode: NativeCaptureMode,
  strategy: SenderStrategy,
  dir: string,
  pageSize: number,
): Promise<{ readonly copiedBytes: number }> => {
  await using pair = await MemoryPair.open(lab, guest, {
    strategy,
    deviceState: 'xen-save',
    replicaDir: dir,
  });
  expect(pair.ram.pageSize).toBe(pageSize);
  let pages = 0;
  let copiedBytes = 0;
  for (let n = 1; n <= EPOCHS; n++) {
    const checked = await pair.epoch({
      mode,
      send: mode === 'staged' && n % 3 === 0 ? 'running' : 'stopped',
      runMs: RUN_MS,
      slices: n % 4 === 0 ? [{ send: n % 8 === 0, runMs: 1 }] : [],
    });
    assertIdentical(checked);
    expect(checked.captured.mode).toBe(mode);
    const inVain = checked.sent.supersededBytes / pageSize;
    expect(checked.sent.pages + checked.sent.zeroPages).toBe(checked.captured.dirtyPages + inVain);
    pages += checked.captured.dirtyPages;
    copiedBytes += checked.sent.copiedBytes;
  }
  expect(pages).toBeGreaterThan(EPOCHS * 2);
  expect(pages).toBeLessThanOrEqual((EPOCHS * guest.ramBytes) / pageSize);
  return { copiedBytes };
};

const checkGuest = async (): Promise<void> => {
  expect(await writerProgress(guest.ramPath, 4 * WORKING_SET_PAGES)).toMatchObject({ errors: 0 });
  expect(countInFile(guest.serialPath, 'ERROR')).toBe(0);
};

const endGuest = async (): Promise<void> => {
  await guest?.process.kill();
  if (guest !== undefined) rmSync(guest.ramPath, { force: true }); // its huge pages are needed again
};

const cases = modes.flatMap((mode) => strategies.map((strategy) => ({ mode, strategy })));

describe('01 identity on a hugetlbfs', () => {
  beforeAll(async () => {
    if (huge !== undefined) guest = await startOn(huge.dir);
  });
  afterAll(endGuest);

  test.for(cases)('$mode by $strategy', async ({ mode, strategy }, { skip }) => {
    if (huge === undefined) skip('no huge pages to be had');
    if (strategy === 'uring') skip(!native.probeSenders().uring, 'no io_uring to be had');
    const { copiedBytes } = await checkIdentity(mode, strategy, huge!.dir, hugePageBytes);
    if (byReference.includes(strategy)) expect(copiedBytes).toBe(0);
  });
  test('the guest saw nothing of it', async ({ skip }) => {
    if (huge === undefined) skip('no huge pages to be had');
    await checkGuest();
  });
});

test('02 two failovers in a row', async ({ skip }) => {
  if (huge === undefined) skip('no huge pages to be had');
  const ramDir = huge!.dir;
  const vm = await runningVm(await startOn(ramDir));
  await using chain = new FailoverChain(lab);
  const common = { workingSetPages: WORKING_SET_PAGES, ramDir } as const;
  const once = await chain.failOver(vm, {
    ...common,
    name: 'huge1',
    captureMode: 'staged',
    deviceState: 'xen-save',
    sender: 'splice',
  });
  const twice = await chain.failOver(once, {
    ...common,
    name: 'huge2',
    captureMode: 'direct',
    deviceState: 'migrate-fd',
    sender: 'sendfile',
  });
  await killVm(twice.identity);
});

test('03 from a tmpfs to a hugetlbfs, and back', async ({ skip }) => {
  if (huge === undefined) skip('no huge pages to be had');
  const vm = await runningVm(await startOn(lab.sharedMemoryDir));
  await using chain = new FailoverChain(lab);
  const common = { workingSetPages: WORKING_SET_PAGES, deviceState: 'xen-save', sender: 'splice' } as const;
  const there = await chain.failOver(vm, {
    ...common,
    name: 'there',
    captureMode: 'direct',
    ramDir: huge!.dir,
  });
  const back = await chain.failOver(there, { ...common, name: 'back', captureMode: 'staged' });
  await killVm(back.identity);
});

describe('04 identity on a tmpfs of transparent huge pages, which are split for the guest and not for us', () => {
  let tmpfs: HugeTmpfs;
  beforeAll(async () => {
    tmpfs = await HugeTmpfs.mount(lab);
    guest = await startOn(tmpfs.dir);
  });
  afterAll(async () => {
    await endGuest();
    await tmpfs?.[Symbol.asyncDispose]();
  });

  test.for(modes)('%s by sendfile', async (mode) => {
    const { copiedBytes } = await checkIdentity(mode, 'sendfile', tmpfs.dir, pageBytes);
    expect(copiedBytes).toBe(0);
  });
  test('the guest saw nothing of it', checkGuest);
});
