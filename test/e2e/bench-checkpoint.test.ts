/** Suite `checkpoint`, smoke size: that all methods are measured, phase by phase. No figure is judged here. */
import { execFile } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { repositoryRoot } from '../lab/guest.js';

const run = promisify(execFile);

interface Report {
  readonly results: readonly { readonly name: string; readonly metrics: Record<string, number> }[];
  readonly ratios: Record<string, number>;
}

test('checkpoint, smoke size: the pauses; LINPACK alone, captured, with a hand-off, with savevm', {
  timeout: 120_000,
}, async () => {
  const file = `/tmp/holdfast-bench-checkpoint-${process.pid}.json`;
  try {
    const bench = join(repositoryRoot(), 'dist/bench/main.js');
    const only = 'pauses,linpack-300-capture-one,linpack-300-handoff-one,linpack-300-savevm';
    await run(process.execPath, [bench, 'checkpoint', '--smoke', '--only', only, '--json', file]);
    const { results, ratios } = JSON.parse(await readFile(file, 'utf8')) as Report;
    const of = (name: string) => results.find((result) => result.name === name)?.metrics ?? {};
    expect(of('linpack-300-alone').workloadS).toBeGreaterThan(0);
    for (const phase of [
      'allS',
      'migrateS',
      'saveStateS',
      'copyFileS',
      'commitS',
      'stoppedMs',
      'writtenBytes',
    ]) {
      expect(of('linpack-300-handoff-one')[phase], phase).toBeGreaterThan(0);
      if (phase !== 'migrateS') expect(of('linpack-300-capture-one')[phase], phase).toBeGreaterThan(0);
    }
    expect(of('linpack-300-handoff-one').allOfAloneShare).toBeGreaterThan(0);
    expect(of('linpack-300-savevm').stoppedMs).toBeGreaterThan(0);
    expect(of('thesis-linpack-3000').workloadS).toBe(65.5);
    for (const ratio of [
      ...['checkpointStopSavevmVsCapture', 'checkpointIncrementPauseMs', 'checkpointFullPauseMs'],
      ...['checkpointHandoffDowntimeMs', 'checkpointByHandoffPauseMs', 'checkpointRestoreRunsAfterMs'],
    ]) {
      expect(ratios[ratio], ratio).toBeGreaterThan(0);
    }
  } finally {
    await rm(file, { force: true });
  }
});
