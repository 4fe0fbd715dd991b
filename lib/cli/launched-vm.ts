/**
 * A VM that `holdfast primary -- qemu-system-…` launched. It outlives the
 * daemon, so what is needed to find it again, and to clean up after it, is in
 * a record beside its sockets:
 *
 *   <runDir>/vm-<name>/   launched.json  qmp.sock  qemu.log  <netdev>.sock… (relays)  <disk>.sock… (disk servers)
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
import { endDiskServer } from '../disk/disk-process.js';
import { planDisks, type StartedDiskServers, startDiskServers } from '../disk/launch-disks.js';
import { ConfigError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import { controlSocketOf } from '../output/relay-files.js';
import { endRelay, startRelay } from '../output/relay-process.js';
import type { PrimarySettings } from '../primary/options.js';
import { forPrimary } from '../vm/command-line.js';
import { HANDED } from '../vm/handed-ram.js';
import { launchVm, quitVm } from '../vm/launch.js';
import { type NetdevRefusal, overRelays, type RelayedTap } from '../vm/netdevs.js';
import { isAlive, type ProcessIdentity, waitForExit } from '../vm/process.js';

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
  /** The relays that were started with it: netdev, tap, and where QEMU listens for the relay. */
  relays: z.array(z.strictObject({ netdev: z.string(), tap: z.string(), socket: z.string() })).default([]),
  /** And the disk servers: id, image, and where QEMU finds the server. */
  disks: z.array(z.strictObject({ id: z.string(), image: z.string(), socket: z.string() })).default([]),
});
type LaunchRecord = z.infer<typeof launchRecord>;

export class LaunchedVm {
  readonly #dir: string;
  #record: LaunchRecord;
  /** False if it ran before this daemon started. */
  readonly isNew: boolean;
  /** Why it was not launched over relays, where that was tried. */
  readonly notRelayed: readonly NetdevRefusal[];

  private constructor(
    dir: string,
    record: LaunchRecord,
    isNew: boolean,
    notRelayed: readonly NetdevRefusal[] = [],
  ) {
    this.#dir = dir;
    this.#record = record;
    this.isNew = isNew;
    this.notRelayed = notRelayed;
  }

  get pid(): number {
    return this.#record.process?.pid ?? 0;
  }

  get qmpPath(): string {
    return this.#record.qmpPath;
  }

  get relays(): readonly RelayedTap[] {
    return this.#record.relays;
  }

  get disks(): LaunchRecord['disks'] {
    return this.#record.disks;
  }

  get logPath(): string {
    return join(this.#dir, 'qemu.log');
  }

  /**
   * Launches the VM, or finds it running already.
   * @throws ConfigError (another VM of this name runs, QEMU cannot be run), UnsupportedVmError (a disk that
   * cannot be replicated), DiskError, VmGoneError
   */
  static async ensure(options: {
    readonly runDir: string;
    readonly ramDir: string;
    readonly name: string;
    readonly commandLine: readonly string[];
    readonly gate: PrimarySettings['gate'];
    readonly heldBytesMax: number;
    readonly diskDir: string;
    readonly ringBytes: number;
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

  /**
   * A VM that `start` starts from files it makes: over `ramPath`, with its monitor at `qmpPath`.
   * @throws ConfigError (another VM of this name runs), and what `start` throws
   */
  static async restoring(
    options: {
      readonly runDir: string;
      readonly ramDir: string;
      readonly name: string;
    },
    start: (paths: {
      readonly dir: string;
      readonly ramPath: string;
      readonly qmpPath: string;
      readonly logPath: string;
    }) => Promise<{ readonly process: ProcessIdentity; readonly commandLine: readonly string[] }>,
  ): Promise<LaunchedVm> {
    const { runDir, ramDir, name } = options;
    const dir = join(runDir, `vm-${name}`);
    const earlier = await readRecord(dir);
    if (earlier !== undefined && (await runs(earlier))) {
      throw new ConfigError(`name: the VM '${name}' runs already (process ${earlier.process?.pid})`, {
        cure: 'End it, or choose another --name for the restored VM.',
      });
    }
    if (earlier !== undefined) await removeFiles(dir, earlier);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const qmpPath = join(dir, 'qmp.sock');
    const ramPath = join(ramDir, `vm-${name}-${randomBytes(4).toString('hex')}.holdfast.ram`);
    const planned: LaunchRecord = {
      process: null,
      commandLine: ['(being restored)'],
      qmpPath,
      ramPath,
      relays: [],
      disks: [],
    };
    // Written before the start too: what is killed in between leaves no RAM file that nobody knows of.
    await writeRecord(dir, planned);
    try {
      const started = await start({ dir, ramPath, qmpPath, logPath: join(dir, 'qemu.log') });
      // No daemon waits for its end: without a name its RAM goes with the process.
      await rm(ramPath, { force: true });
      const { ramPath: _, ...nameless } = planned;
      const record = { ...nameless, process: { ...started.process }, commandLine: [...started.commandLine] };
      await writeRecord(dir, record);
      return new LaunchedVm(dir, record, true);
    } catch (error) {
      await rm(ramPath, { force: true });
      await rm(join(dir, 'launched.json'), { force: true }); // the log stays: the error names it
      throw error;
    }
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
    const { argv: ownArgv, ram } = forPrimary(argv, { ramPath, qmpPath });
    const network = await networkOf(ownArgv, options.gate, dir);
    const { diskDir, ringBytes } = options;
    const disks = await planDisks(network.argv, process.cwd(), { dir, diskDir, ringBytes });
    const planned: LaunchRecord = {
      process: null,
      commandLine: [...commandLine],
      qmpPath,
      ...(ram.added ? { ramPath } : {}),
      relays: [...network.taps],
      disks: disks.specs.map(({ id, imagePath, socket }) => ({ id, image: imagePath, socket })),
    };
    // Written before the launch too: a daemon killed in between leaves no RAM file that nobody knows of.
    await writeRecord(dir, planned);
    let servers: StartedDiskServers | undefined;
    try {
      servers = await startDiskServers(disks.specs, signal);
      const vm = await launchVm({
        binary,
        argv: disks.argv,
        qmpPath,
        logPath: join(dir, 'qemu.log'),
        sendWithFd: native.sendWithFd,
        peerPid: native.peerPid,
        signal,
        beside: async (process) => {
          const start = network.taps.map(({ tap, socket }) => {
            const control = controlSocketOf(socket);
            const spec = {
              socket,
              control,
              target: { tap },
              heldBytesMax: options.heldBytesMax,
              vm: process,
            };
            return startRelay(spec, { signal });
          });
          await Promise.all([...start, servers?.bind(process)]);
        },
      });
      await vm.qmp.close(); // one client at a time: the primary is next
      const record = { ...planned, process: { ...vm.identity } };
      await writeRecord(dir, record);
      return new LaunchedVm(dir, record, true, network.refused);
    } catch (error) {
      await servers?.end();
      await rm(ramPath, { force: true });
      await rm(join(dir, 'launched.json'), { force: true }); // the log stays: the error names it
      throw error;
    }
  }

  /** It runs in another process from now on (holdfast handoff). */
  async moveTo({ pid, startTicks }: ProcessIdentity): Promise<void> {
    this.#record = { ...this.#record, process: { pid, startTicks } };
    await writeRecord(this.#dir, this.#record);
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

interface Network {
  readonly argv: readonly string[];
  readonly taps: readonly RelayedTap[];
  readonly refused: readonly NetdevRefusal[];
}

/**
 * The command line over relays, where the gate is to be one and every netdev allows it.
 * @throws ConfigError if it must be and a netdev does not
 */
const networkOf = async (
  argv: readonly string[],
  gate: PrimarySettings['gate'],
  dir: string,
): Promise<Network> => {
  if (gate !== 'auto' && gate !== 'relay') return { argv, taps: [], refused: [] };
  const relayed = overRelays(argv, (netdev) => join(dir, `${netdev}.sock`));
  const refused = 'refused' in relayed ? relayed.refused : await absentTaps(relayed.taps);
  if (!('refused' in relayed) && refused.length === 0) return { ...relayed, refused };
  if (gate === 'auto') return { argv, taps: [], refused };
  const reasons = refused.map(({ netdev, reason }) => `${netdev}: ${reason}`).join('; ');
  throw new ConfigError(`gate: relay, but not every network backend can go over one: ${reasons}`, {
    cure: 'Use -netdev tap,id=…,ifname=…,script=no,downscript=no with a tap that is set up, or --gate filter-buffer.',
    details: { refused },
  });
};

/** QEMU makes a tap that is not there, as root; a relay has to find it. */
const absentTaps = async (taps: readonly RelayedTap[]): Promise<NetdevRefusal[]> => {
  if (taps.length === 0) return [];
  // Not /sys/class/net: that shows the network namespace in which it was mounted.
  const interfaces = await readFile('/proc/net/dev', 'utf8');
  const names = new Set(interfaces.split('\n').map((line) => line.split(':')[0]!.trim()));
  return taps.flatMap(({ netdev, tap }) =>
    names.has(tap)
      ? []
      : [
          {
            netdev,
            reason: `there is no tap device ${tap} on this host (ip tuntap add dev ${tap} mode tap)`,
          },
        ],
  );
};

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
  // Ending by themselves already.
  await Promise.all(record.relays.map(({ socket }) => endRelay(socket)));
  await Promise.all(record.disks.map(({ socket }) => endDiskServer(socket)));
  if (record.ramPath !== undefined) {
    // A checkpoint by hand-off was perhaps killed in between.
    for (const path of [record.ramPath, record.ramPath + HANDED]) await rm(path, { force: true });
  }
  if (basename(dir).startsWith('vm-')) await rm(dir, { recursive: true, force: true });
};
