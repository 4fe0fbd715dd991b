/**
 * The native programs of native/test: the wire, the senders and the receiver,
 * under AddressSanitizer + UBSan, then ThreadSanitizer; and a smoke run of the
 * fuzzer on the frame parser. Objects are kept between runs, so only the first
 * one builds everything.
 */

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const script = fileURLToPath(new URL('../../native/test/run', import.meta.url));
const timeoutMs = 600_000;

const run = (variant: string, env: Record<string, string> = {}): string => {
  const { status, signal, stdout, stderr } = spawnSync(script, [variant], {
    encoding: 'utf8',
    timeout: timeoutMs - 10_000,
    env: { ...process.env, ...env },
  });
  const output = `${stdout}${stderr}`;
  expect({ status, signal, output: status === 0 ? '' : output }).toEqual({
    status: 0,
    signal: null,
    output: '',
  });
  return output;
};

test.each(['asan', 'tsan'])('wire, senders and receiver under %s', { timeout: timeoutMs }, (variant) => {
  const output = run(variant);
  // A part that could not run is not to pass unseen.
  expect(output.match(/^.*SKIPPED.*$/gm) ?? []).toEqual([]);
});

test('the frame parser survives 20 s of fuzzing', { timeout: timeoutMs }, () => {
  expect(run('fuzz', { FUZZ_SECONDS: '20' })).toMatch(/number_of_executed_units: [1-9]/);
});
