/**
 * Holdfast's own daemons in the lab, as an operator runs them: the command
 * line, in a host's namespace, with --json.
 */

import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { askDaemon } from '../../lib/admin/client.js';
import { adminSocketPath } from '../../lib/admin/protocol.js';
import type { BackupStatus } from '../../lib/backup/backup.js';
import { runningRelay } from '../../lib/output/relay-files.js';
import type { PrimaryStatus } from '../../lib/primary/primary.js';
import { repositoryRoot } from './guest.js';
import { JsonProcess } from './json-process.js';
import type { Lab } from './lab.js';
import { type HostName, replicationLinks } from './network.js';
import type { ExecResult } from './process.js';

export const CONTROL_PORT = 7788;

/** Hosts that a VM can be protected onto, and where a backup listens there. */
export type BackupHost = 'a' | 'b' | 'd';
const backupHosts: Readonly<Record<BackupHost, string>> = {
  a: replicationLinks.aToB.from.address,
  b: replicationLinks.aToB.to.address,
  d: replicationLinks.bToD.to.address,
};

const cli = (): string => join(repositoryRoot(), 'dist/lib/cli/main.js');

/** Each host has a run directory of its own, as if it were a machine of its own. */
export const runDirOf = (lab: Lab, host: HostName): string => {
  const dir = lab.sharedMemoryPath(`run-${host}`);
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return dir;
};

/** The lab's pre-shared key. */
export const keyFileOf = (lab: Lab): string => {
  const path = lab.path('key');
  if (!existsSync(path)) writeFileSync(path, `${'0123456789abcdef'.repeat(2)}\n`, { mode: 0o600 });
  return path;
};

/** Where the backup on this host listens. */
export const backupAddress = (host: BackupHost): string => `${backupHosts[host]}:${CONTROL_PORT}`;

/** Runs a request (`status`, `switchover`, …) to its end inside a host, against that host's daemons. */
export const holdfast = async (
  lab: Lab,
  host: HostName,
  args: readonly string[],
  options: { readonly timeoutMs?: number; readonly check?: boolean } = {},
): Promise<ExecResult> =>
  await lab.host(host).exec(process.execPath, [cli(), ...args, '--run-dir', runDirOf(lab, host)], options);

export interface SmallTmpfs {
  /** An existing directory. */
  readonly dir: string;
  readonly sizeMb: number;
  /** Sparse images to be in it from the beginning. */
  readonly images?: { readonly names: readonly string[]; readonly sizeMb: number };
}

/** Runs its arguments over a tmpfs that only they see, and that ends with them. */
const mountAndRun = 'mount -t tmpfs -o size="$1"m tmpfs "$2" && shift 2 && exec "$@"';
/** The same, after images were made there. */
const truncateAndRun = `size=$1 images=$2; shift 2
while [ "$images" -gt 0 ]; do truncate -s "$size"M "$1" || exit; images=$((images - 1)); shift; done; exec "$@"`;

/** Path from outside of a file in the tmpfs that a daemon of this process id was started over. */
export const insideTmpfs = (daemonPid: number, path: string): string => `/proc/${daemonPid}/root${path}`;

const overTmpfs = ({ dir, sizeMb, images }: SmallTmpfs, command: readonly string[]): string[] => {
  const { names = [], sizeMb: imageMb } = images ?? {};
  const paths = names.map((name) => join(dir, name));
  const prepared =
    images === undefined
      ? command
      : ['sh', '-c', truncateAndRun, 'sh', String(imageMb), String(paths.length), ...paths, ...command];
  return ['sh', '-c', mountAndRun, 'sh', String(sizeMb), dir, ...prepared];
};

const startDaemon = async (
  lab: Lab,
  host: HostName,
  command: 'primary' | 'backup' | 'migrate',
  args: readonly string[],
  tmpfs?: SmallTmpfs,
): Promise<JsonProcess> => {
  const common = [
    ...['--key-file', keyFileOf(lab), '--run-dir', runDirOf(lab, host)],
    ...(command === 'migrate' ? [] : ['--ram-dir', lab.sharedMemoryDir]),
    ...['--json', '--log-level', 'info'],
  ];
  // `args` come last: they override what the lab says, and may end in `-- qemu …`.
  const daemon = [process.execPath, cli(), command, ...common, ...args];
  // `ip netns exec` gives each process a mount namespace of its own.
  const [program = '', ...programArgs] = tmpfs === undefined ? daemon : overTmpfs(tmpfs, daemon);
  return new JsonProcess(await lab.host(host).spawn(program, programArgs));
};

/** `holdfast backup`, listening when this settles. `args` override the lab's own settings. */
export const startBackup = async (
  lab: Lab,
  host: BackupHost,
  args: readonly string[] = [],
  tmpfs?: SmallTmpfs,
): Promise<JsonProcess> => {
  const daemon = await startDaemon(lab, host, 'backup', ['--listen', backupAddress(host), ...args], tmpfs);
  await daemon.message('idle');
  return daemon;
};

/**
 * `holdfast primary`, towards the backup on `backup`; `vm` is `--qmp SOCKET` or `-- qemu …`. Settles when
 * the process has started; its messages tell how far it is. `args` override the lab's own settings.
 */
export const startPrimary = async (
  lab: Lab,
  options: {
    readonly host: HostName;
    readonly backup: BackupHost;
    readonly vm: readonly string[];
    readonly args?: readonly string[];
    readonly tmpfs?: SmallTmpfs;
  },
): Promise<JsonProcess> => {
  const { host, backup, vm, args = [], tmpfs } = options;
  return await startDaemon(lab, host, 'primary', ['--backup', backupAddress(backup), ...args, ...vm], tmpfs);
};

/**
 * `holdfast migrate` of a VM on `host`; settles when the process has started. `args` override the lab's own
 * settings.
 */
export const startMigration = async (
  lab: Lab,
  options: {
    readonly host: HostName;
    readonly to: BackupHost;
    readonly qmpPath: string;
    readonly args?: readonly string[];
  },
): Promise<JsonProcess> => {
  const { host, to, qmpPath, args = [] } = options;
  return await startDaemon(lab, host, 'migrate', ['--to', backupAddress(to), '--qmp', qmpPath, ...args]);
};

const statusOf = async (runDir: string, name: string): Promise<unknown> =>
  await askDaemon(adminSocketPath(runDir, name), 'status', { timeoutMs: 5_000 });

/** @param runDir where to look, if it is not the one the lab gives to that host. */
export const primaryStatus = async (
  lab: Lab,
  host: HostName = 'a',
  runDir = runDirOf(lab, host),
): Promise<PrimaryStatus> => (await statusOf(runDir, 'primary')) as PrimaryStatus;

export const backupStatus = async (lab: Lab, host: HostName = 'b'): Promise<BackupStatus> =>
  (await statusOf(runDirOf(lab, host), 'backup')) as BackupStatus;

/** A relay that `holdfast primary` started with the VM it launched, as its message `launched` names it. */
export interface LaunchedRelay {
  readonly netdev: string;
  readonly tap: string;
  readonly socket: string;
}

/** Process id of the relay that serves a socket of QEMU's; undefined if its record is gone or its process is. */
export const relayPid = async (socket: string): Promise<number | undefined> =>
  (await runningRelay(socket))?.process.pid;
