/**
 * A disk server's process, from outside: starting, finding and ending it.
 *
 *   startDiskServer ─ spawn nbdkit, in a session of its own ─► control socket greets ─► ready for QEMU
 *        └─ ends before that ─► DiskError with the log's last lines
 *
 * It is detached for the same reason as QEMU: the guest's disk must outlive whoever protects it. It is
 * started before QEMU, which opens it at its start, and bound to QEMU's process as soon as there is one.
 */
import { spawn } from 'node:child_process';
import { open, rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { CancelledError, DiskError, type HoldfastError, NoSpaceError } from '../errors.js';
import { lastLogLines } from '../vm/launch.js';
import { identifyProcess, isAlive, type ProcessIdentity, signalProcess, waitForExit } from '../vm/process.js';
import { withClaim } from './disk-claim.js';
import { DiskControl } from './disk-control.js';
import {
  type DiskServerRecord,
  type DiskServerSpec,
  diskServerFiles,
  removeDiskServerFiles,
  runningDiskServer,
  writeDiskServerRecord,
} from './disk-files.js';
import { diskPluginPath } from './disk-plugin.js';

/** nbdkit and its plugin: 20 ms. A block device that has to spin up takes longer. */
const START_TIMEOUT_MS = 15_000;
const POLL_MS = 10;
/** At its end a server waits for the image to be on stable storage. Killed, it loses nothing but that. */
const END_TIMEOUT_MS = 10_000;
/** What a server that could not start for it says: strerror() of ENOSPC and EDQUOT. */
const FULL = /No space left on device|Disk quota exceeded/;

export interface StartedDiskServer {
  readonly record: DiskServerRecord;
  readonly control: DiskControl;
}

/**
 * The server of a socket: the one that runs, or a new one; with a connection to its control socket, which
 * the caller closes.
 * @throws DiskError, NoSpaceError if it ended first or was not ready in time (it is ended then), CancelledError.
 */
export const reachDiskServer = async (
  spec: DiskServerSpec,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<StartedDiskServer> =>
  await withClaim(diskServerFiles(spec.socket).claim, async () => {
    const record = await runningDiskServer(spec.socket);
    if (record !== undefined) {
      return { record, control: await DiskControl.connect(diskServerFiles(spec.socket).control) };
    }
    if (spec.vm !== null && !(await isAlive(spec.vm))) {
      throw new DiskError(
        `no disk server is needed for ${spec.socket}: QEMU (process ${spec.vm.pid}) has ended`,
      );
    }
    return await start(spec, options.signal);
  });

/**
 * Sees to it that a server runs, without a word to one that does: it has one controller, and that is another's.
 * @returns the record of the one that runs now
 */
export const ensureDiskServer = async (spec: DiskServerSpec): Promise<DiskServerRecord> =>
  await withClaim(diskServerFiles(spec.socket).claim, async () => {
    const running = await runningDiskServer(spec.socket);
    if (running !== undefined) return running;
    const { record, control } = await start(spec, undefined);
    await control.close();
    return record;
  });

/**
 * Starts a server, and settles when QEMU can connect to it.
 * @throws DiskError if one runs already, ended first or was not ready in time (it is ended then), CancelledError.
 */
export const startDiskServer = async (
  spec: DiskServerSpec,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<StartedDiskServer> =>
  await withClaim(diskServerFiles(spec.socket).claim, async () => {
    const record = await runningDiskServer(spec.socket);
    if (record === undefined) return await start(spec, options.signal);
    throw new DiskError(
      `process ${record.process.pid} is the disk server of ${record.imagePath} on ${spec.socket} already`,
    );
  });

const start = async (spec: DiskServerSpec, signal: AbortSignal | undefined): Promise<StartedDiskServer> => {
  const files = diskServerFiles(spec.socket);
  const plugin = diskPluginPath();
  await rm(spec.socket, { force: true }); // nbdkit does not take the place of one that died
  const log = await open(files.log, 'a', 0o600);
  const logStart = (await log.stat()).size;
  const args = [
    ...['--foreground', '--unix', spec.socket, plugin],
    ...[`image=${spec.imagePath}`, `meta=${spec.metaDir}`, `ring=${files.ring}`, `control=${files.control}`],
    ...[`ring-bytes=${spec.ringBytes}`, `mode=${spec.mode}`],
  ];
  const child = spawn(spec.nbdkit, args, { detached: true, stdio: ['ignore', log.fd, log.fd], cwd: '/' });
  let failure: Error | undefined;
  const exited = new Promise<void>((resolve) => {
    const onEnd = (error?: Error): void => {
      failure = error ?? new Error('it ended');
      resolve();
    };
    child.once('exit', () => onEnd());
    child.once('error', onEnd);
  });
  child.unref();
  await log.close();
  let control: DiskControl | undefined;
  try {
    const identity =
      child.pid === undefined ? undefined : await identifyProcess(child.pid).catch(() => undefined);
    const record = identity === undefined ? undefined : { ...spec, process: identity };
    if (record !== undefined) await writeDiskServerRecord(record);
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (record !== undefined && failure === undefined && performance.now() < deadline) {
      if (signal?.aborted) throw new CancelledError('starting the disk server was cancelled');
      control = await DiskControl.connect(files.control).catch(() => undefined);
      if (control !== undefined) {
        if (spec.vm !== null) await control.bind(spec.vm.pid);
        return { record, control };
      }
      await delay(POLL_MS);
    }
    throw await notReady(spec, failure, logStart);
  } catch (error) {
    await control?.close();
    child.kill('SIGKILL');
    if (child.pid !== undefined) await exited;
    if (spec.vm === null) await removeDiskServerFiles(spec.socket); // else the record is how it is found again
    throw error;
  }
};

const notReady = async (
  { id, imagePath, socket, nbdkit }: DiskServerSpec,
  failure: Error | undefined,
  logStart: number,
): Promise<HoldfastError> => {
  const { log } = diskServerFiles(socket);
  const what = `the disk server of ${imagePath} (disk ${id})`;
  if ((failure as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') {
    return new DiskError(`${what} cannot be started: there is no ${nbdkit}`, {
      cure: 'Install nbdkit (apt-get install nbdkit); `holdfast doctor` looks for it.',
      details: { id, imagePath, nbdkit },
    });
  }
  const lines = await lastLogLines(log, logStart);
  const said = lines.length === 0 ? '' : `:\n  ${lines.join('\n  ')}`;
  const message =
    failure === undefined
      ? `${what} was not ready within ${START_TIMEOUT_MS} ms${said}`
      : `${what} ended before it was ready${said}`;
  const details = { id, imagePath, lines };
  return lines.some((line) => FULL.test(line))
    ? new NoSpaceError(message, { cause: failure, cure: `Make room there. Its log is ${log}.`, details })
    : new DiskError(message, { cause: failure, cure: `Its log is ${log}.`, details });
};

/** QEMU's process is known: the server ends with it, and whoever starts the server anew knows that too. */
export const bindDiskServer = async (
  { record, control }: StartedDiskServer,
  vm: ProcessIdentity,
): Promise<DiskServerRecord> => {
  await control.bind(vm.pid);
  const bound: DiskServerRecord = { ...record, vm: { pid: vm.pid, startTicks: vm.startTicks } };
  await writeDiskServerRecord(bound);
  return bound;
};

/**
 * Ends the server of a socket, if there is one, and removes its files in the run directory. Only after
 * QEMU: a guest that writes to a disk without a server waits.
 */
export const endDiskServer = async (socket: string): Promise<void> => {
  const record = await runningDiskServer(socket);
  if (record !== undefined) {
    await signalProcess(record.process, 'SIGTERM');
    const ended = await waitForExit(record.process, {
      pollMs: POLL_MS,
      signal: AbortSignal.timeout(END_TIMEOUT_MS),
    }).then(
      () => true,
      () => false,
    );
    if (!ended) await signalProcess(record.process, 'SIGKILL');
  }
  await removeDiskServerFiles(socket);
};
