/** The suite `disk`, as far as it is arithmetic. */
import { describe, expect, test } from 'vitest';
import { parseBonnie } from '../../bench/disk/probes.js';
import { ratiosOf } from '../../bench/disk/ratios.js';

describe('bonnie++', () => {
  // As version 2.00a wrote it.
  const line =
    '1.98,2.00a,vm,1,1795274321,256M,,8192,5,,,382988,24,315245,13,,,+++++,+++,15795,18,,,,,,,,,,,,,,,,,,,15422us,209ms,,12548us,48206us,,,,,,';

  test('its figures are found, and what took it no time is no figure', () => {
    const { writeMbPerS, rewriteMbPerS, readMbPerS, seeksPerS } = parseBonnie(`\n${line}\n`);
    expect(writeMbPerS).toBeCloseTo(392.2, 1);
    expect(rewriteMbPerS).toBeCloseTo(322.8, 1);
    expect(readMbPerS).toBeNaN();
    expect(seeksPerS).toBe(15795);
  });

  test('another format is refused', () => {
    expect(() => parseBonnie(line.replace('1.98', '1.99'))).toThrow(/format/);
  });
});

test('ratios are of what was measured', () => {
  const ratios = ratiosOf([
    { name: 'sequential-write-1m-protected', params: {}, metrics: { rateShare: 0.8 } },
    { name: 'random-read-4k-protected', params: {}, metrics: { rateShare: 0.9 } },
    { name: 'sequential-read-1m-protected', params: {}, metrics: { rateShare: 1 } },
    { name: 'base-copy', params: {}, metrics: { dataMbPerSP50: 900 } },
    { name: 'nbdcopy', params: {}, metrics: { dataMbPerSP50: 1000 } },
    { name: 'qemu-img', params: {}, metrics: { dataMbPerSP50: 600 } },
  ]);
  expect(ratios.diskSequentialWriteShare).toBe(0.8);
  expect(ratios.diskReadShare).toBeCloseTo(0.95);
  expect(ratios.diskBaseCopyVsPeers).toBe(0.9);
  expect(ratios.diskFsyncShare).toBeNaN();
});
