/** Scheduler events to what became of each thread: a table of cases, and a random scheduler that knows the truth. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeSchedEvents, type SchedEvent } from '../../lib/trace/sched-events.js';
import { type CoreSlice, threadHistories } from '../../lib/trace/thread-history.js';

const on = (atUs: number, core: number, next: number, prev = 0): SchedEvent => ({
  ...{ kind: 'switch', atUs, core, prev, next, preempted: prev === 0 },
});
const off = (atUs: number, core: number, prev: number, preempted = false, next = 0): SchedEvent => ({
  ...{ kind: 'switch', atUs, core, prev, next, preempted },
});
const wake = (atUs: number, tid: number, core: number): SchedEvent => ({ kind: 'wakeup', atUs, tid, core });
const move = (atUs: number, tid: number, from: number, to: number): SchedEvent => ({
  ...{ kind: 'migrate', atUs, tid, from, to },
});

const one = (events: readonly SchedEvent[], ranOn?: number) =>
  threadHistories(events, [{ tid: 7, ranOn }], 100)[0]!;

const slice = (core: number, fromUs: number, toUs: number, ended: CoreSlice['ended']): CoreSlice => ({
  ...{ core, fromUs, toUs, ended },
});

describe('histories of threads', () => {
  it('a thread that comes and sleeps', () => {
    expect(one([on(10, 1, 7), off(30, 1, 7)]).slices).toEqual([slice(1, 10, 30, 'slept')]);
  });

  it('one that was on a core before the trace, and one that still is', () => {
    expect(one([off(30, 1, 7), on(60, 0, 7)]).slices).toEqual([
      slice(1, 0, 30, 'slept'),
      slice(0, 60, 100, 'trace-ended'),
    ]);
  });

  it('one that never left its core makes no events: its CPU time tells', () => {
    expect(one([], 3).slices).toEqual([slice(3, 0, 100, 'trace-ended')]);
    expect(one([], undefined).slices).toEqual([]);
    // Woken though it ran: it was about to sleep, and is on the core still.
    expect(one([wake(50, 7, 3)], 3).slices).toEqual([slice(3, 0, 100, 'trace-ended')]);
    expect(one([wake(50, 7, 3), off(60, 3, 7)])).toMatchObject({
      slices: [slice(3, 0, 60, 'slept')],
      gaps: 0,
    });
  });

  it('waits: from being woken, or pushed off, to running', () => {
    const { waits } = one([wake(5, 7, 0), on(8, 0, 7), off(20, 0, 7, true, 9), on(45, 0, 7)]);
    expect(waits).toEqual([
      { fromUs: 5, toUs: 8, core: 0, pushedOffBy: undefined },
      { fromUs: 20, toUs: 45, core: 0, pushedOffBy: 9 },
    ]);
  });

  it('who slept did not wait', () => {
    expect(one([on(8, 0, 7), off(20, 0, 7), on(45, 0, 7)]).waits).toEqual([]);
  });

  it('a migration is told once, with the time to running again; one to the same core is none', () => {
    const { migrations } = one([
      on(1, 0, 7),
      off(10, 0, 7, true),
      move(11, 7, 0, 1),
      on(15, 1, 7),
      move(50, 7, 1, 1),
    ]);
    expect(migrations).toEqual([{ atUs: 11, from: 0, to: 1, ranAfterUs: 4 }]);
  });

  it('one after which it never ran has no such time', () => {
    expect(one([on(1, 0, 7), off(10, 0, 7), move(11, 7, 0, 1)]).migrations).toEqual([
      { atUs: 11, from: 0, to: 1, ranAfterUs: undefined },
    ]);
  });

  it('where events were lost, nothing is made up', () => {
    const history = one([
      on(10, 0, 7),
      on(20, 0, 8, 9),
      { kind: 'lost', atUs: 60, core: 0, events: 12 },
      off(70, 0, 7),
      on(80, 1, 7),
    ]);
    expect(history.slices).toEqual([slice(0, 10, 20, 'unknown'), slice(1, 80, 100, 'trace-ended')]);
    expect(history.gaps).toBe(2);
  });

  it('a loss on another core means nothing', () => {
    expect(one([on(10, 0, 7), { kind: 'lost', atUs: 60, core: 1, events: 1 }, off(70, 0, 7)])).toMatchObject({
      slices: [slice(0, 10, 70, 'slept')],
      gaps: 0,
    });
  });

  it('one that appears on a second core, its leaving unseen, is cut', () => {
    expect(one([on(10, 0, 7), on(50, 1, 7)])).toMatchObject({
      slices: [slice(0, 10, 50, 'unknown'), slice(1, 50, 100, 'trace-ended')],
      gaps: 1,
    });
  });
});

/** A scheduler of two cores and four threads, driven by random numbers; it writes down what it did. */
const simulate = (choices: readonly number[]) => {
  const cores = 2;
  const tids = [1, 2, 3, 4];
  const events: SchedEvent[] = [];
  const truth = new Map(tids.map((tid) => [tid, { slices: [] as CoreSlice[], migrations: 0, waitedUs: 0 }]));
  const running: (number | undefined)[] = [undefined, undefined];
  const since = new Map<number, number>();
  const home = new Map(tids.map((tid) => [tid, tid % cores]));
  const waitingSince = new Map<number, number>();
  let atUs = 0;
  const end = (core: number, tid: number, ended: CoreSlice['ended']): void => {
    truth.get(tid)!.slices.push({ core, fromUs: since.get(tid)!, toUs: atUs, ended });
    running[core] = undefined;
  };
  const begin = (core: number, tid: number, prev: number | undefined, preempted: boolean): void => {
    events.push({ kind: 'switch', atUs, core, prev: prev ?? 0, next: tid, preempted });
    running[core] = tid;
    since.set(tid, atUs);
    const waited = waitingSince.get(tid);
    if (waited !== undefined) truth.get(tid)!.waitedUs += atUs - waited;
    waitingSince.delete(tid);
  };
  for (const choice of choices) {
    atUs += 1 + (choice % 7);
    const tid = tids[choice % 4]!;
    const core = home.get(tid)!;
    const isOn = running[core] === tid;
    const action = Math.floor(choice / 8) % 4;
    if (isOn && action < 2) {
      events.push({ kind: 'switch', atUs, core, prev: tid, next: 0, preempted: false });
      end(core, tid, 'slept');
    } else if (!isOn && waitingSince.has(tid) && action === 2) {
      events.push({ kind: 'migrate', atUs, tid, from: core, to: 1 - core });
      home.set(tid, 1 - core);
      truth.get(tid)!.migrations += 1;
    } else if (!isOn && waitingSince.has(tid)) {
      const prev = running[core];
      if (prev !== undefined) {
        end(core, prev, 'preempted');
        waitingSince.set(prev, atUs);
      }
      begin(core, tid, prev, true);
    } else if (!isOn) {
      events.push({ kind: 'wakeup', atUs, tid, core });
      waitingSince.set(tid, atUs);
    }
  }
  atUs += 1;
  running.forEach((tid, core) => {
    if (tid !== undefined) end(core, tid, 'trace-ended');
  });
  return { events, truth, endUs: atUs, tids };
};

describe('a random scheduler', () => {
  it('is reconstructed exactly, in whatever order its events come', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(255), { maxLength: 400 }), fc.boolean(), (choices, reversed) => {
        const { events, truth, endUs, tids } = simulate(choices);
        const given = reversed ? [...events].reverse() : events;
        // Events of one moment are of one core, and in order: only whole times may change places.
        fc.pre(!reversed || new Set(events.map(({ atUs }) => atUs)).size === events.length);
        for (const history of threadHistories(
          given,
          tids.map((tid) => ({ tid })),
          endUs,
        )) {
          const expected = truth.get(history.tid)!;
          expect(history.slices).toEqual(expected.slices);
          expect(history.migrations).toHaveLength(expected.migrations);
          expect(history.waits.reduce((sum, { fromUs, toUs }) => sum + toUs - fromUs, 0)).toBe(
            expected.waitedUs,
          );
          expect(history.gaps).toBe(0);
        }
      }),
    );
  });

  it('with events missing: slices of a thread never overlap, and none ends before it begins', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(255), { maxLength: 300 }), fc.array(fc.nat(299)), (choices, missing) => {
        const { events, endUs, tids } = simulate(choices);
        const gone = new Set(missing);
        const left = events.map(
          (event, index): SchedEvent =>
            gone.has(index) ? { kind: 'lost', atUs: event.atUs, core: index % 2, events: 1 } : event,
        );
        for (const { slices } of threadHistories(
          left,
          tids.map((tid) => ({ tid })),
          endUs,
        )) {
          slices.forEach(({ fromUs, toUs }, index) => {
            expect(toUs).toBeGreaterThanOrEqual(fromUs);
            expect(fromUs).toBeGreaterThanOrEqual(slices[index - 1]?.toUs ?? 0);
          });
        }
      }),
    );
  });
});

describe('events of the addon', () => {
  const event = (kind: number, core: number, first: number, second: number, third: number): Buffer => {
    const bytes = Buffer.alloc(24);
    bytes.writeBigUInt64LE(5_000_001_500n, 0);
    bytes.writeUInt16LE(kind, 8);
    bytes.writeUInt16LE(core, 10);
    bytes.writeInt32LE(first, 12);
    bytes.writeInt32LE(second, 16);
    bytes.writeUInt32LE(third, 20);
    return bytes;
  };

  it.each([
    [event(1, 3, 7, 8, 0), { kind: 'switch', core: 3, prev: 7, next: 8, preempted: true }],
    // TASK_REPORT_MAX: preempted while it was about to sleep
    [event(1, 3, 7, 8, 0x100), { kind: 'switch', core: 3, prev: 7, next: 8, preempted: true }],
    [event(1, 3, 7, 8, 1), { kind: 'switch', core: 3, prev: 7, next: 8, preempted: false }],
    [event(2, 0, 7, 0, 1), { kind: 'migrate', tid: 7, from: 0, to: 1 }],
    [event(3, 0, 7, 0, 1), { kind: 'wakeup', tid: 7, core: 1 }],
    [event(4, 1, 0, 0, 99), { kind: 'lost', core: 1, events: 99 }],
  ])('are read as they lie: %#', (bytes, expected) => {
    expect(decodeSchedEvents(bytes, 5_000_000_000)).toEqual([{ atUs: 1.5, ...expected }]);
  });

  it('of an unknown kind, and half of one, are passed over', () => {
    expect(
      decodeSchedEvents(Buffer.concat([event(9, 0, 0, 0, 0), event(1, 0, 1, 2, 0).subarray(0, 20)]), 0),
    ).toEqual([]);
  });
});
