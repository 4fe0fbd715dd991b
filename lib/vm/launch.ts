/**
 * Starting, watching and ending a QEMU process.
 *
 *   spawn (own session, stdio to the log) ─► QMP ─► running VM
 *        └─ ends before QMP answers ─► VmGoneError with the log's last lines
 *
 * QEMU is detached: it survives the death of this process, because the guest
 * must never be harmed by ours.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { open, readFile, stat, unlink } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { CancelledError, ConfigError, QmpConnectionError, VmGoneError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import { QmpClient } from '../qmp/client.js';
import { identifyProcess, isAlive, type ProcessIdentity, signalProcess, waitForExit } from './process.js';

const START_TIMEOUT_MS = 20_000;
const LOG_LINES_IN_ERROR = 10;
const LOG_BYTES_IN_ERROR = 8 * 1024;

export interface LaunchOptions {
  /** QEMU's binary: a path, or a name to be found in PATH. */
  readonly binary: string;
  /** Arguments, without the binary. They must contain `-qmp unix:QMPPATH,server=on,wait=off`. */
  readonly argv: readonly string[];
  readonly qmpPath: string;
  /** QEMU's stdout and stderr are appended here. */
  readonly logPath: string;
  /** Deadline until QMP answers (default 20 s). */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
  readonly cwd?: string;
  /** Default: this process's. */
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** Descriptors for QEMU, which has them as 3, 4, …; the caller's to close. */
  readonly inherit?: readonly number[] | undefined;
  /** The addon's functions; both optional (see QmpClient.passDescriptor; peerPid proves whose QMP it is). */
  readonly sendWithFd?: NativeBinding['sendWithFd'] | undefined;
  readonly peerPid?: NativeBinding['peerPid'] | undefined;
  /** What belongs to the VM and can begin as soon as its process exists; if it fails, the launch does. */
  readonly beside?: ((vm: ProcessIdentity) => Promise<void>) | undefined;
}

export interface VmExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export const exitText = ({ code, signal }: VmExit): string =>
  signal === null ? `exit code ${code}` : `signal ${signal}`;

export interface LaunchedVm {
  readonly pid: number;
  readonly identity: ProcessIdentity;
  readonly binary: string;
  readonly argv: readonly string[];
  readonly qmp: QmpClient;
  readonly logPath: string;
  /** Settles when QEMU has ended; never rejects. */
  readonly exited: Promise<VmExit>;
}

/**
 * Starts QEMU and waits until its monitor answers. It does not keep Node's
 * event loop alive by itself (the QMP connection does until it is closed).
 *
 * @throws VmGoneError QEMU ended first; ConfigError the binary cannot be run,
 *         or another VM listens on qmpPath; QmpConnectionError it did not
 *         answer in time (it is killed then); CancelledError.
 */
export const launchVm = async (options: LaunchOptions): Promise<LaunchedVm> => {
  await claimSocketPath(options.qmpPath);
  const log = await open(options.logPath, 'a', 0o600);
  const logStart = (await log.stat()).size;
  let child: ChildProcess;
  let exited: Promise<VmExit>;
  let failed: Promise<never>;
  try {
    child = spawn(options.binary, [...options.argv], {
      detached: true,
      stdio: ['ignore', log.fd, log.fd, ...(options.inherit ?? [])],
      ...(options.env === undefined ? {} : { env: options.env }),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve({ code, signal }));
    });
    failed = new Promise((_, reject) => {
      child.once('error', reject);
    });
    failed.catch(() => {});
    child.unref();
  } finally {
    await log.close();
  }
  const { pid } = child;
  if (pid === undefined) throw await failed.catch((error: Error) => cannotRun(options.binary, error));

  const connecting = new AbortController();
  const cancel = (): void => connecting.abort();
  options.signal?.addEventListener('abort', cancel, { once: true });
  if (options.signal?.aborted) cancel();
  let exit: VmExit | undefined;
  void exited.then((value) => {
    exit = value;
    cancel();
  });
  try {
    const identity = await identifyProcess(pid);
    const beside = options.beside?.(identity);
    beside?.catch(() => {}); // awaited below; QEMU's own failure comes first
    const qmp = await QmpClient.connect(options.qmpPath, {
      timeoutMs: options.timeoutMs ?? START_TIMEOUT_MS,
      signal: connecting.signal,
      sendWithFd: options.sendWithFd,
    });
    const listener = options.peerPid?.(qmp.socketFd) ?? pid;
    if (listener !== pid) {
      await qmp.close();
      throw new QmpConnectionError(`process ${listener}, not the QEMU just started, listens on ${qmp.path}`, {
        cure: `Process ${listener} has that path already: end it, or choose another.`,
      });
    }
    await beside;
    return {
      pid,
      identity,
      binary: options.binary,
      argv: options.argv,
      qmp,
      logPath: options.logPath,
      exited,
    };
  } catch (error) {
    // The monitor closes a moment before the exit is reported.
    const ended = exit ?? (await Promise.race([exited, afterMs(error, 200)]));
    if (ended === undefined) {
      child.kill('SIGKILL');
      await exited;
      throw options.signal?.aborted ? new CancelledError('starting QEMU was cancelled') : error;
    }
    throw await goneBeforeReady(options, pid, ended, logStart, error);
  } finally {
    options.signal?.removeEventListener('abort', cancel);
  }
};

/** A short grace, only where a lost connection suggests that the process is ending. */
const afterMs = (error: unknown, ms: number): Promise<undefined> =>
  new Promise((resolve) => {
    if (!(error instanceof QmpConnectionError)) resolve(undefined);
    else setTimeout(() => resolve(undefined), ms);
  });

const goneBeforeReady = async (
  options: LaunchOptions,
  pid: number,
  exit: VmExit,
  logStart: number,
  cause: unknown,
): Promise<VmGoneError> => {
  const lines = await lastLogLines(options.logPath, logStart);
  const said = lines.length === 0 ? '' : `:\n  ${lines.join('\n  ')}`;
  return new VmGoneError(`QEMU ended before it was ready (${exitText(exit)})${said}`, {
    cause,
    cure: `Its log is ${options.logPath}; the command line is in details.argv.`,
    details: {
      pid,
      exitCode: exit.code,
      signal: exit.signal,
      lines,
      argv: [options.binary, ...options.argv],
    },
  });
};

/** The last lines that were written to a log from `fromByte` on. */
export const lastLogLines = async (path: string, fromByte = 0): Promise<readonly string[]> => {
  let content: Buffer;
  try {
    content = await readFile(path);
  } catch {
    return [];
  }
  const start = Math.max(fromByte, content.length - LOG_BYTES_IN_ERROR);
  return content
    .subarray(start)
    .toString('utf8')
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(-LOG_LINES_IN_ERROR);
};

const cannotRun = (binary: string, error: Error): ConfigError =>
  new ConfigError(`cannot run ${binary}: ${error.message}`, {
    cause: error,
    cure: 'Install QEMU (package qemu-system-x86), or give the path of its binary.',
  });

/** Removes a socket nobody listens on any more; refuses one that is in use. */
const claimSocketPath = async (path: string): Promise<void> => {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) return;
  if (!found.isSocket()) throw new ConfigError(`${path} exists and is not a socket`);
  if (await someoneListens(path)) {
    throw new ConfigError(`another process listens on ${path} already`, {
      cure: 'Attach to the VM that runs there, or choose another QMP path.',
    });
  }
  await unlink(path);
};

const someoneListens = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = createConnection({ path });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    // Only a refused connection proves that the listener is gone.
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  });

export interface QuitOptions {
  /** How long QEMU may take after the QMP `quit` (default 3 s), then after SIGTERM (2 s). */
  readonly quitMs?: number;
  readonly terminateMs?: number;
  /** After SIGKILL (5 s): only a process stuck in the kernel outlives that. */
  readonly killMs?: number;
}

/** What ended the VM. */
export type QuitMeans = 'gone' | 'quit' | 'SIGTERM' | 'SIGKILL';

/**
 * Ends a VM: QMP `quit`, then SIGTERM, then SIGKILL, each with its deadline.
 * Works on VMs we did not start. The QMP client is closed.
 *
 * @throws VmGoneError (in spite of its name: details.pid still runs) if not even SIGKILL ended it.
 */
export const quitVm = async (
  vm: { readonly identity: ProcessIdentity; readonly qmp?: QmpClient | undefined },
  options: QuitOptions = {},
): Promise<QuitMeans> => {
  try {
    if (!(await isAlive(vm.identity))) return 'gone';
    if (vm.qmp?.open) {
      const timeoutMs = options.quitMs ?? 3000;
      const asked = vm.qmp.execute('quit', undefined, { timeoutMs });
      // QEMU may end before its answer is out; what counts is whether it ends.
      asked.catch(() => {});
      if (await endsWithin(vm.identity, timeoutMs, vm.qmp)) return 'quit';
    }
    await signalProcess(vm.identity, 'SIGTERM');
    if (await endsWithin(vm.identity, options.terminateMs ?? 2000, vm.qmp)) return 'SIGTERM';
    await killVm(vm.identity, options.killMs);
    return 'SIGKILL';
  } finally {
    await vm.qmp?.close();
  }
};

/** SIGKILL, if it is still that process, and waits until it has ended. */
export const killVm = async (identity: ProcessIdentity, timeoutMs = 5000): Promise<void> => {
  await signalProcess(identity, 'SIGKILL');
  if (!(await endsWithin(identity, timeoutMs))) throw doesNotEnd(identity);
};

/** For a VM's memory to be given back: what is not huge pages takes the kernel a tenth of that, or less. */
const REAP_BASE_MS = 10_000;
const REAP_BYTES_PER_MS = 4 * 2 ** 20;

/**
 * As killVm(), for a VM that this process has started, and settles when all that it held is free: its memory, files,
 * sockets and taps. A process counts as ended (isAlive) before its last thread has given them back.
 */
export const reapVm = async (
  { identity, exited }: Pick<LaunchedVm, 'identity' | 'exited'>,
  ramBytes: number,
): Promise<void> => {
  await signalProcess(identity, 'SIGKILL');
  const limit = new AbortController();
  const limitMs = REAP_BASE_MS + ramBytes / REAP_BYTES_PER_MS;
  const overdue = delay(limitMs, true, { signal: limit.signal }).catch(() => false);
  const isOverdue = await Promise.race([exited.then(() => false), overdue]);
  limit.abort();
  if (isOverdue) throw doesNotEnd(identity);
};

const doesNotEnd = ({ pid }: ProcessIdentity): VmGoneError =>
  new VmGoneError(`process ${pid} does not end, even by SIGKILL`, {
    cure: 'It is stuck in the kernel (state D); look at the storage or device it waits for.',
    details: { pid },
  });

const endsWithin = async (
  identity: ProcessIdentity,
  timeoutMs: number,
  qmp?: QmpClient,
): Promise<boolean> => {
  const signal = AbortSignal.timeout(timeoutMs);
  return waitForExit(identity, { pollMs: 10, signal, hint: qmp?.closed }).then(
    () => true,
    () => false,
  );
};
