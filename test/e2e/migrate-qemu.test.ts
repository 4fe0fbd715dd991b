/**
 * QEMU's own pre-copy with our policies, on real QEMUs: a Linux guest moves from host a to host b and, writing
 * memory faster than the migration may send, back again. And what is left where a migration fails: always one VM.
 */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CancelledError, LimitError, QmpError, StandbyError } from '../../lib/errors.js';
import { migrationPolicy } from '../../lib/migrate/policies.js';
import {
  type MigrationRoundReport,
  migrateWithQemu,
  type QemuMigrationOptions,
} from '../../lib/migrate/qemu-engine.js';
import { openQemuTarget } from '../../lib/migrate/qemu-target.js';
import type { MigrationTarget } from '../../lib/migrate/target.js';
import { QmpClient } from '../../lib/qmp/client.js';
import { guestArgs, guestReadyText } from '../lab/guest.js';
import { checkMemwriter, guestBootId, guestOutput, startMemwriter } from '../lab/guest-shell.js';
import { Lab } from '../lab/lab.js';
import { replicationLinks } from '../lab/network.js';
import type { LabProcess } from '../lab/process.js';
import { waitForText } from '../lab/wait.js';

type Host = 'a' | 'b';

const addresses: Readonly<Record<Host, string>> = {
  a: replicationLinks.aToB.from.address,
  b: replicationLinks.aToB.to.address,
};
/** Of the runs with the writer: its working set takes five times as long as the downtime that is asked for. */
const BANDWIDTH = 48 << 20;
const WORKING_SET_PAGES = 3_072;
const DOWNTIME_MS = 50;
const ROUNDS_MAX = 4;

interface Qemu {
  readonly host: Host;
  readonly process: LabProcess;
  readonly qmp: QmpClient;
  readonly serialPath: string;
}

let lab: Lab;
let started = 0;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'migq' });
});
afterAll(async () => {
  await lab.close();
});

const start = async (
  host: Host,
  args: (serialPath: string) => readonly string[],
  incoming = false,
): Promise<Qemu> => {
  started += 1;
  const qmpPath = lab.path(`qmp-${started}`);
  const serialPath = lab.path(`serial-${started}`);
  const qemu = await lab
    .host(host)
    .spawn('qemu-system-x86_64', [
      ...args(serialPath),
      ...['-qmp', `unix:${qmpPath},server=on,wait=off`],
      ...(incoming ? ['-incoming', 'defer'] : []),
    ]);
  return { host, process: qemu, qmp: await QmpClient.connect(qmpPath), serialPath };
};

/** Of a size that QEMU 7.2 migrates soundly under TCG (qemu-dirty-log.ts). */
const RAM_MB = 128 + 8 / 1024;
const linuxGuest = (serialPath: string): string[] =>
  guestArgs({ workload: 'idle', ramMb: RAM_MB, serialPath });
const bareGuest = (): string[] => [
  ...['-M', 'q35', '-accel', 'tcg', '-m', '65544K', '-nodefaults', '-vga', 'none', '-display', 'none'],
];

const end = async ({ process, qmp }: Qemu): Promise<void> => {
  await qmp.close();
  await process.kill();
};

const statusOf = async ({ qmp }: Qemu): Promise<string> => (await qmp.execute('query-status')).status;

const settingsOf = async ({ qmp }: Qemu) => ({
  capabilities: await qmp.execute('query-migrate-capabilities'),
  parameters: await qmp.execute('query-migrate-parameters'),
});

describe('01 a Linux guest', { timeout: 90_000 }, () => {
  let vm: Qemu;
  let bootId: string;
  const lastRounds: MigrationRoundReport[] = [];

  beforeAll(async () => {
    vm = await start('a', linuxGuest);
    await waitForText(vm.serialPath, guestReadyText, { timeoutMs: 50_000 });
    bootId = await guestBootId(lab.client);
  });

  /** Moves it to the other host; the QEMU that it left is ended. */
  const move = async (
    options: Omit<QemuMigrationOptions, 'qmp' | 'target'>,
  ): Promise<Awaited<ReturnType<typeof migrateWithQemu>>> => {
    lastRounds.length = 0;
    const there = await start(vm.host === 'a' ? 'b' : 'a', linuxGuest, true);
    try {
      await using target = await openQemuTarget({ qmp: there.qmp, address: addresses[there.host] });
      const onRound = (report: MigrationRoundReport): void => void lastRounds.push(report);
      const result = await migrateWithQemu({ ...options, qmp: vm.qmp, target, onRound });
      expect(await statusOf(vm)).toBe('postmigrate');
      expect(await statusOf(there)).toBe('running');
      await end(vm);
      vm = there;
      return result;
    } catch (error) {
      await end(there);
      throw error;
    }
  };

  /** Neither restarted nor left behind: its console is that of the QEMU that has it now. */
  const expectAlive = async (mark: string): Promise<void> => {
    expect(await guestBootId(lab.client)).toBe(bootId);
    await guestOutput(lab.client, `echo ${mark} > /dev/console`);
    await waitForText(vm.serialPath, mark);
  };

  test('idle, moves by the policy fixed', async () => {
    const { totalMs, downtimeMs, bytes, rounds } = await move({
      policy: migrationPolicy('fixed'),
      downtimeMs: 300,
    });
    expect(vm.host).toBe('b');
    expect(downtimeMs).toBeGreaterThan(0);
    expect(downtimeMs).toBeLessThan(totalMs);
    expect(bytes).toBeGreaterThan(16 << 20);
    expect(rounds.every(({ pages, roundMs }) => pages >= 0 && roundMs > 0)).toBe(true);
    await expectAlive('MOVED-TO-B');
  });

  test('writing memory, does not converge by the policy fixed, and runs on where it is', async () => {
    await startMemwriter(lab.client, { pagesPerSecond: 20_000, workingSetPages: WORKING_SET_PAGES });
    const before = await settingsOf(vm);
    const { written } = await checkMemwriter(lab.client);
    const moved = move({
      policy: migrationPolicy('fixed'),
      downtimeMs: DOWNTIME_MS,
      bandwidthMax: BANDWIDTH,
      limit: { roundsMax: ROUNDS_MAX, totalMsMax: 60_000 },
    });
    await expect(moved).rejects.toThrow(LimitError);
    expect(vm.host).toBe('b');
    expect(await statusOf(vm)).toBe('running');
    expect(await settingsOf(vm)).toEqual(before);
    // The writer's set was sent again and again.
    expect(lastRounds.map(({ decision }) => decision.step)).toEqual(Array(ROUNDS_MAX).fill('next-round'));
    for (const { round } of lastRounds.slice(1)) expect(round.pages).toBeGreaterThan(WORKING_SET_PAGES / 4);
    const after = await checkMemwriter(lab.client);
    expect(after.errors).toBe(0);
    expect(after.written).toBeGreaterThan(written);
    await expectAlive('STILL-ON-B');
  });

  test('writing memory, moves by the policy mp, and every page of it', async () => {
    const { written } = await checkMemwriter(lab.client);
    const { rounds, decision } = await move({
      policy: migrationPolicy('mp'),
      downtimeMs: DOWNTIME_MS,
      bandwidthMax: BANDWIDTH,
    });
    expect(vm.host).toBe('a');
    expect(rounds.length).toBeLessThan(20);
    expect(decision?.step).toBe('stop-and-copy');
    expect(decision?.reason).toContain('memory-intensive');
    expect(decision?.expectedDowntimeMs).toBeGreaterThan(DOWNTIME_MS);
    const after = await checkMemwriter(lab.client);
    expect(after.errors).toBe(0);
    expect(after.written).toBeGreaterThan(written);
    await expectAlive('BACK-ON-A');
  });
});

describe('02 a migration that fails leaves one VM', { timeout: 30_000 }, () => {
  let source: Qemu;
  let there: Qemu;
  let before: Awaited<ReturnType<typeof settingsOf>>;

  beforeEach(async () => {
    [source, there] = await Promise.all([start('a', bareGuest), start('b', bareGuest, true)]);
    before = await settingsOf(source);
    return async () => {
      await Promise.all([source, there].map(end));
    };
  });

  const migrate = async (
    options: Partial<QemuMigrationOptions> = {},
    change: (target: MigrationTarget) => Partial<MigrationTarget> = () => ({}),
  ) => {
    const target = await openQemuTarget({ qmp: there.qmp, address: addresses.b });
    const changed = { ...target, ...change(target) };
    const policy = migrationPolicy('fixed');
    return await migrateWithQemu({ qmp: source.qmp, target: changed, policy, downtimeMs: 300, ...options });
  };

  const expectOnSource = async (): Promise<void> => {
    expect(await statusOf(source)).toBe('running');
    expect(await settingsOf(source)).toEqual(before);
    await there.process.exited;
  };

  /** So slow that there is time for something to happen. */
  const slowly = { bandwidthMax: 64 << 10 };
  const whenActive = async (moved: Promise<unknown>): Promise<void> => {
    moved.catch(() => {}); // its end is expected later
    await source.qmp.once('MIGRATION', { where: ({ data }) => data.status === 'active', timeoutMs: 10_000 });
  };

  test('cancelled in the middle: on the source', async () => {
    const cancel = new AbortController();
    const moved = migrate({ ...slowly, signal: cancel.signal });
    await whenActive(moved);
    cancel.abort();
    await expect(moved).rejects.toThrow(CancelledError);
    await expectOnSource();
  });

  test('the destination dies in the middle: on the source', async () => {
    const moved = migrate(slowly);
    await whenActive(moved);
    await there.process.kill();
    await expect(moved).rejects.toThrow(QmpError);
    await expectOnSource();
  });

  test('nobody listens there: on the source', async () => {
    const moved = migrate({}, () => ({ uri: `tcp:${addresses.b}:1` }));
    await expect(moved).rejects.toThrow(/Failed to connect|Connection refused/);
    await expectOnSource();
  });

  test('everything arrived, and the destination refuses to run it: on the source', async () => {
    let arrived = '';
    const moved = migrate({}, () => ({
      resume: async () => {
        arrived = await statusOf(there);
        throw new QmpError('refused');
      },
    }));
    await expect(moved).rejects.toThrow('refused');
    // It had all, and did not run it by itself.
    expect(arrived).toBe('paused');
    await expectOnSource();
  });

  test('everything arrived, and nobody knows whether it runs there: not on the source', async () => {
    const moved = migrate({}, ({ resume }) => ({
      resume: async () => {
        await resume();
        throw new Error('the answer was lost');
      },
    }));
    await expect(moved).rejects.toThrow(StandbyError);
    await expect.poll(() => statusOf(source)).toBe('postmigrate'); // it may still be cleaning up
    expect(await statusOf(there)).toBe('running');
  });

  test('a QEMU that is not waiting for a VM is no target', async () => {
    await expect(openQemuTarget({ qmp: source.qmp, address: addresses.b })).rejects.toThrow('it is running');
    expect(await statusOf(source)).toBe('running');
  });
});
