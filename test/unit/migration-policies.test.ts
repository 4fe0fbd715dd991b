import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { limitReached } from '../../lib/migrate/migration-limit.js';
import { migrationPolicy, migrationPolicyNames } from '../../lib/migrate/policies.js';
import type {
  MigrationDecision,
  MigrationLimits,
  MigrationPolicy,
  MigrationRound,
} from '../../lib/migrate/policy.js';
import { agedOverheadMs, linkRate, pagesToSend } from '../../lib/migrate/round-figures.js';

const limits: MigrationLimits = { downtimeMs: 300, pageBytes: 4096, overheadMs: 0 };

/** 10 pages a millisecond, 39 MiB/s: the allowed 300 ms carry 3,000 pages. */
const LINK_PAGES_PER_MS = 10;

/** Rounds of a guest that leaves so many pages dirty, after the first over 131,072 (512 MiB). */
const roundsLeaving = (...dirty: readonly number[]): MigrationRound[] =>
  dirty.map((dirtyPages, index) => roundOf(dirty[index - 1] ?? 131_072, dirtyPages));

const roundOf = (pages: number, dirtyPages: number): MigrationRound => ({
  pages,
  zeroPages: 0,
  bytes: pages * 4096,
  roundMs: pages / LINK_PAGES_PER_MS,
  dirtyPages,
});

const steps = (policy: MigrationPolicy, rounds: readonly MigrationRound[], given = limits) =>
  rounds.map((_, index) => policy(rounds.slice(0, index + 1), given).step);

const fixed = migrationPolicy('fixed');
const mp = migrationPolicy('mp');
const auto = migrationPolicy('auto');
const autoWithPostCopy = migrationPolicy('auto', { postCopyOffered: true });

const next = 'next-round';
const stop = 'stop-and-copy';

describe('01 what every policy does', () => {
  describe.each(migrationPolicyNames)('%s', (name) => {
    const policy = migrationPolicy(name);

    it('decides nothing before the first round has ended', () => {
      expect(policy([], limits)).toMatchObject({ step: next, reason: 'Nothing has been sent yet.' });
    });

    it('stops as soon as what remains fits, and not a page before', () => {
      expect(policy(roundsLeaving(3_000), limits)).toMatchObject({ step: stop, expectedDowntimeMs: 300 });
      expect(policy(roundsLeaving(3_001), limits).step).toBe(next);
      expect(policy(roundsLeaving(2_000), { ...limits, overheadMs: 100 }).step).toBe(stop);
      expect(policy(roundsLeaving(2_001), { ...limits, overheadMs: 100 }).step).toBe(next);
    });

    it('stops also after a short stop that took longer than is allowed', () => {
      let overheadMs = 450;
      let rounds = 0;
      for (
        ;
        policy(roundsLeaving(...Array(rounds + 1).fill(10)), { ...limits, overheadMs }).step === next;
        rounds += 1
      ) {
        overheadMs = agedOverheadMs(overheadMs, 10);
        expect(rounds).toBeLessThan(10);
      }
      expect(overheadMs).toBeGreaterThan(10);
      expect(agedOverheadMs(4, 10)).toBe(4);
    });

    it('goes on while rounds shrink fast', () => {
      expect(steps(policy, roundsLeaving(60_000, 20_000, 7_000, 2_500))).toEqual([next, next, next, stop]);
    });

    it('gives a sentence for a reason', () => {
      for (const rounds of [roundsLeaving(9), roundsLeaving(9_000), roundsLeaving(9_000, 9_000, 9_000)]) {
        expect(policy(rounds, limits).reason).toMatch(/^[A-Z0-9].*\.$/);
      }
    });
  });
});

describe('02 a guest that writes as fast as the link', () => {
  const writer = roundsLeaving(8_192, 8_192, 8_192, 8_192, 8_192);

  it('fixed: goes on for ever', () => {
    expect(steps(fixed, writer)).toEqual([next, next, next, next, next]);
    expect(fixed(writer, limits).reason).toBe(
      '8,192 pages (32 MiB) remain, 819 ms at 39 MiB/s: more than the 300 ms allowed.',
    );
  });

  it('mp: two rounds that gain nothing are enough', () => {
    expect(steps(mp, writer.slice(0, 3))).toEqual([next, next, stop]);
    expect(mp(writer.slice(0, 3), limits).reason).toBe(
      '8,192 pages (32 MiB) remain, 819 ms at 39 MiB/s. The guest is memory-intensive (each of the last 2 rounds left 80 % or more of what it had to send), so that further rounds would not bring it under the 300 ms allowed.',
    );
  });

  it('mp: one burst is forgiven', () => {
    expect(steps(mp, roundsLeaving(8_192, 8_000, 4_000, 3_900, 1_900))).toEqual([
      next,
      next,
      next,
      next,
      stop,
    ]);
  });

  it('mp: bursts that come again and again are not', () => {
    const tidal = roundsLeaving(8_000, 5_000, 8_000, 5_000, 8_000);
    expect(steps(mp, tidal)).toEqual([next, next, next, next, stop]);
    expect(mp(tidal, limits).reason).toContain('the last 4 rounds together left more than 50 %');
  });

  it('mp: its thresholds can be set', () => {
    expect(steps(migrationPolicy('mp', { gainlessRounds: 1 }), writer.slice(0, 2))).toEqual([next, stop]);
    const patient = migrationPolicy('mp', { gainlessRounds: 9, stretchRounds: 9 });
    expect(steps(patient, writer)).not.toContain(stop);
    expect(steps(migrationPolicy('mp', { gainlessShare: 0.4 }), roundsLeaving(8_000, 4_000, 3_500))).toEqual([
      next,
      next,
      stop,
    ]);
  });

  it('auto: stops early, in the round that shows it, when that costs little more than allowed', () => {
    expect(steps(auto, writer.slice(0, 2))).toEqual([next, stop]);
    expect(auto(writer.slice(0, 2), limits).reason).toBe(
      '8,192 pages (32 MiB) remain, 819 ms at 39 MiB/s. The guest dirtied 39 MiB/s in the last round (at most 32 MiB a round), against a link of 39 MiB/s: stopping now costs little more than the 300 ms allowed.',
    );
  });

  it('auto: goes over to post-copy when it costs a lot more, where that is offered', () => {
    const large = roundsLeaving(60_000, 60_000, 60_000);
    expect(steps(autoWithPostCopy, large.slice(0, 2))).toEqual([next, 'post-copy']);
    expect(steps(auto, large)).toEqual([next, next, stop]);
    expect(steps(autoWithPostCopy, roundsLeaving(8_192, 8_192))).toEqual([next, stop]);
  });

  it('auto: does not begin on rounds that would take too many', () => {
    // From 60,000 to 3,000 pages by a tenth a round: 28 more.
    expect(steps(autoWithPostCopy, roundsLeaving(60_000, 54_000))).toEqual([next, 'post-copy']);
    expect(steps(auto, roundsLeaving(60_000, 54_000))).toEqual([next, next]);
    expect(auto(roundsLeaving(60_000, 54_000), limits).reason).toContain('may still come down');
    expect(auto(roundsLeaving(60_000, 20_000), limits).reason).toContain('About 2 more rounds');
  });

  it('auto: devices that take too long are nothing that another way would spare', () => {
    expect(autoWithPostCopy(roundsLeaving(5_000), { ...limits, overheadMs: 2_000 }).step).toBe(stop);
  });
});

/**
 * Rounds of a guest that writes a working set at random, `speed` times as fast as the link, for an engine that
 * skips what was written again. Of `x` of the set, dirty when a round begins, a page goes out at time t with
 * exp(-ct), so the round takes ln(1 + speed x)/c and leaves speed x/(1 + speed x); the limit is 1 - 1/speed.
 */
const skippingRounds = (speed: number, setPages: number, count: number): MigrationRound[] => {
  const setMs = setPages / LINK_PAGES_PER_MS;
  const rounds = [roundOf(131_072 - setPages, setPages)];
  for (let dirty = 1; rounds.length < count; ) {
    const roundMs = (setMs / speed) * Math.log(1 + speed * dirty);
    const pages = Math.round(roundMs * LINK_PAGES_PER_MS);
    const skippedPages = Math.round(dirty * setPages) - pages;
    dirty = (speed * dirty) / (1 + speed * dirty);
    rounds.push({
      ...roundOf(pages, Math.round(dirty * setPages)),
      ...{ roundMs, skippedPages },
    });
  }
  return rounds;
};

describe('03 an engine that skips what was written again', () => {
  it('a writer faster than the link comes down to what its speed leaves, and mp sees that', () => {
    const rounds = skippingRounds(1.45, 16_384, 12);
    expect(rounds.at(-1)!.dirtyPages / 16_384).toBeCloseTo(1 - 1 / 1.45, 2);
    expect(steps(fixed, rounds)).not.toContain(stop);
    expect(steps(mp, rounds).indexOf(stop)).toBe(4);
    expect(steps(auto, rounds)).toContain(stop);
    expect(linkRate(rounds)).toBeCloseTo(LINK_PAGES_PER_MS * 4096, -2);
  });

  it('one that is slower is left behind', () => {
    for (const policy of [fixed, mp, auto])
      expect(steps(policy, skippingRounds(0.7, 16_384, 8))).toContain(stop);
    expect(skippingRounds(0.7, 16_384, 12).at(-1)!.dirtyPages).toBeLessThan(300);
  });

  it('a round in which everything was skipped is short, but gains nothing', () => {
    const hot: MigrationRound = {
      ...{ pages: 0, zeroPages: 0, skippedPages: 8_192, bytes: 100 },
      ...{ roundMs: 20, dirtyPages: 8_192 },
    };
    const rounds = [...roundsLeaving(8_192), hot, hot];
    expect(steps(fixed, rounds)).toEqual([next, next, next]);
    expect(steps(mp, rounds)).toEqual([next, next, stop]);
    expect(steps(auto, rounds)).toEqual([next, stop, stop]);
    expect(linkRate(rounds)).toBe(LINK_PAGES_PER_MS * 4096);
  });

  it('what the first round skips it had to send', () => {
    const half = { ...roundOf(65_536, 65_536), skippedPages: 65_536 };
    expect(pagesToSend([half], 0)).toBe(131_072);
    expect(steps(mp, [half, roundOf(65_536, 30_000)])).toEqual([next, next]);
  });
});

describe('04 odd rounds', () => {
  const odd: Readonly<Record<string, MigrationRound>> = {
    'of no time': { ...roundOf(100, 50), roundMs: 0 },
    'of no bytes': { pages: 0, zeroPages: 0, bytes: 0, roundMs: 100, dirtyPages: 50 },
    'of zero pages only': { pages: 0, zeroPages: 9_000, bytes: 0, roundMs: 5, dirtyPages: 50 },
    'of nothing at all': { pages: 0, zeroPages: 0, bytes: 0, roundMs: 0, dirtyPages: 0 },
  };

  it.each(Object.entries(odd))('%s', (_, round) => {
    for (const name of migrationPolicyNames) {
      for (const rounds of [[round], [round, round], [...roundsLeaving(9_000), round]]) {
        const { step, expectedDowntimeMs, reason } = migrationPolicy(name)(rounds, limits);
        expect([next, stop]).toContain(step);
        expect(expectedDowntimeMs).toBeGreaterThanOrEqual(0);
        expect(reason).not.toMatch(/NaN|∞|Infinity|undefined/);
      }
    }
  });

  it('a link that nothing was sent over is not known: one more round', () => {
    const { step, expectedDowntimeMs, reason } = fixed([odd['of no bytes']!], limits);
    expect(step).toBe(next);
    expect(expectedDowntimeMs).toBe(Number.POSITIVE_INFINITY);
    expect(reason).toContain("nothing has told the link's rate yet");
  });

  it('the rate is that of the latest round that is large enough to tell', () => {
    const small: MigrationRound = { pages: 3, zeroPages: 0, bytes: 12_288, roundMs: 100, dirtyPages: 3 };
    expect(linkRate(roundsLeaving(60_000, 20_000))).toBe(40_960);
    expect(linkRate([...roundsLeaving(60_000), small])).toBe(40_960);
    expect(linkRate([small])).toBe(122.88);
    expect(linkRate([...roundsLeaving(60_000), { ...roundOf(60_000, 9), roundMs: 60_000 }])).toBe(4_096);
  });

  it('a round that was mostly read from disks does not tell it, but is a bound', () => {
    const read = { ...roundOf(10_000, 100), roundMs: 4_000, diskPages: { verified: 90_000 } };
    const small: MigrationRound = { pages: 100, zeroPages: 0, bytes: 409_600, roundMs: 20, dirtyPages: 3 };
    expect(linkRate([read])).toBe(10_240);
    expect(linkRate([read, small])).toBe(20_480);
    expect(linkRate([read, { ...small, roundMs: 1_000 }])).toBe(10_240);
    expect(linkRate([...roundsLeaving(60_000), read])).toBe(40_960);
    expect(linkRate([{ ...read, diskPages: { verified: 9_000 } }])).toBe(10_240);
  });
});

describe('05 when to give up', () => {
  const limit = { roundsMax: 30, totalMsMax: 60_000 };

  it('says by which limit, and nothing before', () => {
    expect(limitReached({ rounds: 29, elapsedMs: 59_999 }, limit)).toBeUndefined();
    expect(limitReached({ rounds: 30, elapsedMs: 0 }, limit)).toBe('it has not converged within 30 rounds');
    expect(limitReached({ rounds: 0, elapsedMs: 60_000 }, limit)).toBe('it has not converged within 60 s');
  });
});

describe('06 properties', () => {
  const round = fc
    .record({
      pages: fc.nat(200_000),
      zeroPages: fc.nat(200_000),
      skippedPages: fc.nat(200_000),
      roundMs: fc.oneof(fc.constant(0), fc.double({ min: 0.001, max: 1e6, noNaN: true })),
      dirtyPages: fc.nat(200_000),
    })
    .map((each): MigrationRound => ({ ...each, bytes: each.pages * 4104 + each.zeroPages * 9 }));
  const anyRounds = fc.array(round, { maxLength: 12 });
  const anyLimits = fc.record({
    downtimeMs: fc.oneof(fc.constant(1), fc.double({ min: 1, max: 10_000, noNaN: true })),
    pageBytes: fc.constantFrom(4096, 2 << 20),
    overheadMs: fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1_000, noNaN: true })),
  });
  const policies: readonly MigrationPolicy[] = [fixed, mp, auto, autoWithPostCopy];
  const enders: readonly MigrationPolicy[] = [mp, auto, autoWithPostCopy];

  /** Rounds until the policy no longer wants another one. */
  const roundsUntilEnd = (
    policy: MigrationPolicy,
    rounds: readonly MigrationRound[],
    given: MigrationLimits,
  ): number => {
    for (let count = 1; count <= rounds.length; count += 1) {
      if (policy(rounds.slice(0, count), given).step !== next) return count;
    }
    return Number.POSITIVE_INFINITY;
  };

  test('no figure is NaN or negative, no reason shows one that is no number', () => {
    fc.assert(
      fc.property(anyRounds, anyLimits, (rounds, given) => {
        for (const policy of policies) {
          const { expectedDowntimeMs, reason } = policy(rounds, given);
          expect(expectedDowntimeMs).toBeGreaterThanOrEqual(0);
          expect(reason).not.toMatch(/NaN|∞|Infinity|undefined/);
        }
      }),
    );
  });

  test('fixed stops exactly when what remains fits', () => {
    fc.assert(
      fc.property(anyRounds, anyLimits, (rounds, given) => {
        const { step, expectedDowntimeMs } = fixed(rounds, given);
        expect(step === stop).toBe(rounds.length > 0 && expectedDowntimeMs <= given.downtimeMs);
      }),
    );
  });

  test('no policy waits longer than fixed', () => {
    fc.assert(
      fc.property(anyRounds, anyLimits, (rounds, given) => {
        if (fixed(rounds, given).step !== stop) return;
        for (const policy of policies) expect(policy(rounds, given).step).toBe(stop);
      }),
    );
  });

  test('a smaller remainder never costs more, and never keeps fixed waiting', () => {
    fc.assert(
      fc.property(
        fc.array(round, { minLength: 1, maxLength: 8 }),
        fc.nat(),
        anyLimits,
        (rounds, less, given) => {
          const last = rounds.at(-1)!;
          const smaller = [
            ...rounds.slice(0, -1),
            { ...last, dirtyPages: last.dirtyPages - (less % (last.dirtyPages + 1)) },
          ];
          const ofAll = (which: readonly MigrationRound[]): MigrationDecision[] =>
            policies.map((policy) => policy(which, given));
          const [before, after] = [ofAll(rounds), ofAll(smaller)];
          after.forEach(({ expectedDowntimeMs }, index) => {
            expect(expectedDowntimeMs).toBeLessThanOrEqual(before[index]!.expectedDowntimeMs);
          });
          if (before[0]!.step === stop) expect(after[0]!.step).toBe(stop);
        },
      ),
    );
  });

  test('mp and auto end within three rounds when no round leaves less than the one before', () => {
    const growing = fc
      .tuple(fc.nat(200_000), fc.array(fc.nat(20_000), { minLength: 3, maxLength: 8 }))
      .map(([first, growth]) => {
        const dirty = growth.map((_, index) =>
          growth.slice(0, index).reduce((sum, each) => sum + each, first),
        );
        return roundsLeaving(...dirty);
      });
    fc.assert(
      fc.property(growing, anyLimits, (rounds, given) => {
        for (const policy of enders) expect(roundsUntilEnd(policy, rounds, given)).toBeLessThanOrEqual(3);
      }),
    );
  });

  test('mp and auto end whatever the rounds are', () => {
    // 200,000 pages are halved 18 times, in 4 rounds each, before there are none; then two more.
    const roundsMax = 4 * 18 + 4 + 2;
    const many = fc.array(round, { minLength: roundsMax, maxLength: roundsMax });
    fc.assert(
      fc.property(many, anyLimits, (rounds, given) => {
        for (const policy of enders) expect(roundsUntilEnd(policy, rounds, given)).toBeLessThan(Infinity);
      }),
      { numRuns: 50 },
    );
  });

  test('post-copy is never asked of an engine that has none', () => {
    fc.assert(
      fc.property(anyRounds, anyLimits, (rounds, given) => {
        for (const policy of [fixed, mp, auto]) expect(policy(rounds, given).step).not.toBe('post-copy');
      }),
    );
  });
});

describe('07 rounds of real migrations', () => {
  interface RecordedRun {
    readonly name: string;
    readonly downtimeMs: number;
    readonly rounds: readonly MigrationRound[];
  }
  const recorded = JSON.parse(readFileSync(new URL('./migration-rounds.json', import.meta.url), 'utf8')) as {
    readonly pageBytes: number;
    readonly runs: readonly RecordedRun[];
  };

  /** The steps until the policy has had enough, or until the recording ends. */
  const played = (name: string, policy: MigrationPolicy): string[] => {
    const { rounds, downtimeMs } = recorded.runs.find((run) => run.name === name)!;
    const all = steps(policy, rounds, { downtimeMs, pageBytes: recorded.pageBytes, overheadMs: 0 });
    const end = all.findIndex((step) => step !== next);
    return end < 0 ? all : all.slice(0, end + 1);
  };
  const after = (rounds: number, step: string): string[] => [...Array<string>(rounds).fill(next), step];

  it.each([
    ['idle', after(0, stop), after(0, stop), after(0, stop), after(0, stop)],
    ['half-rate-writer', after(2, stop), after(2, stop), after(2, stop), after(2, stop)],
    ['near-rate-writer', after(9, next), after(7, stop), after(7, stop), after(1, 'post-copy')],
    ['fast-writer', after(9, next), after(2, stop), after(2, stop), after(1, 'post-copy')],
    ['fast-writer-mp', after(2, next), after(2, stop), after(2, stop), after(1, 'post-copy')],
  ])('%s', (name, byFixed, byMp, byAuto, byAutoWithPostCopy) => {
    expect(played(name, fixed)).toEqual(byFixed);
    expect(played(name, mp)).toEqual(byMp);
    expect(played(name, auto)).toEqual(byAuto);
    expect(played(name, autoWithPostCopy)).toEqual(byAutoWithPostCopy);
  });
});
