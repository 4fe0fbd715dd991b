import { expect, it } from 'vitest';
import { endLacking } from '../../lib/backup/end-lacking.js';
import { VmGoneError } from '../../lib/errors.js';
import { killVm, reapVm } from '../../lib/vm/launch.js';
import { identifyProcess } from '../../lib/vm/process.js';

it('a VM that lacks pages and does not end, even by SIGKILL, is left, with a word and not with a rejection', async () => {
  const said: unknown[] = [];
  const log = { error: (...all: unknown[]) => void said.push(all) };
  const stuck = new VmGoneError('process 4187 does not end, even by SIGKILL', { cure: 'It is stuck.' });
  await endLacking({ killVm: () => Promise.reject(stuck) }, log);
  expect(said).toEqual([
    [expect.objectContaining({ err: stuck.message, cure: 'It is stuck.' }), expect.any(String)],
  ]);
  const gone = { ...(await identifyProcess(process.pid)), startTicks: '1' };
  await endLacking({ killVm: () => killVm(gone) }, log);
  expect(said).toHaveLength(1);
});

it('what an ended VM held is free when its parent has heard of its end, not before', async () => {
  const identity = { ...(await identifyProcess(process.pid)), startTicks: '1' };
  let collect: (exit: { code: null; signal: 'SIGKILL' }) => void = () => {};
  const exited = new Promise<{ code: null; signal: 'SIGKILL' }>((resolve) => {
    collect = resolve;
  });
  let isFree = false;
  const reaped = reapVm({ identity, exited }, 1 << 30).then(() => {
    isFree = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(isFree).toBe(false);
  collect({ code: null, signal: 'SIGKILL' });
  await reaped;
});
