/** The benchmark's smoke size: that every suite runs and reports in the promised shape. No figure is judged here. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
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
  test('epoch, smoke size: each part of the pause, the guest’s work and the failover are measured', {
    timeout: 240_000,
  }, async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-'));
    const file = join(dir, 'epoch.json');
    try {
      const outputs = [
        '--json',
        file,
        '--html',
        join(dir, 'epoch.html'),
        '--markdown',
        join(dir, 'epoch.md'),
      ];
      const { stdout } = await run(process.execPath, [bench, 'epoch', '--smoke', ...outputs]);
      expect(stdout).toContain('pauseMsP50');
      const report = JSON.parse(await readFile(file, 'utf8')) as Report;
      expect(report.suite).toBe('epoch');
      expect(report.machine).toMatchObject({ cores: expect.any(Number), kernel: expect.any(String) });
      const byName = new Map(report.results.map((result) => [result.name, result.metrics]));
      expect([...byName.keys()]).toEqual(
        expect.arrayContaining([
          'qemu-floor',
          'dirty-5000',
          'dirty-500',
          'ram-8g',
          'ram-8g-fresh',
          'idle-200',
          'sweep-cpu-2500-20ms',
          'sweep-redis-20ms',
          'failover',
        ]),
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
      // Where the machine has no room for it, the case would be missing above.
      expect(byName.get('ram-8g')?.populatedBytes).toBeGreaterThan(0.8 * 2 ** 30);
      expect(byName.get('ram-8g-fresh')?.populatedBytes).toBeLessThan(0.5 * 2 ** 30);
      expect(byName.get('idle-200')).toMatchObject({ missed: 0, checkpointsPerSMean: expect.any(Number) });
      expect(byName.get('failover')?.killToRunningMsMax).toBeGreaterThan(0);
      for (const workload of ['cpu-2500', 'redis']) {
        const metrics = byName.get(`sweep-${workload}-20ms`);
        expect(metrics?.guestWorkShareP50, workload).toBeGreaterThan(0);
        // Measured around a protected turn: the guest worked before, meanwhile and after.
        expect(metrics?.workUnprotectedPerSP50, workload).toBeGreaterThan(0);
        expect(metrics?.epochs, workload).toBeGreaterThan(0);
      }
      const { checkpointsMissedIdle, ...ratios } = report.ratios;
      expect(checkpointsMissedIdle).toBe(0);
      for (const [name, value] of Object.entries(ratios)) expect(value, name).toBeGreaterThan(0);
      for (const name of [
        'pauseMsP99Dirty5000',
        'pauseMsP50Ram8g',
        'pauseMsP50Ram8gFresh',
        'checkpointsPerSecondIdle',
        'guestCpuShare20ms',
      ])
        expect(Object.keys(ratios)).toContain(name);
      expect(Object.keys(report.ratios)).toContain('guestWorkShareRedisAt20Ms');
      expect(await readFile(join(dir, 'epoch.html'), 'utf8')).toContain('<svg');
      expect(await readFile(join(dir, 'epoch.md'), 'utf8')).toContain('| dirty-500 |');
      // A page of a report written before is the page that was written with it.
      const again = await run(process.execPath, [bench, 'page', file]);
      expect(again.stdout).toBe(await readFile(join(dir, 'epoch.md'), 'utf8'));
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  });

  test('--only: a case that the suite has not is told, with those it has', async () => {
    await expect(run(process.execPath, [bench, 'epoch', '--only', 'dirty-51'])).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/no case dirty-51; it has .*dirty-500.*failover/),
    });
  });

  test('an unknown suite is refused with the list of suites', async () => {
    await expect(run(process.execPath, [bench, 'nothing'])).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringContaining('epoch'),
    });
  });
});
