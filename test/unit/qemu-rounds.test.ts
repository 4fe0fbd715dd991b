import { describe, expect, it } from 'vitest';
import { type QemuRamCounters, QemuRounds } from '../../lib/migrate/qemu-rounds.js';

/** Counters as QEMU gives them: totals since the begin. */
const counters = (pass: number, normal: number, remainingPages: number, duplicate = 0): QemuRamCounters => ({
  'dirty-sync-count': pass,
  normal,
  duplicate,
  transferred: normal * 4104 + duplicate * 9,
  remaining: remainingPages * 4096,
  'page-size': 4096,
});

describe("rounds from QEMU's counters", () => {
  it('a round ends when QEMU has looked for dirty pages once more', () => {
    const rounds = new QemuRounds(1_000);
    expect(rounds.observe(counters(1, 0, 32_768), 1_010)).toBeUndefined();
    expect(rounds.observe(counters(1, 9_000, 20_000, 3_000), 1_500)).toBeUndefined();
    expect(rounds.observe(counters(2, 12_000, 4_000, 20_000), 2_000)).toEqual({
      pages: 12_000,
      zeroPages: 20_000,
      bytes: 12_000 * 4104 + 20_000 * 9,
      roundMs: 1_000,
      dirtyPages: 4_000,
    });
    expect(rounds.observe(counters(2, 14_000, 2_000, 20_000), 2_100)).toBeUndefined();
    expect(rounds.observe(counters(3, 16_000, 500, 20_000), 2_250)).toEqual({
      pages: 4_000,
      zeroPages: 0,
      bytes: 4_000 * 4104,
      roundMs: 250,
      dirtyPages: 500,
    });
  });

  it('several that ended between two looks are one', () => {
    const rounds = new QemuRounds(0);
    expect(rounds.observe(counters(4, 10_000, 7), 300)).toMatchObject({ pages: 10_000, roundMs: 300 });
    expect(rounds.observe(counters(4, 10_007, 0), 301)).toBeUndefined();
  });
});
