import { describe, expect, it } from 'vitest';
import { CaptureModeChooser } from '../../lib/primary/capture-mode.js';
import { fixedConvergence, type RoundStats } from '../../lib/primary/convergence.js';
import { PRESTAGE_PAGES_MIN, PrestageChooser } from '../../lib/primary/prestage.js';

const rounds = (...pages: number[]): RoundStats[] =>
  pages.map((each) => ({ pages: each, zeroPages: 0, bytes: each * 4096, scanMs: 1, sendMs: 1 }));

describe('base sync convergence', () => {
  const enough = fixedConvergence({ pagesSmall: 1_000, roundsMax: 6 });

  it('never stops after the first round, which is the whole of RAM', () => {
    expect(enough([])).toBe(false);
    expect(enough(rounds(10))).toBe(false);
  });

  it('stops when a round is small; zero pages count, for they must be scanned and sent, too', () => {
    expect(enough(rounds(100_000, 1_000))).toBe(true);
    expect(enough(rounds(100_000, 1_001))).toBe(false);
    expect(enough([...rounds(100_000), { ...rounds(600)[0]!, zeroPages: 600 }])).toBe(false);
  });

  it('goes on while rounds shrink, and stops when they no longer do', () => {
    expect(enough(rounds(100_000, 40_000, 16_000))).toBe(false);
    expect(enough(rounds(100_000, 40_000, 39_000))).toBe(true);
    expect(enough(rounds(100_000, 40_000, 90_000))).toBe(true);
  });

  it('gives a second round the benefit of the doubt: the first one is no measure', () => {
    expect(enough(rounds(20_000, 20_000))).toBe(false);
  });

  it('stops at the limit', () => {
    expect(enough(rounds(1e6, 5e5, 2.5e5, 1.2e5, 6e4))).toBe(false);
    expect(enough(rounds(1e6, 5e5, 2.5e5, 1.2e5, 6e4, 3e4))).toBe(true);
  });
});

describe('capture mode', () => {
  it('is what was asked for', () => {
    expect(new CaptureModeChooser('direct').next()).toBe('direct');
    expect(new CaptureModeChooser('staged').next()).toBe('staged');
  });

  it('auto: staged until both rates are known, then the shorter pause', () => {
    const chooser = new CaptureModeChooser('auto');
    expect(chooser.next()).toBe('staged');
    chooser.observe({ dirtyBytes: 1 << 20, copyMs: 1, ackMs: 5 });
    expect(chooser.next()).toBe('staged');
    for (let epoch = 0; epoch < 50; epoch += 1) {
      chooser.observe({ dirtyBytes: 1 << 20, copyMs: 1, ackMs: 0.5 });
    }
    expect(chooser.next()).toBe('direct');
  });

  it('auto: learns nothing from an epoch without dirty pages, nor a copy rate from a direct one', () => {
    const chooser = new CaptureModeChooser('auto');
    chooser.observe({ dirtyBytes: 0, copyMs: 0, ackMs: 100 });
    expect(chooser.next()).toBe('staged');
    chooser.observe({ dirtyBytes: 1 << 20, copyMs: 0, ackMs: 1 });
    expect(chooser.next()).toBe('staged');
  });
});

describe('prestaging', () => {
  const many = 10 * PRESTAGE_PAGES_MIN;
  const useful = { dirtyPages: many, prestagedPages: many, supersededPages: many / 10 };
  const wasted = { ...useful, supersededPages: many - 1 };
  const without = { dirtyPages: many, prestagedPages: 0, supersededPages: 0 };
  const epochsLeftOut = (chooser: PrestageChooser): number => {
    let epochs = 0;
    for (; !chooser.next(); epochs += 1) chooser.observe(without);
    return epochs;
  };

  it('begins with the first epoch that is large, and ends with the first that is small', () => {
    const chooser = new PrestageChooser(true);
    expect(chooser.next()).toBe(false);
    chooser.observe(without);
    expect(chooser.next()).toBe(true);
    chooser.observe(useful);
    expect(chooser.next()).toBe(true);
    chooser.observe({ ...useful, dirtyPages: PRESTAGE_PAGES_MIN - 1 });
    expect(chooser.next()).toBe(false);
  });

  it('is left out after an epoch in which it was in vain; longer each time, and not for ever', () => {
    const chooser = new PrestageChooser(true);
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

  it('does nothing where it is off', () => {
    const chooser = new PrestageChooser(false);
    chooser.observe(without);
    chooser.observe(useful);
    expect(chooser.next()).toBe(false);
  });
});
