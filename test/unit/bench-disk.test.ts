/** The suite `disk`, as far as it is arithmetic. */
import { describe, expect, test } from 'vitest';
import { CaseFilter } from '../../bench/case-filter.js';
import { Measurement, ratesByClock } from '../../bench/disk/measurement.js';
import { setUps, turnPlan } from '../../bench/disk/plan.js';
import { parseBonnie, probes } from '../../bench/disk/probes.js';
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

describe('what is measured', () => {
  const plannedFor = (only: string, processors = 2): Record<string, string[]> => {
    const plan = turnPlan(false, new CaseFilter(only), processors);
    return Object.fromEntries(
      setUps.flatMap((setUp) => {
        const names = plan?.probes[setUp].map(({ name }) => name) ?? [];
        return names.length === 0 ? [] : [[setUp, names]];
      }),
    );
  };

  test('a case brings what it is compared with', () => {
    const probe = ['random-read-4k'];
    expect(plannedFor('random-read-4k-protected')).toEqual({ server: probe, floor: probe, protected: probe });
    expect(plannedFor('random-read-4k-floor')).toEqual({ server: probe, floor: probe });
    expect(plannedFor('random-read-4k-apart')).toEqual({ alone: probe, apart: probe });
    expect(plannedFor('random-read-4k-server')).toEqual({ server: probe });
    expect(plannedFor('copies')).toEqual({});
  });

  test('one processor is not divided among two hosts', () => {
    expect(Object.keys(plannedFor('*', 1))).toEqual(['raw', 'server', 'floor', 'protected']);
    expect(plannedFor('*').apart).not.toContain('bonnie');
  });
});

test('a turn is compared with each of its baselines, and turns are told by their median', () => {
  const [probe] = probes;
  const measurement = new Measurement('protected', probe!);
  const cores = { primaryHostCores: 1, backupHostCores: 0.5, otherCores: 0 };
  for (const [rateMbPerS, unprotected, floor] of [
    [10, 20, 40],
    [10, 100, 20],
    [10, 40, 20],
  ] as const) {
    measurement.add({ rateMbPerS }, [{ pauseMs: 3, intervalMs: 20 }], cores);
    measurement.compare({ rateMbPerS }, [{ rateMbPerS: unprotected }], '');
    measurement.compare({ rateMbPerS }, [{ rateMbPerS: floor }], 'OfFloor');
  }
  const { metrics } = measurement.result();
  expect(metrics).toMatchObject({ turns: 3, rateMbPerS: 10, rateShare: 0.25, rateOfFloorShare: 0.5 });
  expect(ratesByClock({ rateMbPerS: 40, latencyMsP50: 1 }, 0.5)).toEqual({ rateMbPerS: 20 });
  expect(metrics).toMatchObject({ epochs: 3, pauseMsP50: 3, backupHostCores: 0.5 });
});
