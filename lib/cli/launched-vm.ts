/**
 * A VM that `holdfast primary -- qemu-system-…` launched. It outlives the
 * daemon, so what is needed to find it again, and to clean up after it, is in
 * a record beside its sockets:
 *
 *   <runDir>/vm-<name>/   launched.json  qmp.sock  qemu.log
 *   <ramDir>/vm-<name>-<random>.holdfast.ram
 *
 *   first run      → launch, record
 *   daemon's restart, same command line → the VM that runs is attached to
 *   VM ended       → RAM file and directory are removed, now or at the next start
 */
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import { forPrimary } from '../vm/command-line.js';
import { launchVm, quitVm } from '../vm/launch.js';
import { isAlive, waitForExit } from '../vm/process.js';

/** From QEMU's last word on its monitor to the end of its process: freeing the RAM of a large VM takes a while. */
const EXIT_TIMEOUT_MS = 10_000;

const launchRecord = z.strictObject({
  /** Null between the decision to launch and the launch. */
  process: z.strictObject({ pid: z.number().int().positive(), startTicks: z.string() }).nullable(),
  /** The command line as the operator gave it, binary first. */
  commandLine: z.array(z.string()).min(1),
  qmpPath: z.string(),
  /** Absent if the command line names a RAM file of its own. */
  ramPath: z.string().optional(),
});
type LaunchRecord = z.infer<typeof launchRecord>;

export class LaunchedVm {
  readonly #dir: string;
  readonly #record: LaunchRecord;
  /** False if it ran before this daemon started. */
  readonly isNew: boolean;

  private constructor(dir: string, record: LaunchRecord, isNew: boolean) {
    this.#dir = dir;
    this.#record = record;
    this.isNew = isNew;
  }

  get pid(): number {
    return this.#record.process?.pid ?? 0;
  }

  get qmpPath(): string {
    return this.#record.qmpPath;
  }

  get logPath(): string {
    return join(this.#dir, 'qemu.log');
  }

  /**
   * Launches the VM, or finds it running already.
   * @throws ConfigError (another VM of this name runs, QEMU cannot be run), VmGoneError
   */
  static async ensure(options: {
    readonly runDir: string;
    readonly ramDir: string;
    readonly name: string;
    readonly commandLine: readonly string[];
    readonly native: Pick<NativeBinding, 'sendWithFd' | 'peerPid'>;
    readonly signal?: AbortSignal;
  }): Promise<LaunchedVm> {
    const { runDir, name, commandLine } = options;
    const dir = join(runDir, `vm-${name}`);
    const earlier = await readRecord(dir);
    if (earlier !== undefined && (await runs(earlier))) {
      if (JSON.stringify(earlier.commandLine) === JSON.stringify(commandLine)) {
        return new LaunchedVm(dir, earlier, false);
      }
      throw new ConfigError(
        `name: the VM '${name}' runs already (process ${earlier.process?.pid}), with another command line`,
        { cure: `Attach to it with --qmp ${earlier.qmpPath}, or choose another --name for the new VM.` },
      );
    }
    if (earlier !== undefined) await removeFiles(dir, earlier);
    return await LaunchedVm.#launch(dir, options);
  }

  /** The launched VM that listens on a QMP socket; undefined if it was not launched by Holdfast. */
  static async atSocket(qmpPath: string): Promise<LaunchedVm | undefined> {
    const dir = dirname(qmpPath);
    const record = await readRecord(dir);
    return record?.qmpPath === qmpPath && (await runs(record))
      ? new LaunchedVm(dir, record, false)
      : undefined;
  }

  static async #launch(dir: string, options: Parameters<typeof LaunchedVm.ensure>[0]): Promise<LaunchedVm> {
    const { ramDir, name, commandLine, native, signal } = options;
    const [binary = '', ...argv] = commandLine;
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const qmpPath = join(dir, 'qmp.sock');
    const ramPath = join(ramDir, `vm-${name}-${randomBytes(4).toString('hex')}.holdfast.ram`);
    const { argv: fullArgv, ram } = forPrimary(argv, { ramPath, qmpPath });
    const planned: LaunchRecord = {
      process: null,
      commandLine: [...commandLine],
      qmpPath,
      ...(ram.added ? { ramPath } : {}),
    };
    // Written before the launch too: a daemon killed in between leaves no RAM file that nobody knows of.
    await writeRecord(dir, planned);
    try {
      const vm = await launchVm({
        binary,
        argv: fullArgv,
        qmpPath,
        logPath: join(dir, 'qemu.log'),
        sendWithFd: native.sendWithFd,
        peerPid: native.peerPid,
        signal,
      });
      await vm.qmp.close(); // one client at a time: the primary is next
      const record = { ...planned, process: { ...vm.identity } };
      await writeRecord(dir, record);
      return new LaunchedVm(dir, record, true);
    } catch (error) {
      await rm(ramPath, { force: true });
      await rm(join(dir, 'launched.json'), { force: true }); // the log stays: the error names it
      throw error;
    }
  }

  /** Ends it, and removes its files. */
  async quit(): Promise<void> {
    if (this.#record.process !== null) await quitVm({ identity: this.#record.process });
    await removeFiles(this.#dir, this.#record);
  }

  /**
   * After the end of protection. If the VM has ended too (or is about to, says `isEnding`), removes its files.
   * @returns true if the VM runs on
   */
  async leave(isEnding: boolean): Promise<boolean> {
    if (isEnding && this.#record.process !== null) {
      const signal = AbortSignal.timeout(EXIT_TIMEOUT_MS);
      await waitForExit(this.#record.process, { signal, pollMs: 10 }).catch(() => {});
    }
    if (await runs(this.#record)) return true;
    await removeFiles(this.#dir, this.#record);
    return false;
  }
}

const runs = async ({ process }: LaunchRecord): Promise<boolean> =>
  process !== null && (await isAlive(process));

const readRecord = async (dir: string): Promise<LaunchRecord | undefined> => {
  const text = await readFile(join(dir, 'launched.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return launchRecord.parse(JSON.parse(text));
  } catch {
    return undefined; // of another version: as good as absent
  }
};

const writeRecord = async (dir: string, record: LaunchRecord): Promise<void> => {
  const path = join(dir, 'launched.json');
  await writeFile(`${path}.new`, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  await rename(`${path}.new`, path);
};

/** Only what we made: a directory that merely holds such a record is not removed. */
const removeFiles = async (dir: string, record: LaunchRecord): Promise<void> => {
  if (record.ramPath !== undefined) await rm(record.ramPath, { force: true });
  if (basename(dir).startsWith('vm-')) await rm(dir, { recursive: true, force: true });
};
