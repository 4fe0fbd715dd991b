/** The smoke size of the suite `latency`: that each probe measures each way of protection. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
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

/** Runs the suite; whatever it made on tmpfs or in namespaces has to be gone after it. */
const runLatency = async (): Promise<{ report: Report; page: string }> => {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-latency-'));
  const [json, html] = [join(dir, 'report.json'), join(dir, 'report.html')];
  try {
    await run(process.execPath, [bench, 'latency', '--smoke', '--json', json, '--html', html]);
    return {
      report: JSON.parse(await readFile(json, 'utf8')) as Report,
      page: await readFile(html, 'utf8'),
    };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

const labs = (): string[] =>
  ['/dev/shm', '/run/netns'].flatMap((path) => readdirSync(path).filter((name) => name.includes('-lat')));

test('ping and redis, unprotected and protected', { timeout: 180_000 }, async () => {
  const before = labs();
  const { report, page } = await runLatency();
  expect(report.suite).toBe('latency');
  const byName = new Map(report.results.map((result) => [result.name, result]));
  for (const setUp of ['tap-unprotected', 'filter-buffer-25ms', 'relay-unprotected', 'relay-adaptive']) {
    for (const probe of ['ping', 'redis-1', 'redis-50']) {
      const name = `${probe}-${setUp}`;
      const metrics = byName.get(name)?.metrics;
      expect(metrics, name).toMatchObject({ lost: 0, roundTrips: expect.any(Number) });
      for (const statistic of ['P50', 'P90', 'P99', 'Max'])
        expect(metrics?.[`roundTripMs${statistic}`], `${name} ${statistic}`).toBeGreaterThan(0);
      // Whoever is protected has epochs, and nobody else.
      if (setUp.endsWith('unprotected')) expect(metrics?.epochs, name).toBeUndefined();
      else expect(metrics?.epochs, name).toBeGreaterThan(0);
    }
    expect(byName.get(`redis-50-${setUp}`)?.metrics.repliesPerSP50, setUp).toBeGreaterThan(0);
  }
  expect(byName.get('redis-50-filter-buffer-25ms')?.metrics.throughputShareP50).toBeGreaterThan(0);
  // The relay sees output, so that it can begin epochs.
  expect(byName.get('ping-relay-adaptive')?.metrics.outputTriggeredShare).toBeGreaterThan(0);
  for (const name of [
    'pingProtectedMsP50',
    'pingProtectedMsP99',
    'redisOneClientMsP50',
    'redisThroughputShare',
  ])
    expect(report.ratios[name], name).toBeGreaterThan(0);
  expect(page).toContain('Delay of a reply, median');
  expect(labs()).toEqual(before);
});
