/** Suite `migrate`, smoke size: each engine moves each guest, with every figure of it. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import type { BenchResult } from '../../bench/report.js';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);

test('migrate, smoke size: an idle guest by both engines, and a writer under two policies', {
  timeout: 120_000,
}, async () => {
  const file = `/tmp/holdfast-bench-migrate-${process.pid}.json`;
  try {
    const bench = join(repositoryRoot(), 'dist/bench/main.js');
    const only = 'idle-*,writer-fixed-holdfast,writer-mp-*';
    await run(process.execPath, [bench, 'migrate', '--smoke', '--only', only, '--json', file]);
    const { suite, results } = JSON.parse(await readFile(file, 'utf8')) as {
      readonly suite: string;
      readonly results: readonly BenchResult[];
    };
    expect(suite).toBe('migrate');
    const of = (name: string): BenchResult['metrics'] =>
      results.find((result) => result.name === name)?.metrics ?? {};
    for (const name of ['idle-fixed-holdfast', 'idle-fixed-qemu', 'writer-mp-holdfast', 'writer-mp-qemu']) {
      const { trials, arrived, totalMsP50 = 0, downtimeMsP50 = 0, linkBytesP50, roundsP50 } = of(name);
      expect({ name, trials, arrived }).toEqual({ name, trials: 1, arrived: 1 });
      expect(downtimeMsP50, name).toBeGreaterThan(0);
      expect(totalMsP50, name).toBeGreaterThan(downtimeMsP50);
      expect(linkBytesP50, name).toBeGreaterThan(16 << 20);
      // QEMU may be through before it could be asked for a round.
      expect(roundsP50, name).toBeGreaterThanOrEqual(name.endsWith('-qemu') ? 0 : 1);
    }
    const idle = of('idle-fixed-holdfast');
    for (const part of ['stopMs', 'captureMs', 'transferMs', 'handOverMs', 'resumeMs', 'standbyLoadMs']) {
      expect(idle[`${part}P50`], part).toBeGreaterThanOrEqual(0);
    }
    expect(of('writer-fixed-holdfast')).toMatchObject({ trials: 1, arrived: 0 });
  } finally {
    await rm(file, { force: true });
  }
});
