/** Waiting for an event with a deadline, never for luck. */

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

export interface WaitOptions {
  /** Default 30,000. */
  readonly timeoutMs?: number;
  /** Time between two probes; default 20. */
  readonly intervalMs?: number;
}

/**
 * Polls `probe` until it returns something other than undefined or false, and returns that.
 * At the deadline it throws, naming `what`; an error thrown by `probe` ends the wait at once.
 */
export const waitFor = async <T>(
  what: string,
  probe: () => T | undefined | false | Promise<T | undefined | false>,
  { timeoutMs = 30_000, intervalMs = 20 }: WaitOptions = {},
): Promise<T> => {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== false) return value;
    if (performance.now() >= deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await sleep(intervalMs);
  }
};

/** A file's text; '' while it does not exist. */
export const readText = (path: string): string => {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
};

/** How often `text` occurs in a file: two ready lines in a serial log are one reboot. */
export const countInFile = (path: string, text: string): number => readText(path).split(text).length - 1;

/** Waits until `text` occurs at least `count` times (default 1) in a file such as a serial log. */
export const waitForText = async (
  path: string,
  text: string,
  { count = 1, ...wait }: WaitOptions & { readonly count?: number } = {},
): Promise<void> => {
  try {
    await waitFor(`"${text}" (${count} times) in ${path}`, () => countInFile(path, text) >= count, wait);
  } catch (error) {
    throw new Error(`${(error as Error).message}; the file ends: ${readText(path).slice(-400)}`);
  }
};
