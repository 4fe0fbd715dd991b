/** Overlays of a QEMU that ends, or whose monitor does: which are left behind, and told of. */
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DiskOverlays } from '../../lib/checkpoint/disk-overlays.js';
import { overlayOf } from '../../lib/checkpoint/overlay-file.js';
import { QmpConnectionError, QmpError } from '../../lib/errors.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import type { VmDescription } from '../../lib/vm/describe.js';

let dir: string;
let image: string;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
  image = join(dir, 'a');
  await writeFile(image, Buffer.alloc(1 << 20));
});

afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

/** Prepared over a QEMU with one disk, which answers a transaction with what it is told. */
const preparedOver = async (answer?: Error) => {
  const asked: string[] = [];
  const inserted = {
    ...{ 'node-name': 'd', ro: false, drv: 'raw', file: image },
    ...{ cache: { direct: false, 'no-flush': false }, image: { 'virtual-size': 1 << 20 } },
  };
  const execute = async (command: string): Promise<unknown> => {
    asked.push(command);
    if (command === 'transaction' && answer !== undefined) throw answer;
    return command === 'query-block' ? [{ device: 'd', inserted }] : [];
  };
  const overlays = new DiskOverlays({ execute, executeAny: execute } as unknown as QmpClient);
  expect(await overlays.attach({ cwd: '/' } as VmDescription)).toBe(0);
  await overlays.prepare();
  expect(existsSync(overlayOf(image))).toBe(true);
  return { overlays, asked };
};

test('01 one that was never put to use is removed, and nothing is lost with it', async () => {
  const { overlays } = await preparedOver();
  expect(await overlays.left()).toEqual([]);
  expect(existsSync(overlayOf(image))).toBe(false);
});

test('02 one that was is not, nor where the answer was lost: the guest may be about to write', async () => {
  for (const answer of [undefined, new QmpConnectionError('lost')]) {
    const { overlays } = await preparedOver(answer);
    await overlays.switchOver().catch(() => {});
    expect(await overlays.left()).toEqual([overlayOf(image)]);
    expect(existsSync(overlayOf(image))).toBe(true);
  }
});

test('03 where QEMU refuses, none was put to use: it lets go of it, and it is removed', async () => {
  const { overlays, asked } = await preparedOver(new QmpError('refused'));
  await expect(overlays.switchOver()).rejects.toThrow('refused');
  await overlays.commit();
  expect(asked.at(-1)).toBe('blockdev-del');
  expect(existsSync(overlayOf(image))).toBe(false);
});
