/** The host process ends with transfers under way: cleanly, from the main thread and from workers. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { Region } from './transfer-lab.js';

test.each([
  ['exit', 'main'],
  ['throwing', 'main'],
  ['idle', 'main'],
  ['exit', 'worker'],
  ['idle', 'worker'],
  ['terminate', 'worker'],
])('%s in %s', async (scenario, where) => {
  using region = new Region(2048);
  region.randomize({ firstPage: 0, pages: 2048 });
  const script = fileURLToPath(new URL('../../dist/test/native/transfer-exit-child.js', import.meta.url));
  const child = spawn(process.execPath, [script, scenario, where, region.directory], {
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: 20_000,
    killSignal: 'SIGKILL',
  });
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
});
