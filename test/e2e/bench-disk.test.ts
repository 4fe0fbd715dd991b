/** The smoke size of the suite `disk`: that each contender runs and is measured. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);
const bench = join(repositoryRoot(), 'dist/bench/main.js');

interface Report {
  readonly suite: string;
  readonly results: readonly { readonly name: string; readonly metrics: Record<string, number> }[];
  readonly ratios: Record<string, number>;
}

/** Runs the suite; whatever it made on tmpfs or in namespaces has to be gone after it. */
const runDisk = async (...args: string[]): Promise<{ report: Report; page: string }> => {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-disk-'));
  const [json, html] = [join(dir, 'report.json'), join(dir, 'report.html')];
  try {
    await run(process.execPath, [bench, 'disk', '--smoke', '--json', json, '--html', html, ...args]);
    return {
      report: JSON.parse(await readFile(json, 'utf8')) as Report,
      page: await readFile(html, 'utf8'),
    };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

const labs = (): string[] =>
  ['/dev/shm', '/run/netns'].flatMap((path) =>
    readdirSync(path).filter((name) => /-(disk|copy)\d/.test(name)),
  );

test('a disk unprotected and protected, and whole disks copied', { timeout: 240_000 }, async () => {
  const before = labs();
  // Protected brings its floor, and apart what it is a share of. Without a second guest for QEMU's own driver,
  // which has no part that the others have not, and without bonnie++, which takes its time whatever its size.
  const cases = ['*-write-1m-server', '*-write-1m-protected', '*-write-1m-apart', 'fsync-protected'];
  const { report, page } = await runDisk('--only', [...cases, 'base-copy', 'nbdcopy', 'qemu-img'].join(','));
  expect(report.suite).toBe('disk');
  const metricsOf = (name: string): Record<string, number> => {
    const found = report.results.find((result) => result.name === name);
    expect(found, name).toBeDefined();
    return found!.metrics;
  };
  expect(metricsOf('fsync-floor').operationsPerS).toBeGreaterThan(0);
  for (const setUp of ['server', 'protected'])
    expect(metricsOf(`fsync-${setUp}`).fsyncMsP99).toBeGreaterThan(0);
  // One processor is not divided among two hosts.
  const hasTwo = availableParallelism() > 1;
  for (const setUp of ['server', 'floor', 'protected', ...(hasTwo ? ['alone', 'apart'] : [])]) {
    const { rateMbPerS, epochs, ackMsP50, backupHostCores } = metricsOf(`sequential-write-1m-${setUp}`);
    expect(rateMbPerS, setUp).toBeGreaterThan(0);
    // Whoever is protected has epochs and a backup at work; the floor has epochs that nobody acknowledges.
    const isProtected = setUp === 'protected' || setUp === 'apart';
    if (isProtected || setUp === 'floor') expect(epochs, setUp).toBeGreaterThan(0);
    else expect(epochs, setUp).toBeUndefined();
    if (isProtected) expect(ackMsP50, setUp).toBeGreaterThan(0);
    else expect(ackMsP50, setUp).toBeUndefined();
    if (isProtected) expect(backupHostCores, setUp).toBeGreaterThan(0);
    else expect(backupHostCores, setUp).toBe(0);
  }
  for (const name of ['base-copy', 'nbdcopy', 'qemu-img'])
    expect(metricsOf(name).dataMbPerSP50, name).toBeGreaterThan(0);
  expect(metricsOf('copies').writtenBytes).toBeGreaterThan(0);
  const shares = ['Share', 'FloorShare', 'OfFloorShare', ...(hasTwo ? ['ApartShare'] : [])].map(
    (share) => `diskSequentialWrite${share}`,
  );
  for (const name of [...shares, 'diskCopiesPerWrittenByte', 'diskBaseCopyVsPeers'])
    expect(report.ratios[name], name).toBeGreaterThan(0);
  for (const title of ['A whole disk to another host', 'beside the floor', 'Whose processor time'])
    expect(page).toContain(title);
  expect(labs()).toEqual(before);
});
