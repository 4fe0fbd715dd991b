/** Pages that need not travel because a disk has them: which disks, and what is told of the pages. */
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { IndexDisksOptions } from '../../lib/native.js';
import {
  awaitIndex,
  beginIndex,
  diskPagesOf,
  indexWaitMs,
  pageDisksOf,
  sumDiskPages,
} from '../../lib/primary/page-disks.js';
import type { Drive } from '../../lib/vm/describe.js';

let dir = '';

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-page-disks-'));
  await writeFile(join(dir, 'base.img'), Buffer.alloc(12_288, 1));
  await writeFile(join(dir, 'empty.iso'), '');
  await symlink('base.img', join(dir, 'link.img'));
});

afterAll(async () => {
  await rm(dir, { recursive: true });
});

const drive = (file: string, readOnly = true): Drive => ({
  ...{ name: 'd', format: 'raw', file, readOnly },
});

describe('which disks', () => {
  it('are those that are replicated, and what is attached read-only and is here', async () => {
    const replicated = { imagePath: '/srv/vda.raw', imageBytes: 1 << 20 };
    const drives = [
      drive('nbd+unix:///?socket=/run/vda.sock', false),
      drive(join(dir, 'base.img')),
      drive('base.img'), // the same, from QEMU's directory
      drive('link.img'),
      drive('gone.img'),
      drive('empty.iso'),
      drive(dir),
      drive('writable.img', false),
      drive('nbd://10.0.0.1:10809'),
      drive(`json:{"driver":"qcow2","file":{"driver":"file","filename":"${join(dir, 'base.img')}"}}`),
    ];
    expect(await pageDisksOf({ drives, cwd: dir }, [replicated])).toEqual([
      replicated,
      { imagePath: join(dir, 'base.img'), imageBytes: 12_288 },
      { imagePath: join(dir, 'link.img'), imageBytes: 12_288 },
    ]);
  });

  it('are at most sixteen', async () => {
    const replicated = Array.from({ length: 20 }, (_, index) => ({
      imagePath: `/srv/${index}`,
      imageBytes: 4_096,
    }));
    expect(await pageDisksOf({ drives: [], cwd: '/' }, replicated)).toHaveLength(16);
  });

  it('are indexed where the other side has them, by their place in the session', async () => {
    const asked: IndexDisksOptions[] = [];
    const engine = { indexDisks: async (options: IndexDisksOptions) => void asked.push(options) };
    const disks = ['/a', '/b', '/c'].map((imagePath) => ({ imagePath, imageBytes: 4_096 }));
    expect(await beginIndex(engine, disks, [2, 0])).toEqual(['/a', '/c']);
    expect(asked[0]?.disks).toEqual([
      { number: 0, path: '/a', bytes: 4_096 },
      { number: 2, path: '/c', bytes: 4_096 },
    ]);
    await expect(beginIndex(engine, disks, [])).rejects.toThrow(/no disk that both hosts have/);
    await expect(beginIndex(engine, [], [1])).rejects.toThrow(/no disk that both hosts have/);
    expect(asked).toHaveLength(1);
  });
});

describe('the index', () => {
  it('is waited for by the size of RAM, and one that fails only costs what it would have saved', async () => {
    expect(indexWaitMs(512 << 20)).toBe(2_147);
    expect(indexWaitMs(1 << 20)).toBe(2_000);
    expect(indexWaitMs(16 * 2 ** 30)).toBe(68_719);
    const warned: string[] = [];
    const log = { info: () => {}, warn: (_: object, text: string) => warned.push(text) } as never;
    const failing = { awaitIndex: async () => await Promise.reject(new Error('gone')) };
    expect(await awaitIndex(failing, 1 << 20, log)).toBeUndefined();
    expect(warned).toEqual(['the disks are not indexed']);
  });
});

describe('what is told', () => {
  const counts = { referenced: 100, different: 3, unread: 2, referenceBytes: 3_300 };

  it('is what was verified, what was sent after all, and what that saved', () => {
    const pages = { referenced: 100, verified: 95, mismatched: 3, unread: 2, resent: 5, savedBytes: 385_820 };
    expect(diskPagesOf(counts, 4_096)).toEqual(pages);
    expect(diskPagesOf({ ...counts, different: 98 }, 4_096)).toMatchObject({
      verified: 0,
      savedBytes: -3_300,
    });
    expect(sumDiskPages([undefined, pages, undefined, pages])).toEqual(
      Object.fromEntries(Object.entries(pages).map(([key, value]) => [key, 2 * value])),
    );
    expect(sumDiskPages([undefined])).toBeUndefined();
    expect(sumDiskPages([])).toBeUndefined();
  });
});
