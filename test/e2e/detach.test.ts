/** Detaching leaves QEMU and this process as they were before, and a VM that is refused was never touched. */

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Backup, native, Primary } from '../../lib/index.js';
import { QmpClient } from '../../lib/qmp/client.js';
import { holdfast, primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { guestArgs } from '../lab/guest.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor } from '../lab/wait.js';
import { type MemoryGuest, startRedis } from './support/memory-guest.js';
import { descriptorsOf, type QemuState, qemuState, threadsOf } from './support/memory-qemu-state.js';

const EPOCHS = 20;

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.create({ tag: 'detach' });
});
afterAll(async () => {
  await lab.close();
});

/** QEMU notices a closed monitor connection a moment later: that one is waited for, everything else is not. */
const expectAsBefore = async (guest: MemoryGuest, observer: QmpClient, before: QemuState): Promise<void> => {
  await waitFor(
    'QEMU to close what was opened',
    () => descriptorsOf(guest.process.pid).length <= before.descriptors.length,
    { timeoutMs: 5_000 },
  ).catch(() => {}); // the comparison says more
  expect(await qemuState(guest.process.pid, observer)).toEqual(before);
};

const expectAttached = (state: QemuState): void => {
  expect(state.objects).toEqual(['holdfast-f1-net0', 'holdfast-f2-net0', 'ram0']);
  expect(state.descriptors).toContain('anon_inode:[userfaultfd]');
};

const expectRedisAnswers = async (): Promise<void> => {
  const load = await RedisLoad.start(lab.client, { connections: 2 });
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, broken: [] });
};

describe('01 protected, then detached', () => {
  let guest: MemoryGuest;
  let observer: QmpClient;
  let before: QemuState;
  beforeAll(async () => {
    guest = await startRedis(lab);
    observer = await QmpClient.connect(guest.observerPath);
    before = await qemuState(guest.process.pid, observer);
    expect(before).toMatchObject({ objects: ['ram0'], capabilities: [], running: true });
  });
  afterAll(async () => {
    await observer.close();
    await guest.process.kill();
  });

  test('by `holdfast detach`, again and again', async () => {
    const backup = await startBackup(lab, 'b');
    for (const deviceState of ['xen-save', 'migrate-fd', 'xen-save']) {
      const primary = await startPrimary(lab, {
        host: 'a',
        backup: 'b',
        vm: ['--qmp', guest.qmpPath],
        args: ['--device-state', deviceState, '--heartbeat-timeout', '2s'],
      });
      await primary.message('protected');
      const { committedEpoch } = await primaryStatus(lab);
      await waitFor(
        `${EPOCHS} epochs`,
        async () => (await primaryStatus(lab)).committedEpoch >= committedEpoch + EPOCHS,
      );
      expectAttached(await qemuState(guest.process.pid, observer));
      await expectRedisAnswers();
      await holdfast(lab, 'a', ['detach']);
      expect(await primary.process.exited).toEqual({ code: 0, signal: null });
      expect(await primary.message('ended')).toMatchObject({ outcome: { kind: 'detached' } });
      await expectAsBefore(guest, observer, before);
      await expectRedisAnswers();
      await backup.until('the backup to be idle again', () => backup.messages.at(-1)?.event === 'idle');
    }
    await backup.process.kill('SIGTERM');
  });

  test('by Primary.detach(), which leaves nothing in this process either', async () => {
    const ourDescriptors = /userfaultfd|holdfast|pagemap|pidfd|memory-(ram|qmp)/;
    const onePass = async (): Promise<void> => {
      await using backup = await Backup.start({
        key: new Uint8Array(16),
        listen: '127.0.0.1:0',
        name: 'detach',
        runDir: lab.path('run'),
        ramDir: lab.sharedMemoryDir,
        // The standby is outside the lab, where QEMU makes its own tap, for as long as it lives.
        replace: [{ from: 'tap0', to: `hft${process.pid}` }],
      });
      const primary = await Primary.start({
        key: new Uint8Array(16),
        backup: `127.0.0.1:${backup.port}`,
        qmp: guest.qmpPath,
        name: 'detach',
        runDir: lab.path('run'),
        heartbeatTimeoutMs: 5_000,
        replace: [{ from: guest.serialPath, to: `${guest.serialPath}-standby` }],
      });
      await primary.protectedOnce();
      let epochs = 0;
      for await (const { epoch } of primary.epochs()) {
        expect(epoch).toBeGreaterThan(0);
        if (++epochs === EPOCHS) break;
      }
      expectAttached(await qemuState(guest.process.pid, observer));
      expect(descriptorsOf('self').filter((target) => ourDescriptors.test(target))).not.toEqual([]);
      expect(threadsOf('self')).toContain('hf-primary');
      expect(await primary.detach()).toMatchObject({ kind: 'detached' });
      await expectAsBefore(guest, observer, before);
    };
    await onePass();
    await onePass();
    expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
    expect(threadsOf('self').filter((name) => name.startsWith('hf-'))).toEqual([]);
    expect(descriptorsOf('self').filter((target) => ourDescriptors.test(target))).toEqual([]);
    await expectRedisAnswers();
  });
});

describe('02 refused', () => {
  let observer: QmpClient | undefined;
  let primary: JsonProcess | undefined;
  afterEach(async () => {
    await observer?.close();
    await primary?.process.kill();
  });

  test.each([
    { what: 'private RAM', args: [], ram: false, reason: /private memory|no memory backend/ },
    { what: 'a VGA', args: ['-device', 'VGA,romfile='], ram: true, reason: /display adapter/ },
  ])('$what: nothing was changed', async ({ what, args, ram, reason }) => {
    const name = what.replace(' ', '-');
    const [qmpPath, observerPath] = [lab.path(`${name}-qmp`), lab.path(`${name}-observer`)];
    const qemu = await lab.host('a').spawn('qemu-system-x86_64', [
      ...guestArgs({
        serialPath: lab.path(`${name}-serial`),
        qmpPath,
        tap: 'tap0',
        ramMb: 128,
        ...(ram ? { ramPath: lab.sharedMemoryPath(`${name}-ram`) } : {}),
      }),
      ...args,
      ...['-qmp', `unix:${observerPath},server=on,wait=off`],
    ]);
    observer = await QmpClient.connect(observerPath);
    const before = await qemuState(qemu.pid, observer);
    primary = await startPrimary(lab, { host: 'a', backup: 'b', vm: ['--qmp', qmpPath] });
    expect(await primary.process.exited).toEqual({ code: 3, signal: null });
    expect(primary.process.stdout).toMatch(/HOLDFAST_E_UNSUPPORTED_VM/);
    expect(primary.process.stdout).toMatch(reason);
    const stopped = new Promise<void>((resolve) => observer!.on('STOP', () => resolve()));
    await waitFor('the monitor connection to be closed', () => {
      return descriptorsOf(qemu.pid).length <= before.descriptors.length;
    });
    expect(await qemuState(qemu.pid, observer)).toEqual(before);
    // Not even for a moment: a STOP would have come before the answer just seen.
    await expect(Promise.race([stopped, Promise.resolve('never')])).resolves.toBe('never');
    await qemu.kill();
  });
});
