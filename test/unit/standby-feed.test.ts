import { describe, expect, test } from 'vitest';
import { type Fed, feedStep, isUseless } from '../../lib/backup/standby-feed.js';

const step = (prefix: number, fed: Fed, losses = 0): string => feedStep({ prefix, fed, losses });

describe('a standby and the prefix', () => {
  test('it is fed once a prefix is known and it listens', () => {
    expect(step(0, 'nothing')).toBe('none');
    expect(step(1, 'starting')).toBe('none');
    expect(step(1, 'nothing')).toBe('feed');
    expect(step(3, 'nothing')).toBe('feed');
  });

  test('once: also while that is under way', () => {
    expect(step(1, 'under-way')).toBe('none');
    expect(step(1, 1)).toBe('none');
  });

  test('one that has another prefix is replaced, before a takeover and at one', () => {
    expect(step(2, 1)).toBe('replace');
    expect(step(3, 1)).toBe('replace');
    expect(isUseless(1, 2)).toBe(true);
    expect(isUseless(2, 2)).toBe(false);
  });

  test('while it is given one nobody replaces it: a takeover waits, and finds out', () => {
    expect(step(2, 'under-way')).toBe('none');
    for (const fed of ['starting', 'nothing', 'under-way'] as const) {
      expect(isUseless(fed, 1)).toBe(false);
    }
  });

  test('one that has a part of something is replaced, be it a prefix or what a takeover could not load', () => {
    expect(step(1, 'spoiled')).toBe('replace');
    expect(isUseless('spoiled', 1)).toBe(true);
    expect(isUseless('spoiled', 0)).toBe(true);
  });

  test('a prefix with which three standbys ended is kept from the next', () => {
    expect(step(1, 'nothing', 2)).toBe('feed');
    expect(step(1, 'nothing', 3)).toBe('none');
    expect(step(2, 1, 3)).toBe('replace');
  });
});
