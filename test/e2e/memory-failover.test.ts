/**
 * A guest that verifies its own memory survives two failovers in a row, on the library: the second one from the
 * VM that the first one made. Every page it reads after a failover must be what it last wrote.
 */

import { readdirSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Backup, killVm, native, Primary, QmpClient, type TakeoverReport } from '../../lib/index.js';
import { identifyProcess, type ProcessIdentity } from '../../lib/vm/process.js';
import { Lab } from '../lab/lab.js';
import { countInFile } from '../lab/wait.js';
import { startWriter, writerProgress } from './support/memory-guest.js';

const WORKING_SET_PAGES = 8192;
const EPOCHS_BEFORE_KILL = 40;
const key = new TextEncoder().encode('memory-failover-test-key');

let lab: Lab;
/** VMs that a backup runs: they live outside the lab's namespaces. */
const resumed: ProcessIdentity[] = [];
const backups: Backup[] = [];

beforeAll(async () => {
  lab = await Lab.create({ tag: 'memfo' });
});
afterEach(async () => {
  for (const vm of resumed.splice(0)) await killVm(vm);
  for (const backup of backups.splice(0)) await backup.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});
afterAll(async () => {
  await lab.close();
});

interface RunningVm {
  readonly qmpPath: string;
  readonly ramPath: string;
  readonly serialPath: string;
  readonly identity: ProcessIdentity;
}

type Settings = Pick<Parameters<typeof Primary.start>[0], 'captureMode' | 'deviceState' | 'sender'>;

/** Protects the VM, kills it after some epochs, and returns the one that the backup runs. */
const failOver = async (vm: RunningVm, name: string, settings: Settings): Promise<RunningVm> => {
  const runDir = lab.path(name);
  const serialPath = `${vm.serialPath}-${name}`;
  const backup = await Backup.start({
    key,
    listen: '127.0.0.1:0',
    name: `${name}-backup`,
    runDir,
    ramDir: lab.sharedMemoryDir,
    replace: [{ from: vm.serialPath, to: serialPath }],
  });
  backups.push(backup);
  const tookOver = new Promise<TakeoverReport>((resolve, reject) => {
    backup.once('took-over', resolve);
    backup.once('takeover-failed', reject);
  });
  const primary = await Primary.start({
    key,
    qmp: vm.qmpPath,
    backup: `127.0.0.1:${backup.port}`,
    name: `${name}-primary`,
    runDir,
    intervalMs: 20,
    heartbeatTimeoutMs: 5_000, // the test shares both sides' event loop; the kill is noticed by QMP
    ...settings,
  });
  await primary.protectedOnce();
  let epochs = 0;
  for await (const { epoch } of primary.epochs()) {
    expect(epoch).toBeGreaterThan(0);
    if (++epochs === EPOCHS_BEFORE_KILL) break;
  }
  const before = await writerProgress(vm.ramPath, 100);
  const acknowledged = primary.status().committedEpoch + 2; // one that begins after this report was written
  for await (const { epoch } of primary.epochs()) if (epoch >= acknowledged) break;
  const { replica = '' } = backup.status();
  await killVm(vm.identity);
  const takeover = await tookOver;
  resumed.push(await identifyProcess(takeover.pid));
  expect(await primary.ended).toMatchObject({ kind: 'vm-lost' });
  expect(takeover.epoch).toBeGreaterThanOrEqual(acknowledged);

  // Each page of the working set once, and then once more after it was written here.
  const after = await writerProgress(replica, 2 * WORKING_SET_PAGES);
  expect(after.errors).toBe(0);
  expect(after.written).toBeGreaterThan(before.written);
  expect(countInFile(serialPath, 'ERROR')).toBe(0);
  // With x-ignore-shared left on, the operator's next ordinary migration would lose the RAM.
  await using qmp = await QmpClient.connect(takeover.qmp);
  const capabilities = await qmp.execute('query-migrate-capabilities');
  expect(capabilities.filter(({ state }) => state)).toEqual([]);
  return {
    qmpPath: takeover.qmp,
    ramPath: replica,
    serialPath,
    identity: resumed.at(-1)!,
  };
};

test.each([
  { vcpus: 1, first: 'xen-save', second: 'migrate-fd' },
  { vcpus: 2, first: 'migrate-fd', second: 'xen-save' },
] as const)('01 two failovers, $first then $second, $vcpus vCPU', async ({ vcpus, first, second }) => {
  const guest = await startWriter(lab, {
    vcpus,
    pagesPerSecond: 10_000,
    workingSetPages: WORKING_SET_PAGES,
    ramMb: 160,
  });
  const vm = { ...guest, identity: await identifyProcess(guest.process.pid) };
  const once = await failOver(vm, `first${vcpus}`, {
    captureMode: 'staged',
    deviceState: first,
    sender: 'sendfile',
  });
  const twice = await failOver(once, `second${vcpus}`, {
    captureMode: 'direct',
    deviceState: second,
    sender: 'splice',
  });
  expect(twice.identity.pid).not.toBe(once.identity.pid);
  await killVm(twice.identity);
  // Its backup sees the end of the VM, and leaves neither replica nor directory.
  for (const backup of backups) expect(await backup.ended).toMatchObject({ kind: 'vm-exited' });
  expect(readdirSync(lab.sharedMemoryDir).filter((name) => name.endsWith('.ram'))).toEqual([]);
});
