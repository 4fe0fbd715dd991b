import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  durationText,
  parseDurationMs,
  parseInteger,
  parseReplacement,
  parseSizeBytes,
  parseSizeMiB,
  parseSwitch,
  sizeText,
  switchText,
} from '../../lib/cli/values.js';
import { ConfigError } from '../../lib/errors.js';

describe('durations', () => {
  it.each([
    ['25', 25],
    ['25ms', 25],
    ['0.5ms', 0.5],
    ['2s', 2_000],
    ['1.5 s', 1_500],
    ['1m', 60_000],
    ['2min', 120_000],
    ['0', 0],
  ])('%s is %d ms', (text, ms) => {
    expect(parseDurationMs(text, '--x')).toBe(ms);
  });

  it.each(['', 'ms', '-5', '5h', '5 s s', '1e3', 'NaN', '0x10', '.5'])(
    "'%s' is none, says the flag",
    (text) => {
      expect(() => parseDurationMs(text, '--interval')).toThrow(ConfigError);
      expect(() => parseDurationMs(text, '--interval')).toThrow(/^--interval: /);
    },
  );

  it('prints what it parses', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 10_000_000 }), (ms) => {
        expect(parseDurationMs(durationText(ms), '--x')).toBe(ms);
      }),
    );
  });
});

describe('sizes', () => {
  it.each([
    ['4096', 4096],
    ['1K', 1024],
    ['256M', 256 * 2 ** 20],
    ['256m', 256 * 2 ** 20],
    ['1G', 2 ** 30],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['512MB', 512 * 2 ** 20],
    ['2T', 2 * 2 ** 40],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSizeBytes(text, '--x')).toBe(bytes);
  });

  it('takes a bare number as MiB where the setting is in MiB', () => {
    expect(parseSizeMiB('256', '--staging')).toBe(256);
    expect(parseSizeMiB('1G', '--staging')).toBe(1024);
    expect(() => parseSizeMiB('1K', '--staging')).toThrow(/--staging: .*MiB/);
  });

  it.each(['', 'G', '1Q', '-1M', '1 G G', 'ten'])("'%s' is none", (text) => {
    expect(() => parseSizeBytes(text, '--staging')).toThrow(/^--staging: /);
  });

  it('prints them short', () => {
    expect(sizeText(512)).toBe('512 B');
    expect(sizeText(64 * 2 ** 20)).toBe('64 MiB');
    expect(sizeText(1.25 * 2 ** 30)).toBe('1.3 GiB');
  });
});

describe('other values', () => {
  it('divides a replacement at the first =', () => {
    expect(parseReplacement('tap0=tap7', '--replace')).toEqual({ from: 'tap0', to: 'tap7' });
    expect(parseReplacement('a=b=c', '--replace')).toEqual({ from: 'a', to: 'b=c' });
    expect(parseReplacement('a=', '--replace')).toEqual({ from: 'a', to: '' });
    for (const text of ['', '=', '=b', 'ab']) {
      expect(() => parseReplacement(text, '--replace')).toThrow(/^--replace: /);
    }
  });

  it('takes on and off, and prints them', () => {
    expect(parseSwitch('on', '--verify')).toBe(true);
    expect(parseSwitch('off', '--verify')).toBe(false);
    for (const text of ['', 'true', '1', 'ON']) {
      expect(() => parseSwitch(text, '--verify')).toThrow(/^--verify: /);
    }
    expect([true, false].map(switchText)).toEqual(['on', 'off']);
  });

  it('takes whole numbers only', () => {
    expect(parseInteger('2', '--copy-threads')).toBe(2);
    for (const text of ['2.5', '-1', '', 'two']) {
      expect(() => parseInteger(text, '--copy-threads')).toThrow(/^--copy-threads: /);
    }
  });
});
