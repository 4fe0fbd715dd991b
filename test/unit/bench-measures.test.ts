/** What the benchmark works out from what it saw: pings from ping's words, pace and gaps from epochs, ratios. */
import { describe, expect, test } from 'vitest';
import { CaseFilter } from '../../bench/case-filter.js';
import { continuityOf } from '../../bench/epoch/idle.js';
import { parsePing } from '../../bench/latency/ping.js';
import { caseName, turnPlans } from '../../bench/latency/plan.js';
import { ratiosOf } from '../../bench/latency/ratios.js';
import { LatencyHistogram } from '../lab/latency-histogram.js';

const PING = `PING 10.77.0.10 (10.77.0.10): 56 data bytes
64 bytes from 10.77.0.10: seq=0 ttl=64 time=2.047 ms
64 bytes from 10.77.0.10: seq=2 ttl=64 time=13.5 ms

--- 10.77.0.10 ping statistics ---
3 packets transmitted, 2 packets received, 33% packet loss
round-trip min/avg/max = 2.047/7.773/13.500 ms
`;

describe('ping', () => {
  test('round trips, and what was not answered', () => {
    expect(parsePing(PING)).toEqual({ roundTripMs: [2.047, 13.5], lost: 1 });
  });

  test('other words, or a reply that came twice, are no measurement', () => {
    expect(() => parsePing('ping: bad address')).toThrow('ping said');
    expect(() => parsePing(PING.replace('13.5 ms', '13.5 ms (DUP!)'))).toThrow('ping said');
  });
});

describe('the pace of checkpoints', () => {
  const every = (ms: number, count: number) =>
    Array.from({ length: count }, (_, n) => ({ epoch: 10 + n, atMs: 500 + n * ms }));

  test('without a gap', () => {
    expect(continuityOf(every(4, 501))).toEqual({ perS: 250, perSMin: 250, missed: 0, gapMsMax: 4 });
  });

  test('one that was never acknowledged is missed, and the second in which it is, slower', () => {
    const row = every(4, 501).filter(({ epoch }) => epoch !== 300);
    expect(continuityOf(row)).toEqual({ perS: 249.5, perSMin: 249, missed: 1, gapMsMax: 8 });
  });

  test('a single one has none', () => {
    expect(() => continuityOf(every(4, 1))).toThrow('1 checkpoints have no pace');
  });
});

describe('the plan of the suite latency', () => {
  const casesOf = (smoke: boolean, only?: string): string[] =>
    turnPlans(smoke, new CaseFilter(only)).flatMap(({ unprotected, protections }) =>
      [unprotected, ...protections].flatMap(({ setUp, probes }) =>
        probes.map((probe) => caseName(probe, setUp)),
      ),
    );

  test('a protected case brings its unprotected one with it, and nothing else', () => {
    expect(casesOf(false, 'ping-filter-buffer-10ms')).toEqual([
      'ping-tap-unprotected',
      'ping-filter-buffer-10ms',
    ]);
    expect(casesOf(false, 'redis-1-tap-*')).toEqual(['redis-1-tap-unprotected']);
    expect(casesOf(false, 'nothing')).toEqual([]);
  });

  test('a smoke run has fewer cases, and of each probe at least one', () => {
    const [all, few] = [casesOf(false), casesOf(true)];
    expect(all).toEqual(expect.arrayContaining(few));
    expect(few.length).toBeLessThan(all.length);
    for (const probe of ['ping', 'redis-1', 'redis-50'])
      expect(few.filter((name) => name.startsWith(`${probe}-`)).length).toBeGreaterThan(1);
  });
});

describe('ratios of the suite latency', () => {
  const of = (name: string, roundTripMsP50: number) => ({ name, params: {}, metrics: { roundTripMsP50 } });

  test('by the load against the better of the intervals', () => {
    const ratios = ratiosOf([
      of('ping-relay-adaptive', 4),
      of('ping-relay-10ms', 8),
      of('ping-relay-25ms', 16),
    ]);
    expect(ratios).toMatchObject({ pingProtectedMsP50: 4, pingAdaptiveVsInterval: 0.5 });
    expect(ratios.pingProtectedMsP99).toBeNaN();
  });

  test('one interval alone is not the better of them', () => {
    expect(
      ratiosOf([of('ping-relay-adaptive', 4), of('ping-relay-10ms', 8)]).pingAdaptiveVsInterval,
    ).toBeNaN();
  });
});

test('a histogram that travels as its buckets is the same', () => {
  const [one, other, both] = [new LatencyHistogram(), new LatencyHistogram(), new LatencyHistogram()];
  for (let n = 1; n <= 200; n += 1) {
    (n % 3 === 0 ? one : other).add(n / 7);
    both.add(n / 7);
  }
  one.merge(JSON.parse(JSON.stringify(other.buckets)));
  expect(one.count).toBe(200);
  for (const share of [0.01, 0.5, 0.99, 1]) expect(one.percentileMs(share)).toBe(both.percentileMs(share));
});
