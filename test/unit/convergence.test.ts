import { describe, expect, it } from 'vitest';
import { CaptureModeChooser } from '../../lib/primary/capture-mode.js';
import { fixedConvergence, type RoundStats } from '../../lib/primary/convergence.js';

const rounds = (...pages: number[]): RoundStats[] =>
  pages.map((each) => ({
    ...{ pages: each, zeroPages: 0, bytes: each * 4096 },
    ...{ roundMs: 2, dirtyPages: 0, scanMs: 1, sendMs: 1 },
  }));

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

  it('what was skipped counts: a round is not small for that', () => {
    const skipping = { ...rounds(600)[0]!, skippedPages: 30_000 };
    expect(enough([...rounds(100_000), skipping])).toBe(false);
    expect(enough([...rounds(100_000), skipping, skipping])).toBe(true);
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
    chooser.observe({ copiedBytes: 1 << 20, copyMs: 1, sentBytes: 1 << 20, ackMs: 5 });
    expect(chooser.next()).toBe('staged');
    for (let epoch = 0; epoch < 50; epoch += 1) {
      chooser.observe({ copiedBytes: 1 << 20, copyMs: 1, sentBytes: 1 << 20, ackMs: 0.5 });
    }
    expect(chooser.next()).toBe('direct');
  });

  it('auto: learns nothing from an epoch without dirty pages, nor a copy rate from a direct one', () => {
    const chooser = new CaptureModeChooser('auto');
    chooser.observe({ copiedBytes: 0, copyMs: 0, sentBytes: 0, ackMs: 100 });
    expect(chooser.next()).toBe('staged');
    chooser.observe({ copiedBytes: 1 << 20, copyMs: 0, sentBytes: 1 << 20, ackMs: 1 });
    expect(chooser.next()).toBe('staged');
  });
});
