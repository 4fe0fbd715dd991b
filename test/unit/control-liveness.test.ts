import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Liveness } from '../../lib/control/liveness.js';

/** Time that passed while this process did not run: no timer fired in it. */
let sleptMs = 0;

/** Everything on virtual time: timers, immediates and performance.now. */
beforeEach(() => {
  sleptMs = 0;
  vi.useFakeTimers({ toFake: ['Date', 'setInterval', 'clearInterval', 'setImmediate', 'clearImmediate'] });
  const startMs = Date.now();
  vi.spyOn(performance, 'now').mockImplementation(() => Date.now() - startMs + sleptMs);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

interface Watch {
  liveness: Liveness;
  sent: number[];
  silences: number[];
  /** The peer was heard. */
  heard: () => void;
}

const watch = (idleBeforeMs = 0): Watch => {
  let heardMs = performance.now() - idleBeforeMs;
  const sent: number[] = [];
  const silences: number[] = [];
  const liveness = new Liveness({
    intervalMs: 40,
    timeoutMs: 200,
    sendHeartbeat: (sequence) => sent.push(sequence),
    idleMs: () => performance.now() - heardMs,
    onSilent: (idleMs) => silences.push(idleMs),
  });
  return {
    liveness,
    sent,
    silences,
    heard: () => {
      heardMs = performance.now();
    },
  };
};

describe('liveness', () => {
  it('sends numbered heartbeats, and stops on stop()', () => {
    const { liveness, sent } = watch();
    vi.advanceTimersByTime(200);
    expect(sent).toEqual([0, 1, 2, 3, 4]);
    liveness.stop();
    vi.advanceTimersByTime(400);
    expect(sent).toHaveLength(5);
  });

  it('reports silence once, at the first turn over the time-out', () => {
    const { silences } = watch();
    vi.advanceTimersByTime(200);
    expect(silences).toEqual([]);
    vi.advanceTimersByTime(41);
    expect(silences).toHaveLength(1);
    expect(silences[0]).toBeGreaterThan(200);
    expect(silences[0]).toBeLessThanOrEqual(241);
    vi.advanceTimersByTime(1_000);
    expect(silences).toHaveLength(1);
  });

  it('says nothing while the peer is heard', () => {
    const { silences, heard } = watch();
    for (let round = 0; round < 50; round += 1) {
      vi.advanceTimersByTime(190);
      heard();
    }
    expect(silences).toEqual([]);
  });

  it('does not count silence from before the watch began', () => {
    const { silences } = watch(5_000);
    vi.advanceTimersByTime(200);
    expect(silences).toEqual([]);
    vi.advanceTimersByTime(41);
    expect(silences).toHaveLength(1);
  });

  it('waits for what lies unread in the socket: judged after the event loop has read', () => {
    const { silences, heard } = watch();
    vi.advanceTimersByTime(239); // the next turn finds 240 ms of silence …
    setImmediate(heard); // … and the poll phase, before the judgement, a heartbeat
    vi.advanceTimersByTime(1);
    vi.advanceTimersByTime(150);
    expect(silences).toEqual([]);
  });

  it('excuses its own sleep once', () => {
    const { silences, heard } = watch();
    vi.advanceTimersByTime(80);
    sleptMs += 900;
    vi.advanceTimersByTime(40); // the late turn
    expect(silences).toEqual([]);
    heard(); // what had been waiting in the socket
    vi.advanceTimersByTime(150);
    expect(silences).toEqual([]);
  });

  it('does not excuse for ever: a loop that is always late still notices a dead peer', () => {
    const { silences } = watch();
    for (let turn = 0; turn < 12 && silences.length === 0; turn += 1) {
      sleptMs += 60;
      vi.advanceTimersByTime(40);
    }
    expect(silences).toHaveLength(1);
  });

  it('is not judged after stop(), even if a judgement was under way', () => {
    const { liveness, silences } = watch();
    vi.advanceTimersByTime(239);
    setImmediate(() => liveness.stop());
    vi.advanceTimersByTime(1);
    liveness.stop();
    vi.advanceTimersByTime(500);
    expect(silences).toEqual([]);
  });
});
