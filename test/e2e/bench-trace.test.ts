/** Suite `trace`, smoke size: that a guest's work is compared with and without tracing. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import type { BenchReport } from '../../bench/report.js';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);

test('trace, smoke size', { timeout: 60_000 }, async () => {
  const file = `/tmp/holdfast-bench-trace-${process.pid}.json`;
  try {
    const bench = join(repositoryRoot(), 'dist/bench/main.js');
    await run(process.execPath, [bench, 'trace', '--smoke', '--json', file]);
    const { suite, results, ratios } = JSON.parse(await readFile(file, 'utf8')) as BenchReport;
    expect(suite).toBe('trace');
    expect(results.map(({ name }) => name)).toEqual(['trace-cpu', 'trace-redis']);
    for (const { name, metrics } of results) {
      expect(metrics.workUntracedPerSP50, name).toBeGreaterThan(0);
      expect(metrics.eventsPerSP50, name).toBeGreaterThan(0);
      expect(metrics.lostEvents, name).toBe(0);
    }
    expect(Object.keys(ratios)).toHaveLength(4);
  } finally {
    await rm(file, { force: true });
  }
});
