/** The main job, as `npm run demo` runs it; and that it leaves nothing behind. */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { repositoryRoot } from '../lab/guest.js';
import { waitFor } from '../lab/wait.js';

const demo = join(repositoryRoot(), 'dist/test/lab/demo.js');

interface Run {
  readonly pid: number;
  readonly ended: Promise<number | null>;
  readonly stdout: () => string;
  readonly stderr: () => string;
  readonly interrupt: () => void;
}

/** Long, since the tests share their machine: nobody is taken for dead because it is busy. */
const calm = ['--heartbeat-timeout', '2s'];

const startDemo = (args: readonly string[]): Run => {
  const child = spawn(process.execPath, [demo, ...calm, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  return {
    pid: child.pid!,
    ended,
    stdout: () => stdout,
    stderr: () => stderr,
    interrupt: () => child.kill('SIGINT'),
  };
};

/** What a lab of that process would leave: namespaces, its directories, RAM files. */
const leftovers = (pid: number): string[] =>
  ['/run/netns', '/tmp', '/dev/shm'].flatMap((dir) =>
    readdirSync(dir)
      .filter((name) => name.startsWith(`hf${pid}-`))
      .map((name) => join(dir, name)),
  );

describe('demo', () => {
  test('the VM survives the loss of its host; the summary says so', { timeout: 180_000 }, async () => {
    const run = startDemo(['--json', '--seconds', '3']);
    expect(await run.ended, run.stderr()).toBe(0);
    const summary = JSON.parse(run.stdout()) as Record<string, unknown>;
    expect(summary).toMatchObject({ ok: true, writesLost: 0, connectionsBroken: 0, guestMemoryErrors: 0 });
    expect(summary.writesAcknowledged).toBeGreaterThan(100);
    expect(summary.epochs).toBeGreaterThan(20);
    expect(summary.failover).toMatchObject({
      killToRunningMs: expect.any(Number),
      clientStallMs: expect.any(Number),
    });
    expect(leftovers(run.pid)).toEqual([]);
  });

  test('Ctrl-C in the middle removes all of it', { timeout: 180_000 }, async () => {
    const run = startDemo(['--seconds', '60']);
    await waitFor('the load to run', () => run.stderr().includes('writes acknowledged'), {
      timeoutMs: 120_000,
    });
    run.interrupt();
    expect(await run.ended).not.toBe(0);
    expect(leftovers(run.pid)).toEqual([]);
  });
});
