/**
 * The guest resets itself while it is protected, and again after a failover: the second needs the ROM blocks of the
 * composite stream's prefix, which the first may have rewritten.
 */

import { afterEach, expect, test } from 'vitest';
import { primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { guestReadyText } from '../lab/guest.js';
import { guestBootId, rebootGuest } from '../lab/guest-shell.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { countInFile, waitFor, waitForText } from '../lab/wait.js';
import { startRedis } from './support/memory-guest.js';

const EPOCHS = 20;
const READY_TIMEOUT_MS = 60_000;

let lab: Lab | undefined;
afterEach(async () => {
  await lab?.close();
  lab = undefined;
});

const expectRedisAnswers = async (where: Lab): Promise<void> => {
  const load = await RedisLoad.start(where.client, { connections: 2 });
  await load.advance(20);
  expect(await load.stop()).toMatchObject({ ok: true, lost: 0, broken: [] });
};

test.each([
  { deviceState: 'xen-save', captureMode: 'staged', vcpus: 1 },
  { deviceState: 'migrate-fd', captureMode: 'direct', vcpus: 2 },
])(
  '$deviceState, $captureMode, $vcpus vCPU',
  {
    timeout: 180_000,
  },
  async ({ deviceState, captureMode, vcpus }) => {
    lab = await Lab.create({ tag: 'reboot' });
    const { client } = lab;
    const here = lab;
    const guest = await startRedis(lab, { vcpus });
    const standbySerial = `${guest.serialPath}-standby`;
    const backup = await startBackup(lab, 'b');
    const primary = await startPrimary(lab, {
      host: 'a',
      backup: 'b',
      vm: ['--qmp', guest.qmpPath],
      args: [
        ...['--device-state', deviceState, '--capture', captureMode, '--heartbeat-timeout', '2s'],
        ...['--interval', '50'],
        ...['--replace', `${guest.serialPath}=${standbySerial}`],
      ],
    });
    await primary.message('protected');

    const firstBoot = await guestBootId(client);
    await rebootGuest(client);
    await waitForText(guest.serialPath, guestReadyText, { count: 2, timeoutMs: READY_TIMEOUT_MS });
    const { committedEpoch } = await primaryStatus(lab);
    await waitFor(`${EPOCHS} epochs after the reboot`, async () => {
      const now = await primaryStatus(here);
      return now.phase === 'protected' && now.committedEpoch >= committedEpoch + EPOCHS;
    });
    // One protection all along: it was neither lost nor begun anew.
    expect(primary.of('waiting')).toEqual([]);
    expect(primary.of('protected')).toHaveLength(1);
    await expectRedisAnswers(lab);
    const secondBoot = await guestBootId(client);
    expect(secondBoot).not.toBe(firstBoot);

    await Promise.all([guest.process.kill(), primary.process.kill()]);
    await backup.message('took-over');
    // The first standby was given another prefix, if the reset has changed it: one that loads it was there in time.
    expect(backup.process.stderr).not.toMatch(/no resume|no prefix ahead/);
    await expectRedisAnswers(lab);
    expect(await guestBootId(client)).toBe(secondBoot);
    expect(countInFile(standbySerial, guestReadyText)).toBe(0);

    await rebootGuest(client);
    await waitForText(standbySerial, guestReadyText, { timeoutMs: READY_TIMEOUT_MS });
    await expectRedisAnswers(lab);
    expect(await guestBootId(client)).not.toBe(secondBoot);
    expect(countInFile(guest.serialPath, 'ERROR') + countInFile(standbySerial, 'ERROR')).toBe(0);
    expect(backup.process.running).toBe(true);
  },
);
