/** Suite `peers`, smoke size: that each contender runs and is measured. No figure is judged here. */
import { execFile } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
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

const report = async (more: readonly string[]): Promise<Report> => {
  const file = `/tmp/holdfast-bench-peers-${process.pid}.json`;
  try {
    await run(process.execPath, [bench, 'peers', '--smoke', '--json', file, ...more]);
    return JSON.parse(await readFile(file, 'utf8')) as Report;
  } finally {
    await rm(file, { force: true });
  }
};

test('base sync and migrate move the same pages', { timeout: 120_000 }, async () => {
  const { suite, results, ratios } = await report(['--only', 'migrate-*,base-sync-*']);
  expect(suite).toBe('peers');
  expect(results.map(({ name }) => name)).toEqual(
    expect.arrayContaining(['migrate-plain', 'migrate-multifd-2', 'migrate-multifd-2-zerocopy']),
  );
  expect(results.some(({ name }) => name.startsWith('base-sync-'))).toBe(true);
  const pages = results.map(({ metrics }) => metrics.pages!);
  // QEMU sends a few pages twice, and its firmware's besides.
  expect(Math.max(...pages) / Math.min(...pages)).toBeLessThan(1.02);
  for (const { name, metrics } of results) expect(metrics.pageBytesGbPerS, name).toBeGreaterThan(0);
  expect(ratios.baseSyncVsQemuMigrate).toBeGreaterThan(0);
});

test('COLO and Holdfast protect the same guest', { timeout: 120_000 }, async (context) => {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch (error) {
    context.skip(`COLO needs KVM: ${(error as Error).message}`);
  }
  const { results, ratios } = await report(['--only', 'checkpoints']);
  expect(results.map(({ name }) => name)).toEqual(['checkpoint-colo', 'checkpoint-holdfast']);
  for (const { name, params, metrics } of results) {
    expect(params, name).toMatchObject({ guest: 'flat multiboot guest', accelerator: '/dev/kvm' });
    expect(metrics.pauseMsP50, name).toBeGreaterThan(0);
    expect(metrics.guestWritesPerCheckpointPages, name).toBeGreaterThan(0);
  }
  expect(ratios.pauseColoVsHoldfast).toBeGreaterThan(0);
});
