/** Images flushed ahead of a stop: how often, and what ends it. */
import { readFileSync, statfsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { TMPFS_MAGIC } from '../../lib/file-systems.js';
import { cachedImagesOf, flushAhead } from '../../lib/vm/flush-ahead.js';
import { repositoryRoot } from '../lab/guest.js';
import { readText, waitFor } from '../lab/wait.js';

/** What reading a file takes from the disk. */
const readFromDiskBytes = (file: string): number => {
  const accounted = (): number => Number(/^read_bytes: (\d+)$/m.exec(readText('/proc/self/io'))?.[1]);
  const before = accounted();
  readFileSync(file);
  return accounted() - before;
};

describe('01 how often', () => {
  /** Each flush takes as long as it is told. */
  const flushesOf = async (images: readonly string[], tookMs: readonly number[]): Promise<number> => {
    let [flushes, nowMs] = [0, 0];
    const flush = async (): Promise<void> => {
      nowMs += tookMs[flushes++] ?? Number.NaN;
    };
    await flushAhead(images, { flush, nowMs: () => nowMs });
    return flushes;
  };

  test.each([
    { tookMs: [3], what: 'a short one is enough' },
    { tookMs: [900, 40, 6], what: 'after a long one what was written meanwhile, and so on' },
    { tookMs: [900, 700], what: 'not where the guest writes as fast as the disk' },
    { tookMs: [9_000, 2_000, 500], what: 'not for ever' },
  ])('$what', async ({ tookMs }) => {
    expect(await flushesOf(['/a'], tookMs)).toBe(tookMs.length);
  });

  test('what QEMU will drop from the page cache is dropped behind it, also what is never flushed', async () => {
    const done: string[] = [];
    await flushAhead(['/a', '/b'], {
      ...{ dropped: ['/b', '/unsafe'], nowMs: () => 0 },
      flush: async (images) => void done.push(...images),
      drop: async (image) => void done.push(`${image} dropped`),
    });
    expect(done).toEqual(['/a', '/b', '/b dropped', '/unsafe dropped']);
  });

  test('without images nothing is done', async () => {
    expect(await flushesOf([], [1])).toBe(0);
  });
});

describe('02 what ends it', () => {
  let dir: string;
  let path: string | undefined;

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
    path = process.env.PATH;
  });

  afterEach(async () => {
    process.env.PATH = path;
    await rm(dir, { recursive: true, force: true });
  });

  /** In place of a program: tells how it was called, and hangs as one does that waits for such a disk. */
  const hangs = async (program: string) => {
    const begun = join(dir, `${program}-begun`);
    await writeFile(join(dir, program), `#!/bin/sh\necho "$@" > ${begun}\nexec sleep 60\n`);
    await chmod(join(dir, program), 0o755);
    process.env.PATH = `${dir}:${path}`;
    return { begun, asked: () => waitFor(`the call of ${program}`, () => readText(begun) || undefined) };
  };

  // A tmpfs has no other place for its pages.
  const isOnDisk = statfsSync(repositoryRoot()).type !== TMPFS_MAGIC;
  test.runIf(isOnDisk)(
    'the disk; also where a file is missing, which is left to QEMU to report',
    async () => {
      await mkdir(join(repositoryRoot(), '.cache'), { recursive: true });
      const cached = await mkdtemp(join(repositoryRoot(), '.cache', 'flush-ahead-'));
      const [image, missing] = [join(cached, 'image'), join(cached, 'missing')];
      try {
        await writeFile(image, Buffer.alloc(1 << 20, 1));
        expect(readFromDiskBytes(image)).toBeLessThan(1 << 20);
        await flushAhead([missing, image], { dropped: [missing, image] });
        expect(readFromDiskBytes(image)).toBeGreaterThanOrEqual(1 << 20);
      } finally {
        await rm(cached, { recursive: true });
      }
    },
  );

  test('a program is missing: QEMU flushes alone', async () => {
    process.env.PATH = dir;
    await expect(flushAhead(['/a'], { dropped: ['/a'] })).resolves.toBeGreaterThanOrEqual(0);
  });

  test('the system starts none: QEMU flushes alone', async () => {
    const tooLong = `/${'a'.repeat(1 << 20)}`; // E2BIG, thrown by spawn() itself
    await expect(flushAhead([tooLong], { dropped: [tooLong] })).resolves.toBeGreaterThanOrEqual(0);
  });

  test('its signal, while a disk hangs: in the flush', async () => {
    const [sync, dd] = [await hangs('sync'), await hangs('dd')];
    const stop = new AbortController();
    const flushed = flushAhead(['/a', '/b'], { signal: stop.signal, dropped: ['/a', '/b'] });
    expect(await sync.asked()).toBe('--data /a /b\n');
    stop.abort();
    await flushed;
    expect(readText(dd.begun)).toBe(''); // nobody could end the wait for that any more
  });

  test('its signal, while a disk hangs: in what drops it', async () => {
    const dd = await hangs('dd');
    const stop = new AbortController();
    const dropped = flushAhead([], { signal: stop.signal, dropped: ['/a'] });
    expect(await dd.asked()).toBe('if=/a iflag=nocache count=0 of=/dev/null status=none\n');
    stop.abort();
    await dropped;
  });
});

test('03 those that QEMU writes to itself', () => {
  const drive = { name: 'd', readOnly: false, format: 'raw', file: 'd.img' };
  const drives = [
    drive,
    { ...drive, file: '/srv/e.img', noFlush: false, direct: false },
    { ...drive, file: '/srv/read-only.iso', readOnly: true },
    { ...drive, file: '/srv/unsafe.img', noFlush: true },
    { ...drive, file: '/srv/direct.img', direct: true },
    { ...drive, file: 'nbd+unix:///?socket=/run/nbd.sock' },
  ];
  expect(cachedImagesOf({ drives, cwd: '/vms' })).toEqual({
    flushed: ['/vms/d.img', '/srv/e.img', '/srv/direct.img'],
    dropped: ['/vms/d.img', '/srv/e.img', '/srv/unsafe.img'],
  });
});
