/** The host process ends with native threads alive: cleanly, from the main thread and from workers. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { SmallQemu } from './primary-qemu.js';

let qemu: SmallQemu;
let directory: string;

beforeAll(async () => {
  qemu = await SmallQemu.start(32);
  directory = mkdtempSync('/dev/shm/holdfast-exit-');
});

afterAll(async () => {
  await qemu.kill();
  rmSync(directory, { recursive: true, force: true });
});

const cases = [
  ...['idle', 'pending', 'epoch', 'throwing', 'background', 'disks', 'closed'].map((scenario) => [
    scenario,
    'main',
  ]),
  ...['idle', 'pending', 'epoch', 'background', 'disks', 'closed', 'terminate'].map((scenario) => [
    scenario,
    'worker',
  ]),
] as [string, string][];

test.each(cases)('01 exit: %s in %s', async (scenario, where) => {
  const script = fileURLToPath(new URL('./exit-child.mjs', import.meta.url));
  const { pid, ram } = qemu;
  const child = spawn(
    process.execPath,
    [script, scenario, where, String(pid), String(ram.hostAddress), String(ram.sizeBytes), directory],
    { stdio: ['ignore', 'ignore', 'pipe'], timeout: 20_000, killSignal: 'SIGKILL' },
  );
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
  // QEMU took no harm, and what was left behind can be taken up and removed.
  expect(await qemu.qmp('query-status')).toMatchObject({ running: true });
  const engine = new native.PrimaryEngine({
    pid,
    ram,
    stagingBytesMax: 2 ** 20,
    strategy: 'copy',
    copyThreads: 1,
  });
  await engine.attach();
  await engine.detach();
  await engine.close();
  expect(qemu.userfaults()).toBe(0);
});

test('02 SIGKILL while epochs run leaves QEMU well and its tracker adoptable', async () => {
  const script = fileURLToPath(new URL('./exit-child.mjs', import.meta.url));
  const { pid, ram } = qemu;
  for (let round = 0; round < 5; round++) {
    const child = spawn(
      process.execPath,
      [script, 'terminate', 'main', String(pid), String(ram.hostAddress), String(ram.sizeBytes), directory],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const closed = once(child, 'close');
    await once(child.stdout, 'data');
    child.kill('SIGKILL');
    await closed;
    expect(await qemu.qmp('query-status')).toMatchObject({ running: true });
  }
  const engine = new native.PrimaryEngine({
    pid,
    ram,
    stagingBytesMax: 2 ** 20,
    strategy: 'copy',
    copyThreads: 1,
  });
  expect(await engine.attach()).toMatchObject({ adopted: true });
  await engine.detach();
  await engine.close();
  expect(qemu.userfaults()).toBe(0);
});
