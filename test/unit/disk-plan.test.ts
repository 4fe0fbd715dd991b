import { describe, expect, it, test } from 'vitest';
import type { PeerDisk } from '../../lib/native.js';
import { CopyMeter } from '../../lib/primary/copy-progress.js';
import { planDisk, planDisks } from '../../lib/primary/disk-plan.js';
import { isJournalShareFull } from '../../lib/primary/disk-tick.js';
import { MapWindows } from '../../lib/primary/map-windows.js';

const a = 'a'.repeat(32);
const b = 'b'.repeat(32);
const never = '0'.repeat(32);

const disk = (known: Partial<PeerDisk>): PeerDisk => ({
  id: 'vda',
  syncId: a,
  trusted: true,
  fresh: false,
  markedBytes: 65_536,
  localSyncId: a,
  localTrusted: true,
  localMarkedBytes: 131_072,
  ...known,
});

describe('what is sent of a disk', () => {
  it('only what changed, where both know what that is', () => {
    expect(planDisk(disk({}))).toMatchObject({ id: 'vda', what: 'changed', changedBytesMax: 196_608 });
  });

  test.each<[string, Partial<PeerDisk>, RegExp]>([
    ['a new image', { fresh: true, syncId: never }, /new/],
    ['a new image with an old id', { fresh: true }, /new/],
    ['a copy that never got to its end', { syncId: never }, /never a whole copy/],
    ['a disk that was never protected', { localSyncId: never }, /never copied/],
    ['neither was ever in sync: equal, and worth nothing', { syncId: never, localSyncId: never }, /never/],
    ['copies of different disks', { syncId: b }, /not copies/],
    ['a crash of the host here', { localTrusted: false }, /this host/],
    ['a crash of the host there', { trusted: false }, /backup's host/],
    ['crashes of both', { trusted: false, localTrusted: false }, /host/],
    ['different ids, after a crash', { syncId: b, trusted: false }, /not copies/],
  ])('all of it: %s', (_name, known, reason) => {
    const plan = planDisk(disk(known));
    expect(plan.what).toBe('all');
    expect(plan.reason).toMatch(reason);
    expect(plan.changedBytesMax).toBeUndefined();
  });

  it('each disk by itself', () => {
    const plans = planDisks([disk({}), disk({ id: 'vdb', fresh: true })]);
    expect(plans.map(({ id, what }) => [id, what])).toEqual([
      ['vda', 'changed'],
      ['vdb', 'all'],
    ]);
  });
});

describe('how far a copy is', () => {
  it('knows no rate before it has measured', () => {
    const meter = new CopyMeter();
    expect(meter.progress).toBeUndefined();
    expect(meter.sample(1_000, 0, 1_000)).toEqual({
      doneBytes: 0,
      totalBytes: 1_000,
      bytesPerSecond: undefined,
      secondsLeft: undefined,
    });
    expect(meter.sample(1_200, 100, 1_000).bytesPerSecond).toBeUndefined();
  });

  it('tells rate and time left', () => {
    const meter = new CopyMeter();
    meter.sample(0, 0, 1_000);
    expect(meter.sample(2_000, 200, 1_000)).toEqual({
      doneBytes: 200,
      totalBytes: 1_000,
      bytesPerSecond: 100,
      secondsLeft: 8,
    });
  });

  it('speaks of the last seconds, not of all', () => {
    const meter = new CopyMeter();
    for (let second = 0; second <= 20; second += 1) meter.sample(second * 1_000, second * 1_000, 1e6);
    for (let second = 21; second <= 40; second += 1) meter.sample(second * 1_000, 20_000, 1e6);
    expect(meter.progress).toMatchObject({ bytesPerSecond: 0, secondsLeft: undefined });
  });

  it('is never done before nothing is left', () => {
    const meter = new CopyMeter();
    meter.sample(0, 0, 100);
    expect(meter.sample(1_000, 120, 100).secondsLeft).toBe(0); // the guest has made it larger meanwhile
  });
});

describe('an epoch that ends because of its disk writes', () => {
  const journalBytes = 1_000;
  const boundary = new Map([
    ['vda', 5_000],
    ['vdb', 0],
  ]);

  it.each([
    [5_000, 0, false],
    [5_250, 250, false],
    [5_251, 0, true],
    [5_000, 251, true],
  ])('vda at %i, vdb at %i: %s', (vda, vdb, expected) => {
    const logs = [
      { id: 'vda', loggedBytes: vda },
      { id: 'vdb', loggedBytes: vdb },
    ];
    expect(isJournalShareFull(logs, boundary, journalBytes)).toBe(expected);
  });

  it('counts a disk from 0 that no boundary has named', () => {
    expect(isJournalShareFull([{ id: 'vdc', loggedBytes: 300 }], boundary, journalBytes)).toBe(true);
  });
});

describe('the windows of a map', () => {
  it("rotate at a session's first acknowledgement", () => {
    expect(new MapWindows().isDue(100, 130)).toBe(true);
  });

  it.each([
    ['the pause came before the older window ended', 990, 5_000, false],
    ['it began with the rotation itself: a write may have come between', 1_000, 5_000, false],
    ['the pause came after it', 1_001, 5_000, true],
    ['but not so soon again', 1_010, 1_999, false],
    ['but so soon', 1_010, 2_000, true],
  ])('rotated at 1,000 ms, %s', (_what, pauseStartMs, nowMs, expected) => {
    const windows = new MapWindows();
    windows.rotated(1_000);
    expect(windows.isDue(pauseStartMs, nowMs)).toBe(expected);
  });
});
