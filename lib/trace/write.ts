/** Traces as files: what a name ends in says which kind. */
import { constants } from 'node:fs';
import { access, rename, stat, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ConfigError, toHoldfastError } from '../errors.js';
import { chromeTrace } from './chrome-trace.js';
import type { TraceDocument } from './document.js';
import { renderTraceHtml } from './html.js';

/**
 * Before anything is recorded: a file of a known kind, in a directory that can be written.
 * @throws ConfigError
 */
export const checkTraceFile = async (path: string, flag: string): Promise<void> => {
  if (!/\.(html|json)$/.test(path)) {
    throw new ConfigError(`${flag}: ${path} ends neither in .html nor in .json`, {
      cure: '.html is a page of its own, .json are Chrome trace events, for ui.perfetto.dev.',
    });
  }
  const dir = dirname(path);
  try {
    await access(dir, constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new ConfigError(`${flag}: ${dir} cannot be written: ${(cause as Error).message}`, { cause });
  }
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined && !found.isFile()) throw new ConfigError(`${flag}: ${path} is there, and no file`);
};

/** Complete or not at all. */
export const writeTrace = async (trace: TraceDocument, path: string): Promise<void> => {
  const text = path.endsWith('.html') ? renderTraceHtml(trace) : `${JSON.stringify(chromeTrace(trace))}\n`;
  const unfinished = `${path}.part`;
  try {
    await writeFile(unfinished, text);
    await rename(unfinished, path);
  } catch (error) {
    throw toHoldfastError(error, `writing ${path}`);
  }
};
