/**
 * The native programs of native/test: the wire, the senders and the receiver,
 * under AddressSanitizer + UBSan, then ThreadSanitizer; and a smoke run of the
 * fuzzer on the frame parser. Objects are kept between runs, so only the first
 * one builds everything.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const script = fileURLToPath(new URL('../../native/test/run', import.meta.url));
const timeoutMs = 600_000;

const run = async (
  variant: string,
  signal: AbortSignal,
  env: Record<string, string> = {},
): Promise<string> => {
  const child = spawn(script, [variant], { env: { ...process.env, ...env }, signal });
  const [stdout, stderr, [status]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ]);
  const output = `${stdout}${stderr}`;
  expect(status, output).toBe(0);
  return output;
};

test.each(['asan', 'tsan'])(
  'wire, senders and receiver under %s',
  {
    timeout: timeoutMs,
  },
  async (variant) => {
    const output = await run(variant, AbortSignal.timeout(timeoutMs));
    // A part that could not run is not to pass unseen.
    expect(output.match(/^.*SKIPPED.*$/gm) ?? []).toEqual([]);
  },
);

test('the frame parser survives 20 s of fuzzing', { timeout: timeoutMs }, async () => {
  const output = await run('fuzz', AbortSignal.timeout(timeoutMs), { FUZZ_SECONDS: '20' });
  expect(output).toMatch(/number_of_executed_units: [1-9]/);
});
