import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { CaptureResult } from '../../lib/native.js';
import { sendLoadOf } from '../../lib/primary/send-load.js';

const captured: CaptureResult = {
  mode: 'staged',
  dirtyPages: 1_000,
  prestagedPages: 0,
  supersededPages: 0,
  aheadPages: 0,
  heldBackPages: 0,
  runs: 900,
  laterPages: 0,
  diskBytes: 0,
  scanMs: 0,
  copyMs: 0,
};

describe('what is sent', () => {
  it('is as scattered as guest RAM was, where it is sent from there', () => {
    expect(sendLoadOf({ ...captured, mode: 'direct' }, 4_096)).toEqual({
      pages: 1_000,
      runs: 900,
      pageSize: 4_096,
      source: 'direct',
    });
  });

  it('lies side by side in staging', () => {
    expect(sendLoadOf(captured, 4_096)).toMatchObject({ runs: 1, source: 'staged' });
    expect(sendLoadOf({ ...captured, prestagedPages: 900 }, 4_096).runs).toBe(201);
    expect(sendLoadOf({ ...captured, prestagedPages: 900, supersededPages: 850 }, 4_096).runs).toBe(101);
    expect(sendLoadOf({ ...captured, dirtyPages: 0, runs: 0 }, 4_096).runs).toBe(0);
  });

  it('leaves out what was sent ahead', () => {
    const ahead = { ...captured, prestagedPages: 900, supersededPages: 200, aheadPages: 600, runs: 300 };
    expect(sendLoadOf(ahead, 4_096)).toMatchObject({ pages: 400, runs: 201 });
  });

  it('never has more fragments than there are runs or in the worst merge of the two stretches', () => {
    const stretches = fc.tuple(fc.nat(60), fc.nat(60)).filter(([early, late]) => early + late > 0);
    fc.assert(
      fc.property(stretches, fc.infiniteStream(fc.boolean()), ([early, late], coin) => {
        // Page numbers in order, each page in one of the two stretches of staging: fragments are changes of stretch.
        const order: string[] = [];
        const left = { early, late };
        while (left.early + left.late > 0) {
          const from = left.late === 0 || (left.early > 0 && coin.next().value === true) ? 'early' : 'late';
          left[from] -= 1;
          order.push(from);
        }
        const fragments = order.filter((each, index) => each !== order[index - 1]).length;
        const pages = early + late;
        const { runs } = sendLoadOf(
          { ...captured, dirtyPages: pages, prestagedPages: early, runs: pages },
          4_096,
        );
        expect(runs).toBeGreaterThanOrEqual(fragments);
        expect(runs).toBeLessThanOrEqual(pages);
      }),
    );
  });
});
