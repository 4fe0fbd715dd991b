/** PrimaryDisks against servers and an engine that write down what they are asked for. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { NOTHING_LOGGED } from '../../lib/log.js';
import type { DiskStats, PeerDisk } from '../../lib/native.js';
import type { CopyProgress } from '../../lib/primary/copy-progress.js';
import { type DiskServerCounts, PrimaryDisks } from '../../lib/primary/disks.js';

const id = 'vda';
const counts: DiskServerCounts = {
  id,
  ...{ writes: 0, writeBytes: 0, flushes: 0, flushMsMax: 0, stalls: 0, stalledMs: 0 },
  ...{ errors: 0, lastErrno: 0, markedBytes: 0 },
};
const never = '0'.repeat(32);
const peer: PeerDisk = {
  id,
  ...{ syncId: never, trusted: true, fresh: true, markedBytes: 0 },
  ...{ localSyncId: never, localTrusted: true, localMarkedBytes: 0 },
};

const setUp = () => {
  const asked: string[] = [];
  const copies: CopyProgress[] = [];
  const errors: string[] = [];
  let due = 0;
  const world = {
    asked,
    copies,
    errors,
    loggedBytes: 0,
    progress: undefined as { doneBytes: number; totalBytes: number } | undefined,
    counts,
    failing: new Set<string>(),
    due: () => due,
    copied: () => {},
    answerRotation: () => {},
    holdRotation: false,
  };
  const ask = (what: string): void => {
    asked.push(what);
    if (world.failing.has(what)) throw new Error(`${what} fails`);
  };
  const disks = new PrimaryDisks({
    servers: {
      disks: [{ id, imagePath: '/srv/vda.raw', imageBytes: 1 << 20 }],
      startLogs: async () => ask('logs on'),
      stopLogs: async () => ask('logs off'),
      setSyncId: async (syncId) => ask(`sync id ${syncId}`),
      rotateMaps: async () => {
        ask('rotate');
        if (world.holdRotation) {
          await new Promise<void>((resolve) => {
            world.answerRotation = resolve;
          });
        }
      },
      counts: async () => [world.counts],
    },
    engine: {
      connectDisks: async () => [peer],
      syncDisks: ({ plans, syncId }) => {
        ask(`copy ${plans.map((plan) => `${plan.id}:${plan.what}`).join(' ')} as ${syncId}`);
        return new Promise((resolve) => {
          world.copied = () => resolve({ bytes: 1, holeBytes: 0, millis: 1 });
        });
      },
      diskProgress: () => world.progress,
      setStopPending: (on) => ask(`stop pending ${on}`),
      diskStats: (): readonly DiskStats[] => [
        {
          id,
          loggedBytes: world.loggedBytes,
          ...{ shippedBytes: 0, receivedBytes: 0, ringUsedBytes: 0, ringBytes: 1, copiedBytes: 0 },
          ...{ flushesOwed: 0, flushesPaid: 0 },
        },
      ],
    },
    log: NOTHING_LOGGED,
    onDue: () => {
      due += 1;
    },
    onPlan: (plans) => asked.push(...plans.map(({ id, what }) => `plan ${id}:${what}`)),
    onCopy: (copy) => copies.push(copy),
    onDiskError: (error) => errors.push(`${error.image}: ${error.errno}`),
  });
  return { ...world, world, disks };
};

const syncIdOf = (asked: readonly string[]): string =>
  asked.findLast((line) => line.startsWith('copy'))!.split(' as ')[1]!;

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

const copyAll = async ({ disks, world }: ReturnType<typeof setUp>): Promise<void> => {
  await disks.begin(1_000);
  const copying = disks.copyImages();
  await vi.advanceTimersByTimeAsync(0);
  world.copied();
  await copying;
};

describe('the disks of a session', () => {
  it('are logged before their images are read', async () => {
    const it = setUp();
    await copyAll(it);
    expect(it.asked).toEqual([
      'plan vda:all',
      'logs on',
      expect.stringMatching(/^copy vda:all as [0-9a-f]{32}$/),
    ]);
  });

  it('tell how far the copy is, until it is done', async () => {
    const { disks, world, copies } = setUp();
    await disks.begin(1_000);
    const copying = disks.copyImages();
    await vi.advanceTimersByTimeAsync(0);
    world.progress = { doneBytes: 0, totalBytes: 4_000 };
    await vi.advanceTimersByTimeAsync(250);
    world.progress = { doneBytes: 1_000, totalBytes: 4_000 };
    await vi.advanceTimersByTimeAsync(1_000);
    expect(disks.copy).toMatchObject({
      doneBytes: 1_000,
      totalBytes: 4_000,
      bytesPerSecond: 1_000,
      secondsLeft: 3,
    });
    expect(copies.at(-1)).toEqual(disks.copy);
    world.copied();
    await copying;
    expect(disks.copy).toBeUndefined();
  });

  it('get a sync id at the first acknowledgement, and forget their marks when the next ones allow it', async () => {
    const test = setUp();
    await copyAll(test);
    const { disks, asked } = test;
    const syncId = syncIdOf(asked);
    asked.length = 0;
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    expect(asked).toEqual([`sync id ${syncId}`, 'rotate']);
    await vi.advanceTimersByTimeAsync(500);
    disks.acknowledged(performance.now());
    expect(asked).toHaveLength(2);
    await vi.advanceTimersByTimeAsync(500);
    const pauseStartMs = performance.now();
    disks.acknowledged(pauseStartMs);
    await vi.advanceTimersByTimeAsync(0);
    expect(asked.slice(2)).toEqual(['rotate']);
    await vi.advanceTimersByTimeAsync(2_000);
    disks.acknowledged(pauseStartMs); // its pause came before the window ended
    expect(asked).toHaveLength(3);
  });

  it('do not wait for one another: a server that answers late is asked once', async () => {
    const test = setUp();
    await copyAll(test);
    const { disks, asked, world } = test;
    world.holdRotation = true;
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(5_000);
    disks.acknowledged(performance.now());
    expect(asked.filter((line) => line === 'rotate')).toHaveLength(1);
    world.answerRotation();
    await vi.advanceTimersByTimeAsync(1_000);
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    expect(asked.filter((line) => line === 'rotate')).toHaveLength(2);
  });

  it('of an earlier session say nothing about those of the next', async () => {
    const test = setUp();
    await copyAll(test);
    const { disks, asked, world } = test;
    world.holdRotation = true;
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    await disks.end();
    await copyAll(test);
    const second = syncIdOf(asked);
    world.answerRotation(); // the first session's
    world.holdRotation = false;
    await vi.advanceTimersByTimeAsync(0);
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    expect(asked.slice(-2)).toEqual([`sync id ${second}`, 'rotate']);
  });

  it('keep their marks where a server fails, and try again', async () => {
    const test = setUp();
    await copyAll(test);
    const { disks, asked, world } = test;
    world.failing.add('rotate');
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    world.failing.clear();
    disks.acknowledged(performance.now());
    await vi.advanceTimersByTimeAsync(0);
    expect(asked.slice(-3)).toEqual([expect.stringMatching(/^sync id/), 'rotate', 'rotate']);
  });

  it('end an epoch when a share of the journal is full of it', async () => {
    const { disks, world, due } = await (async () => {
      const test = setUp();
      await copyAll(test);
      return test;
    })();
    world.loggedBytes = 250;
    await vi.advanceTimersByTimeAsync(100);
    expect(due()).toBe(0);
    world.loggedBytes = 251;
    await vi.advanceTimersByTimeAsync(20);
    expect(due()).toBe(1);
    disks.captured();
    await vi.advanceTimersByTimeAsync(100);
    expect(due()).toBe(1);
    world.loggedBytes = 600;
    await disks.end();
    await vi.advanceTimersByTimeAsync(100);
    expect(due()).toBe(1);
  });

  it('end also where the servers are gone', async () => {
    const { disks, world } = setUp();
    world.failing.add('logs off');
    await expect(disks.end()).resolves.toBeUndefined();
  });

  it('report an image that fails the guest, once', async () => {
    const { disks, world, errors } = setUp();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(errors).toEqual([]);
    world.counts = { ...counts, errors: 1, lastErrno: 5 };
    await vi.advanceTimersByTimeAsync(1_000);
    world.counts = { ...counts, errors: 7, lastErrno: 5 };
    await vi.advanceTimersByTimeAsync(3_000);
    world.counts = { ...counts, errors: 8, lastErrno: 28 };
    await vi.advanceTimersByTimeAsync(1_000);
    expect(errors).toEqual(['/srv/vda.raw: EIO', '/srv/vda.raw: ENOSPC']);
    expect(disks.status()).toMatchObject([{ id, server: { errors: 8, lastError: 'ENOSPC' } }]);
    disks.close();
  });
});
