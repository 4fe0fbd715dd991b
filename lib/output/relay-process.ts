/**
 * The relay's process, from outside: starting, finding and ending it.
 *
 *   startRelay ─ spawn `holdfast relay`, in a session of its own ─► control socket answers ─► QEMU connected
 *        └─ ends before that ─► RelayError with the log's last lines
 *
 * It is detached for the same reason as QEMU: the guest's network must outlive whoever protects it.
 */
import { spawn } from 'node:child_process';
import { open, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CancelledError, RelayError, toHoldfastError } from '../errors.js';
import { packageRoot } from '../package-root.js';
import { lastLogLines } from '../vm/launch.js';
import { identifyProcess, isAlive, type ProcessIdentity, signalProcess, waitForExit } from '../vm/process.js';
import { RelayControl } from './relay-control.js';
import {
  controlSocketOf,
  type RelaySpec,
  relayFiles,
  removeRelayFiles,
  runningRelay,
  targetText,
} from './relay-files.js';

/** A Node process, a tap and one connection: 0.2 s, on a machine that has nothing else to do. */
const START_TIMEOUT_MS = 10_000;
const POLL_MS = 10;
const END_TIMEOUT_MS = 2_000;

export interface StartRelayOptions {
  /** Hold from the first frame on; else it holds only if `….held` says so. */
  readonly hold?: boolean;
  readonly signal?: AbortSignal | undefined;
}

export interface StartedRelay {
  readonly identity: ProcessIdentity;
  /** Settles when it has ended; never rejects. */
  readonly exited: Promise<void>;
}

/**
 * Starts a relay, and settles when it stands between QEMU and the target.
 * @throws RelayError if it ended first or was not ready in time (it is ended then), CancelledError.
 */
export const startRelay = async (spec: RelaySpec, options: StartRelayOptions = {}): Promise<StartedRelay> => {
  const { log: logPath } = relayFiles(spec.socket);
  const log = await open(logPath, 'a', 0o600);
  const logStart = (await log.stat()).size;
  const [program, args] = relayCommand(spec, options.hold === true);
  const child = spawn(program, args, { detached: true, stdio: ['ignore', log.fd, log.fd], cwd: '/' });
  let ended = false;
  const exited = new Promise<void>((resolve) => {
    const onEnd = (): void => {
      ended = true;
      resolve();
    };
    child.once('exit', onEnd);
    child.once('error', onEnd);
  });
  child.unref();
  await log.close();
  try {
    const identity =
      child.pid === undefined ? undefined : await identifyProcess(child.pid).catch(() => undefined);
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (identity !== undefined && !ended && performance.now() < deadline) {
      if (options.signal?.aborted) throw new CancelledError('starting the relay was cancelled');
      if (await standsBetween(spec.control)) return { identity, exited };
      await delay(POLL_MS);
    }
    throw await notReady(spec, ended, logPath, logStart);
  } catch (error) {
    child.kill('SIGKILL');
    if (child.pid !== undefined) await exited;
    throw error;
  }
};

const relayCommand = (
  { socket, control, target, heldBytesMax, vm }: RelaySpec,
  hold: boolean,
): [string, string[]] => [
  process.execPath,
  [
    join(packageRoot(), 'dist/lib/cli/main.js'),
    ...['relay', '--netdev', socket],
    ...('tap' in target ? ['--tap', target.tap] : ['--to', target.unix]),
    ...['--control', control, '--held-max', String(heldBytesMax)],
    ...(vm === null ? [] : ['--pid-of-vm', String(vm.pid)]),
    ...(hold ? ['--hold'] : []),
  ],
];

const standsBetween = async (controlPath: string): Promise<boolean> => {
  try {
    await using control = await RelayControl.connect(controlPath);
    const { qemuConnected, targetConnected } = await control.stats();
    return qemuConnected && targetConnected;
  } catch {
    return false; // it doesn't listen yet, or is ending
  }
};

const notReady = async (
  { socket, target }: RelaySpec,
  ended: boolean,
  logPath: string,
  logStart: number,
): Promise<RelayError> => {
  const lines = await lastLogLines(logPath, logStart);
  const said = lines.length === 0 ? '' : `:\n  ${lines.join('\n  ')}`;
  const what = `the relay between ${socket} and the ${targetText(target)}`;
  return new RelayError(
    ended
      ? `${what} ended before it was ready${said}`
      : `${what} did not reach both within ${START_TIMEOUT_MS} ms${said}`,
    { cure: `Its log is ${logPath}.`, details: { socket, target, lines } },
  );
};

/** Ends the relay of a socket, if there is one, and removes its files. */
export const endRelay = async (socket: string): Promise<void> => {
  const record = await runningRelay(socket);
  if (record !== undefined) {
    await signalProcess(record.process, 'SIGTERM');
    if (!(await endsInTime(record.process))) await signalProcess(record.process, 'SIGKILL');
  }
  await removeRelayFiles(record ?? { socket, control: controlSocketOf(socket) }, 'all');
};

const endsInTime = async (identity: ProcessIdentity): Promise<boolean> =>
  await waitForExit(identity, { pollMs: POLL_MS, signal: AbortSignal.timeout(END_TIMEOUT_MS) }).then(
    () => true,
    () => false,
  );

/** Connects to the relay that serves a socket, or starts one. */
export const reachRelay = async (spec: RelaySpec, options: StartRelayOptions): Promise<RelayControl> => {
  if ((await runningRelay(spec.socket)) === undefined) {
    if (spec.vm !== null && !(await isAlive(spec.vm))) {
      throw new RelayError(`no relay is needed for ${spec.socket}: QEMU (process ${spec.vm.pid}) has ended`);
    }
    await startRelay(spec, options);
  }
  try {
    return await RelayControl.connect(spec.control);
  } catch (error) {
    throw toHoldfastError(error);
  }
};

/** Whether a relay of this socket must hold, whoever starts it. */
export const wantHeld = async (socket: string, held: boolean): Promise<void> => {
  const { held: path } = relayFiles(socket);
  if (held) await writeFile(path, '', { mode: 0o600 });
  else await rm(path, { force: true });
};
