/**
 * What Holdfast costs the hosts: nothing is left after a thousand epochs, and its memory stays within the bounds
 * that docs and status promise.
 *
 * Which memory counts. Guest RAM and its replica are mapped by Holdfast, but are the VM's: they are shared pages of
 * a tmpfs file (RssShmem), as is the staging pool (a memfd). What Holdfast itself takes is anonymous (RssAnon: heap,
 * stacks, the backup's staging of one arriving epoch) and program text (RssFile, shared by every Node on the host).
 */

import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Backup, native, Primary } from '../../lib/index.js';
import { primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { type MemoryGuest, startWriter } from './support/memory-guest.js';
import { descriptorsOf, memoryBytesOf, threadsOf } from './support/memory-qemu-state.js';

const MIB = 1 << 20;
const OWN_BYTES_MAX = 150 * MIB;

let lab: Lab;
let guest: MemoryGuest | undefined;
beforeAll(async () => {
  lab = await Lab.create({ tag: 'res' });
});
afterEach(async () => {
  await guest?.process.kill();
});
afterAll(async () => {
  await lab.close();
});

/** Protects the guest for so many epochs, both roles in this process. */
const protectFor = async (writer: MemoryGuest, epochsWanted: number): Promise<void> => {
  await using backup = await Backup.start({
    key: new Uint8Array(16),
    listen: '127.0.0.1:0',
    name: 'resources',
    runDir: lab.path('run'),
    ramDir: lab.sharedMemoryDir,
  });
  await using primary = await Primary.start({
    key: new Uint8Array(16),
    backup: `127.0.0.1:${backup.port}`,
    qmp: writer.qmpPath,
    name: 'resources',
    runDir: lab.path('run'),
    intervalMs: 2,
    heartbeatTimeoutMs: 5_000,
    replace: [{ from: writer.serialPath, to: `${writer.serialPath}-standby` }],
  });
  await primary.protectedOnce();
  let epochs = 0;
  for await (const { epoch } of primary.epochs()) {
    expect(epoch).toBeGreaterThan(epochs);
    if (++epochs === epochsWanted) break;
  }
  expect(await primary.detach()).toMatchObject({ kind: 'detached' });
};

test('01 after 1,000 epochs this process holds what it held before', async () => {
  guest = await startWriter(lab, { pagesPerSecond: 1_000, workingSetPages: 1024 });
  await protectFor(guest, 5); // what Node opens once, at first use, is open now
  const before = descriptorsOf('self');
  await protectFor(guest, 1_000);
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
  expect(threadsOf('self').filter((name) => name.startsWith('hf-'))).toEqual([]);
  await waitFor('the last sockets to close', () => descriptorsOf('self').length <= before.length, {
    timeoutMs: 5_000,
  });
});

test('02 the daemons stay within their memory, also with epochs as large as that', {
  timeout: 120_000,
}, async () => {
  guest = await startWriter(lab, { pagesPerSecond: 0, workingSetPages: 24_000, ramMb: 256 });
  const serial = `${guest.serialPath}-standby`;
  const backup = await startBackup(lab, 'b');
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    vm: ['--qmp', guest.qmpPath],
    args: ['--interval', '400', '--heartbeat-timeout', '5s', '--replace', `${guest.serialPath}=${serial}`],
  });
  await primary.message('protected');
  const own = (pid: number): number => memoryBytesOf(pid, 'RssAnon') + memoryBytesOf(pid, 'RssFile');
  let [primaryBytesMax, backupBytesMax] = [0, 0];
  await waitFor('20 epochs', async () => {
    primaryBytesMax = Math.max(primaryBytesMax, own(primary.pid));
    backupBytesMax = Math.max(backupBytesMax, own(backup.pid));
    return (await primaryStatus(lab)).epochs >= 20;
  });
  const { settings, distributions } = await primaryStatus(lab);
  const largestEpochBytes = distributions.bytes!.max;
  expect(largestEpochBytes).toBeGreaterThan(64 * MIB);
  expect(primaryBytesMax).toBeLessThanOrEqual(OWN_BYTES_MAX);
  expect(memoryBytesOf(primary.pid, 'RssShmem')).toBeLessThanOrEqual(
    guest.ramBytes + settings.stagingMiB * MIB,
  );
  expect(backupBytesMax).toBeLessThanOrEqual(OWN_BYTES_MAX + largestEpochBytes);
  expect(memoryBytesOf(backup.pid, 'RssShmem')).toBeLessThanOrEqual(guest.ramBytes);
});
