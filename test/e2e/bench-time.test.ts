/** Suite `time`, smoke size: that the guest's clock is followed through protection and failover. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);

interface Report {
  readonly suite: string;
  readonly results: readonly { readonly name: string; readonly metrics: Record<string, number> }[];
  readonly ratios: Record<string, number>;
}

test('time, smoke size: drift unprotected, protected and after a failover', {
  timeout: 120_000,
}, async () => {
  const file = `/tmp/holdfast-bench-time-${process.pid}.json`;
  try {
    const bench = join(repositoryRoot(), 'dist/bench/main.js');
    await run(process.execPath, [bench, 'time', '--smoke', '--json', file]);
    const { suite, results, ratios } = JSON.parse(await readFile(file, 'utf8')) as Report;
    expect(suite).toBe('time');
    expect(results.map(({ name }) => name)).toEqual(['time-unprotected', 'time-protected', 'time-failover']);
    for (const { name, metrics } of results) {
      expect(metrics.driftPpm, name).toEqual(expect.any(Number));
      expect(metrics.windows, name).toBeGreaterThan(1);
    }
    const [, whileProtected, failover] = results;
    expect(whileProtected?.metrics.epochs).toBeGreaterThan(0);
    // Without the pauses given back the guest is slow by all of them.
    const { driftPpm = Number.NaN, pausedShare = Number.NaN } = whileProtected?.metrics ?? {};
    expect(Math.abs(driftPpm)).toBeLessThan((pausedShare / 2) * 1e6);
    expect(failover?.metrics.killToRunningMs).toBeGreaterThan(0);
    for (const name of [
      'timeDriftUnprotectedPpm',
      'timeDriftProtectedPpm',
      'timeDriftAfterFailoverPpm',
      'timeStepAtFailoverMs',
    ]) {
      expect(ratios[name], name).toEqual(expect.any(Number));
    }
  } finally {
    await rm(file, { force: true });
  }
});
