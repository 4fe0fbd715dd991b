/**
 * What the guest wrote to its images, brought from the host's page cache to the disk while the VM runs.
 *
 *   VM runs      flush ahead ─► what was written meanwhile ─► flush ahead, shorter
 *   VM stopped   QEMU's own flush of each image (vm_stop, bdrv_flush_all): little is left for it
 *
 * It is no more than QEMU does anyway, and nothing depends on it: what fails here QEMU meets again, and reports.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { resolve } from 'node:path';
import type { VmDescription } from './describe.js';
import { imagePathOf } from './drives.js';

/** Not worth another one: starting the program takes some of it. */
const SHORT_MS = 15;
/** Each flush is left what was written during the one before. */
const FLUSHES_MAX = 3;
/** In such a time a guest writes little memory. */
const LITTLE_MS = 30;

/** Whether what else was caught up with before the flush lags behind again. */
export const tookLong = (flushMs: number): boolean => flushMs > LITTLE_MS;

export interface FlushAheadOptions {
  /** Ends the waiting, also for a disk that hangs. */
  readonly signal?: AbortSignal | undefined;
  /**
   * Absolute paths. When QEMU takes its disks back after a migration it drops them from the page cache
   * (raw_co_invalidate_cache), however much that has of them. So that is done ahead, too.
   */
  readonly dropped?: readonly string[];
  readonly flush?: typeof flushFiles;
  readonly drop?: typeof dropFromCache;
  readonly nowMs?: () => number;
}

export interface CachedImages {
  /** Those that QEMU flushes at every `stop`: all but with cache=unsafe. */
  readonly flushed: string[];
  /** Those that QEMU drops from the page cache after a migration: all but with cache=none, which are not in it. */
  readonly dropped: string[];
}

/** The images that QEMU itself writes to. */
export const cachedImagesOf = ({ drives, cwd }: Pick<VmDescription, 'drives' | 'cwd'>): CachedImages => {
  const images = drives.flatMap(({ file, readOnly, noFlush, direct, server }) => {
    const path = readOnly || server !== undefined ? undefined : imagePathOf(file);
    return path === undefined ? [] : [{ path: resolve(cwd, path), noFlush, direct }];
  });
  return {
    flushed: images.filter(({ noFlush }) => !noFlush).map(({ path }) => path),
    dropped: images.filter(({ direct }) => !direct).map(({ path }) => path),
  };
};

/**
 * @param images absolute paths; none: nothing is flushed
 * @returns how long it took
 */
export const flushAhead = async (
  images: readonly string[],
  options: FlushAheadOptions = {},
): Promise<number> => {
  const { signal, dropped = [], flush = flushFiles, drop = dropFromCache } = options;
  const { nowMs = () => performance.now() } = options;
  const beganMs = nowMs();
  let tookMs = Number.POSITIVE_INFINITY;
  for (let flushes = 0; flushes < FLUSHES_MAX && images.length > 0; flushes += 1) {
    if (signal?.aborted) break;
    const startMs = nowMs();
    await flush(images, signal);
    const beforeMs = tookMs;
    tookMs = nowMs() - startMs;
    if (tookMs <= SHORT_MS || tookMs > beforeMs / 2) break;
  }
  if (!signal?.aborted) await Promise.all(dropped.map((image) => drop(image, signal)));
  return nowMs() - beganMs;
};

/** fdatasync of each. */
const flushFiles = (images: readonly string[], signal?: AbortSignal): Promise<void> =>
  runToEnd('sync', ['--data', ...images], signal);

/** posix_fadvise(POSIX_FADV_DONTNEED): pages that have been written since stay. */
const dropFromCache = (image: string, signal?: AbortSignal): Promise<void> =>
  runToEnd('dd', [`if=${image}`, 'iflag=nocache', 'count=0', 'of=/dev/null', 'status=none'], signal);

/**
 * In a process of its own: nothing but the disk ends such a call where it hangs, and this process, which others wait
 * for, must be able to end before. Never rejects.
 */
const runToEnd = async (
  program: string,
  args: readonly string[],
  signal: AbortSignal | undefined,
): Promise<void> => {
  const child = signal?.aborted ? undefined : started(program, args);
  if (child === undefined) return;
  await new Promise<void>((resolve) => {
    const letGo = (): void => {
      child.kill();
      child.unref();
      resolve();
    };
    signal?.addEventListener('abort', letGo, { once: true });
    const ended = (): void => {
      signal?.removeEventListener('abort', letGo);
      resolve();
    };
    child.once('error', ended);
    child.once('exit', ended);
  });
};

/** Undefined where the system has not even the means to try: then spawn() throws. */
const started = (program: string, args: readonly string[]): ChildProcess | undefined => {
  try {
    return spawn(program, args, { stdio: 'ignore' });
  } catch {
    return undefined;
  }
};
