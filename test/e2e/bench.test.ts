/** The benchmark's smoke size: that every suite runs and reports in the promised shape. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);
const bench = join(repositoryRoot(), 'dist/bench/main.js');

interface Report {
  readonly suite: string;
  readonly machine: Record<string, unknown>;
  readonly results: readonly { readonly name: string; readonly metrics: Record<string, number> }[];
  readonly ratios: Record<string, number>;
}

describe('bench', () => {
  test('epoch, smoke size: each part of the pause and the failover are measured', {
    timeout: 240_000,
  }, async () => {
    const file = `/tmp/holdfast-bench-${process.pid}.json`;
    try {
      const { stdout } = await run(process.execPath, [bench, 'epoch', '--smoke', '--json', file]);
      expect(stdout).toContain('pauseMsP50');
      const report = JSON.parse(await readFile(file, 'utf8')) as Report;
      expect(report.suite).toBe('epoch');
      expect(report.machine).toMatchObject({ cores: expect.any(Number), kernel: expect.any(String) });
      const byName = new Map(report.results.map((result) => [result.name, result.metrics]));
      expect([...byName.keys()]).toEqual(
        expect.arrayContaining(['qemu-floor', 'dirty-5000', 'dirty-500', 'failover']),
      );
      for (const part of [
        'pause',
        'stop',
        'device',
        'scan',
        'copy',
        'cont',
        'send',
        'ack',
        'apply',
        'outputDelay',
      ]) {
        expect(byName.get('dirty-500')?.[`${part}MsP50`], part).toBeGreaterThan(0);
      }
      expect(byName.get('failover')?.killToRunningMsMax).toBeGreaterThan(0);
      for (const [name, value] of Object.entries(report.ratios)) expect(value, name).toBeGreaterThan(0);
    } finally {
      await rm(file, { force: true });
    }
  });

  test('an unknown suite is refused with the list of suites', async () => {
    await expect(run(process.execPath, [bench, 'nothing'])).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringContaining('epoch'),
    });
  });
});
