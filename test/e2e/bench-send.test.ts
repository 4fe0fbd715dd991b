/** The smoke size of the suite `send`: that every strategy and baseline is measured and reported. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { native } from '../../lib/index.js';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);
const bench = join(repositoryRoot(), 'dist/bench/main.js');

interface Report {
  readonly suite: string;
  readonly results: readonly {
    readonly name: string;
    readonly params: Record<string, unknown>;
    readonly metrics: Record<string, number>;
  }[];
  readonly ratios: Record<string, number>;
}

/** Runs the suite; whatever it made on tmpfs, in namespaces or as processes has to be gone after it. */
const runSend = async (...args: string[]): Promise<Report> => {
  const file = `/tmp/holdfast-bench-send-${process.pid}.json`;
  try {
    await run(process.execPath, [bench, 'send', '--smoke', '--json', file, ...args]);
    return JSON.parse(await readFile(file, 'utf8')) as Report;
  } finally {
    await rm(file, { force: true });
  }
};

const labsOf = (tag: string): string[] =>
  ['/dev/shm', '/run/netns'].flatMap((path) => readdirSync(path).filter((name) => name.includes(`-${tag}`)));

describe('bench send', () => {
  test('smoke size: every strategy, iperf3 and plain Node are measured, and compared', {
    timeout: 180_000,
  }, async () => {
    const before = labsOf('send');
    const { suite, results, ratios } = await runSend();
    expect(suite).toBe('send');
    const byName = new Map(results.map((result) => [result.name, result.metrics]));
    const { uring } = native.probeSenders();
    const strategies = ['copy', 'sendfile', 'splice', 'vmsplice', 'zerocopy', ...(uring ? ['uring'] : [])];
    for (const strategy of strategies) {
      for (const runPages of [1, 4, 32, 512]) {
        const metrics = byName.get(`${strategy}-run${runPages}-20mib-direct-streams1`);
        for (const name of [
          'sendMs',
          'ackMs',
          'throughputGbPerS',
          'senderCpuMsPerMb',
          'receiverCpuMsPerMb',
        ]) {
          expect(metrics?.[`${name}P50`], `${strategy} ${runPages} ${name}`).toBeGreaterThan(0);
        }
        const accounted = (metrics?.copiedBytesP50 ?? 0) + (metrics?.referenceBytesP50 ?? 0);
        expect(accounted, `${strategy} ${runPages}: bytes accounted for`).toBeGreaterThan(0);
      }
    }
    expect(byName.get('copy-run1-20mib-direct-streams1')?.copiedBytesP50).toBe(20 * 1024 * 1024);
    expect(byName.get('copy-run4-20mib-direct-streams1-unverified')?.ackMsP50).toBeGreaterThan(0);
    expect(byName.get('iperf3-20mib-streams1')?.ackMsP50).toBeGreaterThan(0);
    expect(byName.get('iperf3-z-20mib-streams1')?.ackMsP50).toBeGreaterThan(0);
    expect(byName.get('node-awaited-run4-20mib')?.senderProcessCpuMsPerMbP50).toBeGreaterThan(0);
    for (const name of [
      'cpuZeroCopyVsCopyRun4',
      'cpuZeroCopyVsCopyRun1',
      'ackVsIperf3',
      'ackVsIperf3Scattered',
      'cpuNodeVsHoldfast',
      'cpuVerifiedVsUnverified',
    ]) {
      expect(ratios[name], name).toBeGreaterThan(0);
    }
    expect(labsOf('send')).toEqual(before);
  });

  test('--only measures the named cases, and nothing else', { timeout: 60_000 }, async () => {
    const { results } = await runSend('--only', 'splice-run4-1mib-direct-streams1');
    expect(results.map(({ name }) => name)).toEqual(['splice-run4-1mib-direct-streams1']);
  });
});
