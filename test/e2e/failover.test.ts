/** Failovers under load, one after the other; see test/campaign/campaign.ts for what one trial is. */

import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { type CampaignResult, failureKinds, runCampaign } from '../campaign/campaign.js';
import { repositoryRoot } from '../lab/guest.js';

/** Long, since the tests share their machine; no test here measures detection. */
const HEARTBEAT_TIMEOUT_MS = 2_000;

test('22 failovers at random moments keep every acknowledged write, on disk too, and every connection', async () => {
  const result = await runCampaign({
    trials: 22,
    seed: 8,
    disk: true,
    intervalMs: 25,
    heartbeatTimeoutMs: HEARTBEAT_TIMEOUT_MS,
  });
  expect(result.violations).toEqual([]);
  expect(result.ok).toBe(true);
  expect(result.lost).toBe(0);
  expect(result.trials).toHaveLength(22);
  // The seed is chosen so that all kinds of failure occur, on both hosts; all but one are SIGKILLs.
  expect(new Set(result.trials.map(({ kind }) => kind))).toEqual(new Set(failureKinds));
  expect(result.trials.filter(({ kind }) => kind !== 'link').length).toBeGreaterThanOrEqual(20);
  for (const { acknowledged } of result.trials) expect(acknowledged).toBeGreaterThan(0);
  expect(result.survivor.broken).toEqual([]);
}, 300_000);

test('the campaign as a program: its result in a file, its verdict in the exit code', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-campaign-'));
  try {
    const json = join(dir, 'result.json');
    const program = join(repositoryRoot(), 'dist/test/campaign/failover.js');
    const run = promisify(execFile);
    const { stdout } = await run(process.execPath, [
      program,
      ...['--trials', '1', '--kind', 'host', '--seed', '1', '--json', json],
      ...['--heartbeat-timeout', String(HEARTBEAT_TIMEOUT_MS)],
    ]);
    expect(stdout).toContain('all 1 failovers kept their promises');
    const result = JSON.parse(readFileSync(json, 'utf8')) as CampaignResult;
    expect(result.ok).toBe(true);
    expect(result.trials.map(({ kind }) => kind)).toEqual(['host']);
    const usage = await run(process.execPath, [program, '--kind', 'flood']).catch((error) => error);
    expect(usage).toMatchObject({ code: 2, stderr: expect.stringContaining('flood') });
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}, 120_000);
