/**
 * A guest that verifies its own memory survives two failovers in a row, on the library: the second one from the
 * VM that the first one made. Every page it reads after a failover must be what it last wrote.
 */

import { readdirSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { killVm, native } from '../../lib/index.js';
import { Lab } from '../lab/lab.js';
import { FailoverChain, runningVm } from './support/failover-chain.js';
import { startWriter } from './support/memory-guest.js';

const WORKING_SET_PAGES = 8192;

let lab: Lab;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'memfo' });
});
afterEach(() => {
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});
afterAll(async () => {
  await lab.close();
});

test.each([
  { vcpus: 1, first: 'xen-save', second: 'migrate-fd' },
  { vcpus: 2, first: 'migrate-fd', second: 'xen-save' },
] as const)('01 two failovers, $first then $second, $vcpus vCPU', async ({ vcpus, first, second }) => {
  const guest = await startWriter(lab, {
    vcpus,
    pagesPerSecond: 10_000,
    workingSetPages: WORKING_SET_PAGES,
    ramMb: 160,
  });
  await using chain = new FailoverChain(lab);
  const once = await chain.failOver(await runningVm(guest), {
    name: `first${vcpus}`,
    workingSetPages: WORKING_SET_PAGES,
    captureMode: 'staged',
    deviceState: first,
    sender: 'auto',
    streams: 3,
  });
  const twice = await chain.failOver(once, {
    name: `second${vcpus}`,
    workingSetPages: WORKING_SET_PAGES,
    captureMode: 'direct',
    deviceState: second,
    sender: 'vmsplice',
    verify: false,
  });
  expect(twice.identity.pid).not.toBe(once.identity.pid);
  await killVm(twice.identity);
  // Its backup sees the end of the VM, and leaves neither replica nor directory.
  for (const backup of chain.backups) expect(await backup.ended).toMatchObject({ kind: 'vm-exited' });
  expect(readdirSync(lab.sharedMemoryDir).filter((name) => name.endsWith('.ram'))).toEqual([]);
});
