import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LoadModel, type ObservedEpoch } from '../../lib/primary/load-model.js';
import {
  SLICE_PAGES_MIN,
  SpeculationChooser,
  type SpeculationView,
  VAIN_SHARE_MAX,
} from '../../lib/primary/speculation.js';

const settings = { enabled: true, pageSize: 4_096, stagingPages: 65_536 };

const observed: ObservedEpoch = {
  pauseMs: 3,
  deviceMs: 1.5,
  scanMs: 0.4,
  copyMs: 1,
  pausePages: 1_250,
  dirtyPages: 5_000,
  ranMs: 100,
  releaseDelayMs: 10,
  sentPages: 5_000,
  sendMs: 5,
  ackMs: 10,
  heldFrames: 0,
};

const loadOf = (epoch: Partial<ObservedEpoch>): LoadModel => {
  const load = new LoadModel();
  load.observe({ ...observed, ...epoch });
  return load;
};

const chooserOf = (epoch: Partial<ObservedEpoch> = {}, other: Partial<typeof settings> = {}) =>
  new SpeculationChooser({ ...settings, ...other }, loadOf(epoch));

const begun: SpeculationView = { dueMs: 100, scannedMs: 0, stagedPages: 0, outputWaits: false };

/** All slices of an epoch, taken as planned. */
const slicesOf = (chooser: SpeculationChooser, pagesPerMs: number, dueMs = 100) => {
  const slices: { atMs: number; send: boolean; pages: number }[] = [];
  let view = { ...begun, dueMs };
  for (;;) {
    const plan = chooser.next(view);
    if (plan === undefined) return slices;
    expect(slices.length).toBeLessThan(100);
    const atMs = Math.max(plan.atMs, slices.at(-1)?.atMs ?? 0);
    const pages = Math.min(plan.bytesMax / 4_096, pagesPerMs * (atMs - view.scannedMs));
    slices.push({ atMs, send: plan.send, pages });
    view = {
      ...view,
      scannedMs: view.scannedMs + pages / pagesPerMs,
      stagedPages: view.stagedPages + pages,
    };
  }
};

describe('slices', () => {
  it('of a large epoch: sent ahead now and then, and the last one staged right before the pause', () => {
    const slices = slicesOf(chooserOf(), 50);
    expect(slices.length).toBeGreaterThan(4);
    expect(slices.slice(0, -1).every(({ send }) => send)).toBe(true);
    const last = slices.at(-1)!;
    expect(last.send).toBe(false);
    expect(last.atMs).toBeGreaterThan(97);
    const stagedPages = slices.reduce((sum, { pages }) => sum + pages, 0);
    expect(stagedPages).toBeGreaterThan(4_700);
  });

  it('of an epoch that is sent in no time: the last one only', () => {
    const slices = slicesOf(chooserOf({ ackMs: 0.5, dirtyPages: 500 }), 5);
    expect(slices.map(({ send }) => send)).toEqual([false]);
  });

  it('of a small epoch, or one that costs more to scan than to copy: none', () => {
    expect(chooserOf({ dirtyPages: SLICE_PAGES_MIN - 1 }).next(begun)).toBeUndefined();
    expect(chooserOf({ scanMs: 6, dirtyPages: 1_000 }).next(begun)).toBeUndefined();
    expect(chooserOf({ scanMs: 6, dirtyPages: 20_000 }).next(begun)).toBeDefined();
  });

  it('are not taken where they are off, or where nothing was measured', () => {
    expect(chooserOf({}, { enabled: false }).next(begun)).toBeUndefined();
    expect(new SpeculationChooser(settings, new LoadModel()).next(begun)).toBeUndefined();
  });

  it('fill half of the staging pool, no more', () => {
    expect(chooserOf({}, { stagingPages: 2_000 }).next({ ...begun, stagedPages: 900 })).toBeUndefined();
    const plan = chooserOf({}, { stagingPages: 2_000 }).next({ ...begun, stagedPages: 700 });
    expect(plan!.bytesMax).toBeLessThanOrEqual(300 * 4_096);
  });

  it('do not make output wait for a pause that would hardly get shorter', () => {
    const now = { ...begun, dueMs: 10, outputWaits: true };
    expect(chooserOf().next(now)).toBeUndefined(); // 500 pages, 0.4 ms
    expect(chooserOf({ dirtyPages: 50_000 }).next(now)).toMatchObject({ send: false });
  });

  it('are short, and none is planned before the last scan, whatever the load', () => {
    const positive = (max: number) => fc.double({ min: 0.01, max, noNaN: true });
    fc.assert(
      fc.property(
        positive(10),
        positive(20),
        positive(40),
        fc.nat(60_000),
        positive(200),
        fc.nat(40_000),
        (...of) => {
          const [scanMs, copyMs, ackMs, dirtyPages, dueMs, stagedPages] = of;
          const load = loadOf({ scanMs, copyMs, ackMs, dirtyPages });
          const plan = new SpeculationChooser(settings, load).next({ ...begun, dueMs, stagedPages });
          if (plan === undefined) return;
          const pages = plan.bytesMax / 4_096;
          expect(Number.isInteger(pages)).toBe(true);
          const takesMs = scanMs + pages * (load.copyMsPerPage + (plan.send ? load.sendMsPerPage : 0));
          expect(takesMs <= 1.000_001 || pages === SLICE_PAGES_MIN).toBe(true);
          expect(plan.atMs).toBeGreaterThanOrEqual(0);
          expect(plan.atMs).toBeLessThanOrEqual(dueMs);
          expect(stagedPages + pages).toBeLessThanOrEqual(settings.stagingPages / 2);
        },
      ),
    );
  });
});

describe('speculation in vain', () => {
  const useful = { dirtyPages: 5_000, prestagedPages: 5_000, supersededPages: 500, supersededBytes: 0 };
  const wasted = { ...useful, supersededPages: 4_999 };
  const without = { dirtyPages: 5_000, prestagedPages: 0, supersededPages: 0, supersededBytes: 0 };
  const epochsLeftOut = (chooser: SpeculationChooser): number => {
    let epochs = 0;
    for (; chooser.next(begun) === undefined; epochs += 1) chooser.observe(without);
    return epochs;
  };

  it('is left out for a while; longer each time, and not for ever', () => {
    const chooser = chooserOf();
    const leftOut: number[] = [];
    for (let time = 0; time < 10; time += 1) {
      chooser.observe(wasted);
      leftOut.push(epochsLeftOut(chooser));
    }
    expect(leftOut).toEqual([16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024]);
    chooser.observe(useful);
    chooser.observe(wasted);
    expect(epochsLeftOut(chooser)).toBe(16);
  });

  it('on the link ends what is sent ahead, not what is staged', () => {
    const chooser = chooserOf();
    const vain = { ...useful, supersededBytes: 0.3 * 5_000 * 4_096 };
    expect(chooser.next(begun)).toMatchObject({ send: true });
    chooser.observe(vain);
    expect(chooser.vainShare).toBeGreaterThan(VAIN_SHARE_MAX);
    expect(chooser.next(begun)).toMatchObject({ send: false });
  });

  it('stays below its share of the link, however much is superseded', () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1, noNaN: true }), (share) => {
        const chooser = chooserOf();
        let [vainBytes, usefulBytes] = [0, 0];
        for (let epoch = 0; epoch < 2_000; epoch += 1) {
          const ahead = chooser.next(begun)?.send === true;
          const supersededBytes = ahead ? share * 5_000 * 4_096 : 0;
          chooser.observe({ ...useful, supersededBytes });
          vainBytes += supersededBytes;
          usefulBytes += 5_000 * 4_096;
        }
        expect(vainBytes / usefulBytes).toBeLessThanOrEqual(VAIN_SHARE_MAX);
      }),
    );
  });
});
