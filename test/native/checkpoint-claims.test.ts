/** Who may write in a directory of checkpoints: one, whatever was left there, and however many come at once. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Claim, claimWriting } from '../../lib/checkpoint/claims.js';
import { identifyProcess } from '../../lib/vm/process.js';

let root = '';
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'holdfast-claims-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const STARTERS = 8;

test('01 a killed writer has left its file: of those that come at once one gets in', async () => {
  const killed = { ...(await identifyProcess(process.pid)), startTicks: '1' };
  await mkdir(join(root, '.holders'));
  writeFileSync(join(root, '.holders', 'writer'), JSON.stringify(killed));
  const tried = await Promise.allSettled(Array.from({ length: STARTERS }, () => claimWriting(root)));
  const claims = tried.flatMap((each): Claim[] => (each.status === 'fulfilled' ? [each.value] : []));
  expect(claims).toHaveLength(1);
  for (const each of tried.filter(({ status }) => status === 'rejected')) {
    expect(String((each as PromiseRejectedResult).reason)).toContain(`writes checkpoints to ${root} already`);
  }
  await expect(claimWriting(root)).rejects.toThrow(`process ${process.pid} writes checkpoints`);
  await claims[0]?.release();
});

test('02 who lets go makes room for the next, also when it says so twice', async () => {
  const first = await claimWriting(root);
  await first.release();
  await using second = await claimWriting(root);
  await first.release();
  await expect(claimWriting(root)).rejects.toThrow('already');
  expect(second).toBeDefined();
});
