/**
 * Traces of real threads, pinned with known affinities: a program that computes
 * without end is put on a core, and moved at known times.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { decodeSchedEvents, EVENT_BYTES } from '../../lib/trace/sched-events.js';
import { monotonicNs, type SchedRecording, startSchedRecording } from '../../lib/trace/sched-recording.js';
import { threadHistories } from '../../lib/trace/thread-history.js';
import { onlineCores, threadTimes } from '../../lib/trace/threads.js';

const run = promisify(execFile);
const cores = await onlineCores();
const [first = 0, second = 0] = cores;

let busy: ChildProcess;
let counters: ReturnType<typeof native.debugCounters>;

const pin = async (core: number): Promise<void> => {
  await run('taskset', ['-cp', String(core), String(busy.pid)]);
};

const record = (options: { ringBytes?: number; eventsMax?: number; keepLatest?: boolean } = {}) =>
  startSchedRecording({
    ...{ native, threads: [busy.pid!], eventsMax: 1_000_000, keepLatest: false, ...options },
  });

const historyOf = async ({ trace, originNs }: SchedRecording) => {
  const endUs = (monotonicNs() - originNs) / 1e3;
  const ranOn = (await threadTimes(busy.pid!, busy.pid!))?.core;
  await trace.close();
  const events = decodeSchedEvents(trace.take(), originNs).filter(({ atUs }) => atUs >= 0 && atUs <= endUs);
  return { endUs, ...threadHistories(events, [{ tid: busy.pid!, ranOn }], endUs)[0]! };
};

beforeEach(async () => {
  counters = native.debugCounters();
  busy = spawn('taskset', ['-c', String(first), 'sh', '-c', 'while :; do :; done'], { stdio: 'ignore' });
  await once(busy, 'spawn');
});

afterEach(async () => {
  const ended = once(busy, 'exit');
  busy.kill('SIGKILL');
  await ended;
  const { threads, descriptors } = native.debugCounters();
  expect({ threads, descriptors }).toEqual({ threads: counters.threads, descriptors: counters.descriptors });
});

describe('a thread of known affinity', { timeout: 20_000 }, () => {
  test('is recorded on its core, and on no other; its time agrees with the kernel’s account', async () => {
    await sleep(50); // past exec, which may move it
    const recording = await record();
    const before = await threadTimes(busy.pid!, busy.pid!);
    await sleep(300);
    const after = await threadTimes(busy.pid!, busy.pid!);
    const { slices, migrations, gaps, endUs } = await historyOf(recording);
    expect(new Set(slices.map(({ core }) => core))).toEqual(new Set([first]));
    expect(migrations).toEqual([]);
    expect(gaps).toBe(0);
    const ranUs = slices.reduce((sum, { fromUs, toUs }) => sum + toUs - fromUs, 0);
    const accountedUs = (after!.ranNs - before!.ranNs) / 1e3;
    // Both leave out what lies between their beginnings and ends, and the account is kept by the tick.
    const apartUs = endUs - (300_000 + 10_000) > 0 ? endUs - 300_000 : 10_000;
    expect(Math.abs(ranUs - accountedUs)).toBeLessThan(apartUs + 10_000);
  });

  test.skipIf(cores.length < 2)('moves when it is made to: each time once, and nowhere else', async () => {
    await sleep(50);
    const recording = await record();
    const moves: { readonly fromUs: number; readonly toUs: number; readonly to: number }[] = [];
    for (let turn = 0; turn < 6; turn += 1) {
      await sleep(20);
      const to = turn % 2 === 0 ? second : first;
      const fromUs = (monotonicNs() - recording.originNs) / 1e3;
      await pin(to);
      moves.push({ fromUs, toUs: (monotonicNs() - recording.originNs) / 1e3, to });
    }
    await sleep(20);
    const { slices, migrations, gaps } = await historyOf(recording);
    expect(migrations.map(({ to }) => to)).toEqual(moves.map(({ to }) => to));
    migrations.forEach(({ atUs, from, to, ranAfterUs }, index) => {
      expect(from).not.toBe(to);
      expect(atUs).toBeGreaterThan(moves[index]!.fromUs);
      expect(atUs).toBeLessThan(moves[index]!.toUs);
      expect(ranAfterUs).toBeGreaterThan(0);
    });
    expect(gaps).toBe(0);
    // Between two moves it ran where it was put.
    for (const { fromUs, toUs, core } of slices) {
      const last = migrations.filter(({ atUs }) => atUs <= fromUs).at(-1);
      expect(core).toBe(last?.to ?? first);
      expect(migrations.some(({ atUs }) => atUs > fromUs && atUs < toUs)).toBe(false);
    }
  });
});

/** Pushes the busy thread off its core, again and again: some events each time. */
const disturb = async (times: number): Promise<void> => {
  const script = `i=0; while [ $i -lt ${times} ]; do sleep 0.0005; i=$((i+1)); done`;
  await run('taskset', ['-c', String(first), 'nice', '-n', '-10', 'sh', '-c', script]);
};

describe('limits', { timeout: 30_000 }, () => {
  test('a full ring: what did not fit is counted, and what is told stays in order', async () => {
    const recording = await record({ ringBytes: 4096 });
    // The thread of the recording sleeps on this core, below the one that is disturbed.
    const { trace, originNs } = recording;
    for (let turn = 0; turn < 20 && trace.stats().lost === 0; turn += 1) {
      // While this process stands still nobody reads: its threads do, so they are stopped as well.
      const stopper = spawn('sh', ['-c', `kill -STOP ${process.pid}; sleep 0.3; kill -CONT ${process.pid}`], {
        stdio: 'ignore',
      });
      await Promise.all([once(stopper, 'exit'), disturb(200)]);
      const events = decodeSchedEvents(trace.take(), originNs);
      for (const [index, { atUs }] of events.entries()) {
        expect(atUs).toBeGreaterThanOrEqual(events[index - 1]?.atUs ?? Number.NEGATIVE_INFINITY);
      }
      const told = events.reduce((sum, event) => sum + (event.kind === 'lost' ? event.events : 0), 0);
      expect(trace.stats().lost).toBeGreaterThanOrEqual(told);
    }
    expect(trace.stats().lost).toBeGreaterThan(0);
    await trace.close();
    trace.take();
  });

  test('a full store keeps the first events, or the last, and counts the others', async () => {
    for (const keepLatest of [false, true]) {
      const { trace } = await record({ eventsMax: 10, keepLatest });
      await disturb(30);
      await trace.close();
      const kept = trace.take();
      const { events, discarded, full } = trace.stats();
      expect(kept.length / EVENT_BYTES).toBe(10);
      expect(full).toBe(true);
      expect(discarded).toBe(events - 10);
    }
  });

  test('it sleeps until a ring is half full: a second of a busy thread wakes it hardly ever', async () => {
    const { trace } = await record();
    await sleep(1_000);
    await trace.close();
    expect(trace.take().length).toBeGreaterThan(0);
    expect(trace.stats().wakeups).toBeLessThanOrEqual(2); // the end is one
  });

  test('closed twice, or before it began', async () => {
    const { trace } = await record();
    await Promise.all([trace.close(), trace.close()]);
    const tracepoints = { switch: { id: 1, prevPid: 24, prevState: 32, nextPid: 56 } };
    expect(() => new native.SchedTrace({ ...tracepoints } as never)).toThrow(TypeError);
  });

  test('a tracepoint that does not exist is refused', async () => {
    const trace = new native.SchedTrace({
      ...{ threads: [process.pid], cores: [first], ringBytes: 4096, eventsMax: 1, keepLatest: false },
      tracepoints: {
        switch: { id: 65_000, prevPid: 24, prevState: 32, nextPid: 56 },
        migrate: { id: 65_000, pid: 12, origCpu: 20, destCpu: 24 },
        wakeup: { id: 65_000, pid: 24, targetCpu: 32 },
      },
    });
    await expect(trace.start()).rejects.toMatchObject({ errno: 22, syscall: 'perf_event_open' });
    await trace.close();
    expect(trace.take()).toHaveLength(0);
  });
});
