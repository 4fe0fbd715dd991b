import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { UnsupportedHostError } from '../../lib/errors.js';
import type { SenderStrategy } from '../../lib/native.js';
import { CONTEST_SAMPLES, Contest, type SendCost, WIN_MARGIN } from '../../lib/send/contest.js';
import {
  isLocalPeer,
  isOwnAddress,
  unavailableSenders,
  usableSenders,
} from '../../lib/send/sender-availability.js';
import {
  CONTEST_GAP_SENDS,
  LINK_RETRY_SENDS,
  SenderChooser,
  type SenderChooserOptions,
  type SendLoad,
  senderStrategies,
} from '../../lib/send/sender-choice.js';

const scattered: SendLoad = { pages: 5_000, runs: 5_000, pageSize: 4_096, source: 'staged' };
const long: SendLoad = { ...scattered, runs: 50 };
const huge: SendLoad = { pages: 8, runs: 8, pageSize: 2 << 20, source: 'direct' };

type Costs = Readonly<Record<SenderStrategy, number>>;
const even: Costs = { copy: 1, sendfile: 1, splice: 1, vmsplice: 1, zerocopy: 1, uring: 1 };

/** A link and a host on which each strategy costs what the table says. */
const world = (options: Partial<SenderChooserOptions> = {}) => {
  const chooser = new SenderChooser({ sender: 'auto', ...options });
  const send = (
    costs: Costs,
    { load = scattered, noise = 1, copying = [] as readonly SenderStrategy[] } = {},
  ): SenderStrategy => {
    const strategy = chooser.next(load);
    const bytes = load.pages * load.pageSize;
    const copied = strategy === 'copy' || copying.includes(strategy);
    chooser.observe({
      strategy,
      bytes,
      cpuMs: (costs[strategy] * noise * bytes) / 1e6 / 2,
      ackMs: (costs[strategy] * noise * bytes) / 1e6 / 2,
      copiedBytes: copied ? bytes : 0,
      referenceBytes: copied ? 0 : bytes,
    });
    return strategy;
  };
  const many = (sends: number, costs: Costs, options?: Parameters<typeof send>[1]): SenderStrategy[] =>
    Array.from({ length: sends }, () => send(costs, options));
  return { chooser, send, many };
};

/** Contests back to back: every rival of the incumbent once, and once more after a change. */
const LEARNING_SENDS = 2 * senderStrategies.length * 2 * CONTEST_SAMPLES;

const count = (used: readonly SenderStrategy[], strategy: SenderStrategy): number =>
  used.filter((each) => each === strategy).length;

const anyStrategy = fc.constantFrom(...senderStrategies);
const anyLoad = fc.constantFrom(scattered, long, huge);
const anyCosts = fc.record(
  Object.fromEntries(
    senderStrategies.map((strategy) => [strategy, fc.double({ min: 0.2, max: 5, noNaN: true })]),
  ),
) as fc.Arbitrary<Costs>;
/** One factor per send, within `share` of 1. */
const noiseWithin = (share: number) =>
  fc.infiniteStream(fc.double({ min: 1 - share, max: 1 + share, noNaN: true }));

describe('a sender that was asked for', () => {
  it('is always used', () => {
    fc.assert(
      fc.property(anyStrategy, anyLoad, anyCosts, (sender, load, costs) => {
        const { chooser, many } = world({ sender, peerIsLocal: true });
        expect(new Set(many(50, costs, { load }))).toEqual(new Set([sender]));
        expect(chooser.explain()).toEqual({
          strategy: sender,
          reason: 'as configured',
          costs: [],
          excluded: [],
        });
      }),
    );
  });
});

describe('auto', () => {
  it('begins by fragment size, and says that it has measured nothing yet', () => {
    const { chooser } = world();
    expect(chooser.explain().reason).toBe('auto: nothing sent yet');
    expect(chooser.explain().strategy).toBe('sendfile');
    chooser.next(scattered);
    expect(chooser.explain()).toMatchObject({
      strategy: 'vmsplice',
      reason: 'auto: first choice, not measured yet; fragments of 1 page',
    });
    chooser.next(long);
    expect(chooser.explain()).toMatchObject({
      strategy: 'sendfile',
      reason: 'auto: first choice, not measured yet; fragments of 100 pages',
    });
  });

  it('copies what is small, and nothing at all, whatever it has learnt', () => {
    const { chooser, many } = world();
    many(200, { ...even, splice: 0.1 });
    expect(chooser.next({ ...scattered, pages: 20, runs: 20 })).toBe('copy');
    expect(chooser.explain().reason).toBe('auto: 20 pages, too few for anything but a plain write to pay');
    expect(chooser.next({ ...scattered, pages: 0, runs: 0 })).toBe('copy');
    expect(chooser.explain().strategy).toBe('copy');
  });

  it('finds the cheapest, and stays with it but for bounded exploration', () => {
    fc.assert(
      fc.property(anyCosts, anyStrategy, anyLoad, noiseWithin(0.04), (rest, best, load, noise) => {
        const cheapest = Math.min(...Object.values(rest));
        const costs = { ...rest, [best]: cheapest * 0.6 };
        const { chooser, send } = world();
        const one = (): SenderStrategy => send(costs, { load, noise: noise.next().value });
        for (let n = 0; n < LEARNING_SENDS; n += 1) one();
        expect(chooser.explain().strategy).toBe(best);
        const later = Array.from({ length: 5 * CONTEST_GAP_SENDS }, one);
        expect(chooser.explain().strategy).toBe(best);
        expect(later.length - count(later, best)).toBeLessThanOrEqual(5 * CONTEST_SAMPLES);
      }),
      { numRuns: 50 },
    );
  });

  it('does not go to and fro between equals', () => {
    fc.assert(
      fc.property(noiseWithin(WIN_MARGIN / 2 - 0.002), anyLoad, (noise, load) => {
        const { chooser, send } = world();
        send(even, { load });
        const first = chooser.explain().strategy;
        for (let n = 0; n < 2_000; n += 1) send(even, { load, noise: noise.next().value });
        expect(chooser.explain().strategy).toBe(first);
      }),
      { numRuns: 20 },
    );
  });

  it('lets nobody starve: each is measured again within a round of contests', () => {
    fc.assert(
      fc.property(anyCosts, anyLoad, (costs, load) => {
        const { many } = world();
        many(LEARNING_SENDS, costs, { load });
        const rivals = senderStrategies.length - 1;
        const used = many(rivals * (CONTEST_GAP_SENDS + 2 * CONTEST_SAMPLES) + CONTEST_GAP_SENDS, costs, {
          load,
        });
        expect(new Set(used)).toEqual(new Set(senderStrategies));
      }),
      { numRuns: 50 },
    );
  });

  it('notices when another has become the cheapest', () => {
    fc.assert(
      fc.property(anyStrategy, anyStrategy, (before, after) => {
        const { chooser, many } = world();
        many(1_000, { ...even, [before]: 0.5 });
        expect(chooser.explain().strategy).toBe(before);
        many(senderStrategies.length * (CONTEST_GAP_SENDS + 2 * CONTEST_SAMPLES), { ...even, [after]: 0.5 });
        expect(chooser.explain().strategy).toBe(after);
      }),
      { numRuns: 36 },
    );
  });

  it('does not take a busy machine for a costly sender', () => {
    // Everything gets dearer or cheaper at once, in stretches of any length.
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 20, max: 400 }), fc.double({ min: 0.5, max: 8, noNaN: true })), {
          minLength: 2,
          maxLength: 8,
        }),
        (stretches) => {
          const { chooser, many } = world();
          const costs = { ...even, splice: 0.7 };
          many(LEARNING_SENDS, costs);
          for (const [sends, noise] of stretches) {
            many(sends, costs, { noise });
            expect(chooser.explain().strategy).toBe('splice');
          }
        },
      ),
      {
        numRuns: 50,
        // Busier, then quieter again: the border is in the middle of a contest.
        examples: [
          [
            [
              [296, 0.5],
              [143, 0.5],
              [233, 0.5],
              [20, 0.7936507936507938],
              [20, 0.5],
            ],
          ],
        ],
      },
    );
  });

  it('learns for each class of loads by itself', () => {
    const { chooser, many } = world();
    for (let n = 0; n < LEARNING_SENDS; n += 1) {
      many(1, { ...even, copy: 0.5 });
      many(1, { ...even, zerocopy: 0.5 }, { load: long });
    }
    chooser.next(scattered);
    expect(chooser.explain().strategy).toBe('copy');
    chooser.next(long);
    expect(chooser.explain().strategy).toBe('zerocopy');
  });

  it('explains its choice by what it has measured in turns', () => {
    const { chooser, many } = world();
    many(LEARNING_SENDS, { ...even, splice: 0.42, copy: 0.96 });
    const { strategy, reason, costs } = chooser.explain();
    expect(strategy).toBe('splice');
    expect(reason).toBe(
      'auto: 0.21 ms CPU and 0.21 ms to the acknowledgement per MB, against 0.48 and 0.48 of copy; fragments of 1 page',
    );
    expect(costs.map((each) => each.strategy).sort()).toEqual([...senderStrategies].sort());
    for (const each of costs) {
      expect(each.cpuMsPerMB).toBeCloseTo({ ...even, splice: 0.42, copy: 0.96 }[each.strategy] / 2);
    }
  });

  it('never tries what the host lacks, and says so', () => {
    const unavailable = new Map([['uring', 'io_uring is disabled (kernel.io_uring_disabled = 2)']] as const);
    fc.assert(
      fc.property(anyCosts, anyLoad, (costs, load) => {
        const { many, chooser } = world({ unavailable });
        expect(count(many(1_000, { ...costs, uring: 0.01 }, { load }), 'uring')).toBe(0);
        expect(chooser.explain().reason).toMatch(/; not uring: io_uring is disabled \(kernel/);
        expect(chooser.explain().excluded).toEqual([{ strategy: 'uring', reason: unavailable.get('uring') }]);
      }),
      { numRuns: 20 },
    );
  });

  it('survives a host that lacks everything', () => {
    const { chooser } = world({ unavailable: new Map(senderStrategies.map((each) => [each, 'no'])) });
    expect(chooser.next(scattered)).toBe('copy');
  });

  it('leaves MSG_ZEROCOPY alone on a link where the kernel copies, and asks again much later', () => {
    const { chooser, many } = world();
    const costs = { ...even, zerocopy: 0.1, uring: 0.1 };
    const copying = ['zerocopy', 'uring'] as const;
    const used = many(LINK_RETRY_SENDS, costs, { copying });
    expect(count(used, 'zerocopy') + count(used, 'uring')).toBe(1);
    expect(['zerocopy', 'uring']).not.toContain(chooser.explain().strategy);
    expect(chooser.explain().reason).toMatch(
      /; not zerocopy, uring: the kernel copies MSG_ZEROCOPY on this link$/,
    );
    const later = many(LINK_RETRY_SENDS + 2_000, costs, { copying });
    expect(count(later, 'zerocopy') + count(later, 'uring')).toBeGreaterThan(0);
    // A route that leads over a network card from here on.
    many(2 * LINK_RETRY_SENDS, costs);
    expect(['zerocopy', 'uring']).toContain(chooser.explain().strategy);
  });

  it('does not even try it with a peer on the same host, until there is another link', () => {
    const { chooser, many } = world({ peerIsLocal: true });
    const costs = { ...even, zerocopy: 0.1 };
    expect(count(many(3 * LINK_RETRY_SENDS, costs), 'zerocopy')).toBe(0);
    expect(chooser.explain().reason).toContain('not zerocopy, uring: the peer is on this host');
    chooser.relink(false);
    many(LEARNING_SENDS, costs);
    expect(chooser.explain().strategy).toBe('zerocopy');
  });

  it('leaves out what fell back to copying for this memory, and only for it', () => {
    const { chooser, many } = world();
    const copying = ['sendfile', 'splice'] as const;
    const used = many(3_000, { ...even, sendfile: 0.1, splice: 0.1 }, { load: huge, copying });
    expect(count(used, 'sendfile')).toBe(1);
    expect(count(used, 'splice')).toBe(1);
    expect(chooser.explain().excluded).toEqual([
      { strategy: 'sendfile', reason: 'this memory cannot be sent by reference' },
      { strategy: 'splice', reason: 'this memory cannot be sent by reference' },
    ]);
    many(LEARNING_SENDS, { ...even, splice: 0.1 });
    expect(chooser.explain().strategy).toBe('splice');
  });

  it('learns nothing from sends without bytes, and nothing from somebody else', () => {
    const unmeasured = { bytes: 1_000, cpuMs: 1, ackMs: 1, copiedBytes: 0, referenceBytes: 1_000 };
    const { chooser } = world();
    for (let n = 0; n < 1_000; n += 1) {
      const strategy = chooser.next(scattered);
      expect(strategy).toBe('vmsplice');
      if (n % 2 === 0)
        chooser.observe({ ...unmeasured, strategy }); // mostly zero pages
      else chooser.observe({ ...unmeasured, strategy: 'copy', bytes: 1 << 20 });
    }
    expect(chooser.explain().reason).toContain('not measured yet');
  });

  it('gives up a challenger whose sends all fail', () => {
    const { chooser } = world();
    let failed = 0;
    for (let n = 0; n < 3_000; n += 1) {
      const strategy = chooser.next(scattered);
      if (strategy === 'splice') failed += 1;
      else {
        chooser.observe({ strategy, bytes: 20e6, cpuMs: 1, ackMs: 1, copiedBytes: 0, referenceBytes: 20e6 });
      }
    }
    expect(failed).toBeGreaterThan(0);
    expect(failed).toBeLessThanOrEqual(4 * 4 * CONTEST_SAMPLES);
    expect(chooser.explain().strategy).toBe('vmsplice');
  });
});

describe('a contest', () => {
  const cost = (total: number): SendCost => ({ cpuMsPerMB: total / 2, ackMsPerMB: total / 2 });
  const play = (incumbent: () => number, challenger: () => number) => {
    const contest = new Contest('copy', 'splice');
    const turns: SenderStrategy[] = [];
    while (contest.verdict() === 'open') {
      const strategy = contest.next();
      turns.push(strategy);
      contest.add(strategy, cost(strategy === 'copy' ? incumbent() : challenger()));
    }
    return { verdict: contest.verdict(), turns };
  };

  it('takes turns in pairs, and not always in the same order', () => {
    const { turns } = play(
      () => 1,
      () => 1,
    );
    expect(turns.map((each) => each[0]).join('')).toBe('cssc'.concat('sccs', 'sc'));
    expect(count(turns, 'copy')).toBe(CONTEST_SAMPLES);
  });

  it('is won by a tenth', () => {
    const against = (challenger: number) =>
      play(
        () => 1,
        () => challenger,
      ).verdict;
    expect(against(0.89)).toBe('challenger');
    expect(against(0.91)).toBe('incumbent');
    expect(against(1.5)).toBe('incumbent');
  });

  it('is not decided by two outliers', () => {
    const samples = [9, 0.5, 9, 0.5, 0.5];
    const challenger = (): number => samples.shift() ?? 0.5;
    expect(play(() => 1, challenger).verdict).toBe('challenger');
  });

  it('is short where the challenger is hopeless', () => {
    const { verdict, turns } = play(
      () => 1,
      () => 3,
    );
    expect(verdict).toBe('incumbent');
    expect(turns).toHaveLength(4);
  });
});

describe('what stands against a sender', () => {
  it('is the probe', () => {
    const probe = {
      zerocopy: false,
      zerocopyReason: 'setsockopt(SO_ZEROCOPY): EPERM',
      uring: false,
      uringUsageReports: false,
      uringFixedBuffers: false,
      optmemBytesMax: 131_072,
      memlockBytesMax: -1,
    };
    expect([...unavailableSenders(probe)]).toEqual([
      ['zerocopy', 'setsockopt(SO_ZEROCOPY): EPERM'],
      ['uring', 'no io_uring SEND_ZC'],
    ]);
    expect([...unavailableSenders({ ...probe, zerocopy: true, uring: true })]).toEqual([]);
    expect([...usableSenders('auto', probe).keys()]).toEqual(['zerocopy', 'uring']);
    expect([...usableSenders('splice', probe).keys()]).toEqual(['zerocopy', 'uring']);
    expect(() => usableSenders('zerocopy', probe)).toThrow(UnsupportedHostError);
    expect(() => usableSenders('uring', probe)).toThrow(
      "sender: 'uring' does not work on this host: no io_uring",
    );
  });

  it.each([
    ['127.0.0.1', true],
    ['127.8.0.1', true],
    ['::1', true],
    ['::ffff:127.0.0.1', true],
    ['10.0.0.1', true],
    ['fe80::1%eth0', true],
    ['10.0.0.2', false],
    ['not-an-address', false],
  ])('is a peer on this host: %s is, %s', (address, isOwn) => {
    expect(isOwnAddress(address, ['10.0.0.1', 'fe80::1'])).toBe(isOwn);
  });

  it('resolves names', async () => {
    expect(await isLocalPeer('localhost')).toBe(true);
    expect(await isLocalPeer('127.0.0.1')).toBe(true);
    expect(await isLocalPeer('192.0.2.1')).toBe(false);
    expect(await isLocalPeer('no-such-host.invalid')).toBe(false);
  });
});
