/** What the commands have in common: options, the way they end, the data plane's late loading. */
import { stat } from 'node:fs/promises';
import { type Command, Option } from 'commander';
import { readKeyFile } from '../control/auth.js';
import {
  CancelledError,
  ConfigError,
  type HoldfastError,
  toHoldfastError,
  UnsupportedHostError,
} from '../errors.js';
import { primarySettings } from '../primary/options.js';
import type { CommandConsole } from './console.js';
import { parseDurationMs } from './values.js';

export const jsonOption = (): Option => new Option('--json', 'one JSON object per line on stdout');

export const runDirOption = (): Option =>
  new Option('--run-dir <dir>', 'run directory of the daemons')
    .argParser(parseRunDir)
    .default(primarySettings.shape.runDir.def.defaultValue);

/** By the rule of the daemons: what they write there names it, and is read elsewhere. */
const parseRunDir = (text: string): string => {
  const parsed = primarySettings.shape.runDir.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new ConfigError(`--run-dir: ${parsed.error.issues[0]?.message}`);
};

export const timeoutOption = (fallback: string): Option =>
  new Option('--timeout <duration>', 'how long to wait for the answer')
    .argParser((text: string) => parseDurationMs(text, '--timeout'))
    .default(parseDurationMs(fallback, '--timeout'), fallback);

export interface ExitCode {
  readonly code: number;
  readonly meaning: string;
}

/** What a person reads below the flags: examples that can be pasted, and what the exit codes mean. */
export const teach = (
  command: Command,
  parts: {
    readonly examples: readonly string[];
    readonly exitCodes: readonly ExitCode[];
    readonly notes?: string;
  },
): void => {
  const notes = parts.notes === undefined ? '' : `\n${parts.notes.trim()}\n`;
  const examples = parts.examples.map((line) => `  ${line}`).join('\n');
  const codes = parts.exitCodes
    .map(({ code, meaning }) => `  ${String(code).padStart(3)}  ${meaning}`)
    .join('\n');
  command.addHelpText('after', `${notes}\nExamples:\n${examples}\n\nExit codes:\n${codes}\n`);
};

/** Exit codes that every daemon and request may end with; docs/operations.md has the whole table. */
export const usageExitCode: ExitCode = { code: 2, meaning: 'usage, flag or configuration error' };

/**
 * Loads a part that needs the native addon, only once it is needed: help,
 * status and the requests work without it.
 * @throws UnsupportedHostError if the addon can't be loaded
 */
export const loadDataPlane = async <M>(load: () => Promise<M>): Promise<M> => {
  try {
    return await load();
  } catch (cause) {
    throw new UnsupportedHostError(`the native addon cannot be loaded: ${(cause as Error).message}`, {
      cause,
      cure: 'Build it with `npm rebuild holdfast` (needs a C++20 compiler and make), or reinstall the package.',
    });
  }
};

/** @throws ConfigError */
export const loadKey = async (path: string, console: CommandConsole): Promise<Buffer> => {
  const key = await readKeyFile(path);
  const { mode } = await stat(path);
  if ((mode & 0o004) !== 0) {
    console.hint(`warning: the key file ${path} can be read by every user of this host; chmod 600 ${path}`);
  }
  return key;
};

/** Anything thrown, as an error with a code, a cure and an exit code. */
export const asHoldfastError = (error: unknown): HoldfastError =>
  (error as Error | undefined)?.name === 'AbortError'
    ? new CancelledError('cancelled')
    : toHoldfastError(error);

/**
 * The first SIGINT or SIGTERM asks the daemon to end in order; a SIGINT after
 * it ends the process at once. Returns what takes the handlers away again.
 */
export const onStopSignals = (stop: (signal: NodeJS.Signals) => void): (() => void) => {
  let asked = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (asked && signal === 'SIGINT') process.exit(130);
    if (asked) return;
    asked = true;
    stop(signal);
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  return () => {
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
  };
};
