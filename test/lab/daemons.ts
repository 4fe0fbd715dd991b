/**
 * Holdfast's own daemons in the lab, as an operator runs them: the command
 * line, in a host's namespace, with --json.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { askDaemon } from '../../lib/admin/client.js';
import { adminSocketPath } from '../../lib/admin/protocol.js';
import type { BackupStatus } from '../../lib/backup/backup.js';
import type { PrimaryStatus } from '../../lib/primary/primary.js';
import { repositoryRoot } from './guest.js';
import { JsonProcess } from './json-process.js';
import type { Lab } from './lab.js';
import { type HostName, replicationLinks } from './network.js';
import type { ExecResult } from './process.js';

export const CONTROL_PORT = 7788;
const LINKS = { b: replicationLinks.aToB, d: replicationLinks.bToD } as const;

const cli = (): string => join(repositoryRoot(), 'dist/lib/cli/main.js');

/** Each host has a run directory of its own, as if it were a machine of its own. */
export const runDirOf = (lab: Lab, host: HostName): string => {
  const dir = lab.path(`run-${host}`);
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return dir;
};

export const keyFileOf = (lab: Lab): string => {
  const path = lab.path('key');
  writeFileSync(path, `${'0123456789abcdef'.repeat(2)}\n`, { mode: 0o600 });
  return path;
};

/** Where the backup on this host listens. */
export const backupAddress = (host: 'b' | 'd'): string => `${LINKS[host].to.address}:${CONTROL_PORT}`;

/** Runs the command line to its end inside a host. */
export const holdfast = async (
  lab: Lab,
  host: HostName,
  args: readonly string[],
  options: { readonly timeoutMs?: number; readonly check?: boolean } = {},
): Promise<ExecResult> =>
  await lab.host(host).exec(process.execPath, [cli(), ...args, '--run-dir', runDirOf(lab, host)], options);

/** `last` comes after all flags: it may begin with `--`. */
const startDaemon = async (
  lab: Lab,
  host: HostName,
  args: readonly string[],
  last: readonly string[] = [],
): Promise<JsonProcess> => {
  const common = [
    '--key-file',
    keyFileOf(lab),
    '--run-dir',
    runDirOf(lab, host),
    '--json',
    '--log-level',
    'info',
  ];
  return new JsonProcess(await lab.host(host).spawn(process.execPath, [cli(), ...args, ...common, ...last]));
};

/** `holdfast backup`, listening when this settles. */
export const startBackup = async (
  lab: Lab,
  host: 'b' | 'd',
  args: readonly string[] = [],
): Promise<JsonProcess> => {
  const daemon = await startDaemon(lab, host, [
    'backup',
    ...['--listen', backupAddress(host), '--ram-dir', lab.sharedMemoryDir],
    ...args,
  ]);
  await daemon.message('idle');
  return daemon;
};

/** `holdfast primary`, towards the backup on `backup`; `vm` is `--qmp SOCKET` or `-- qemu …`. */
export const startPrimary = async (
  lab: Lab,
  options: {
    readonly host: 'a' | 'b';
    readonly backup: 'b' | 'd';
    readonly vm: readonly string[];
    readonly args?: readonly string[];
  },
): Promise<JsonProcess> =>
  await startDaemon(
    lab,
    options.host,
    [
      'primary',
      ...['--backup', backupAddress(options.backup), '--ram-dir', lab.sharedMemoryDir],
      ...(options.args ?? []),
    ],
    options.vm,
  );

export const primaryStatus = async (lab: Lab, host: HostName = 'a'): Promise<PrimaryStatus> =>
  (await askDaemon(adminSocketPath(runDirOf(lab, host), 'primary'), 'status', {
    timeoutMs: 5_000,
  })) as PrimaryStatus;

export const backupStatus = async (lab: Lab, host: HostName = 'b'): Promise<BackupStatus> =>
  (await askDaemon(adminSocketPath(runDirOf(lab, host), 'backup'), 'status', {
    timeoutMs: 5_000,
  })) as BackupStatus;
