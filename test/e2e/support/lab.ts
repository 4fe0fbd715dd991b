/** What the tests through the command line share: the lab's redis guest, where it runs, and ending things. */

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../../lib/native.js';
import { QmpClient } from '../../../lib/qmp/client.js';
import { holdfast, runDirOf, startBackup, startPrimary } from '../../lab/daemons.js';
import { type GuestOptions, guestArgs, guestReadyText } from '../../lab/guest.js';
import type { JsonProcess } from '../../lab/json-process.js';
import type { Lab } from '../../lab/lab.js';
import type { HostName } from '../../lab/network.js';
import { readText, waitFor, waitForText } from '../../lab/wait.js';

/** Small, so that a base sync on a busy machine stays short. */
const RAM_MB = 192;

/** The VM as it runs at the moment: it changes its place with each failover. */
export interface RunningVm {
  readonly host: 'a' | 'b';
  readonly pid: number;
  readonly qmpPath: string;
}

/** Serial log of the VM while it runs on that host. */
export const serialPath = (lab: Lab, host: 'a' | 'b'): string => lab.path(`serial-${host}`);

/** For a backup on `host`: its standby must not write into the serial log of the VM on the other one. */
export const serialReplacement = (lab: Lab, host: 'a' | 'b'): string[] => [
  '--replace',
  `${serialPath(lab, host === 'a' ? 'b' : 'a')}=${serialPath(lab, host)}`,
];

/** QEMU's arguments for the redis guest on host a; RAM file and QMP socket are the launcher's to add. */
export const redisGuestArgs = (lab: Lab, options: Partial<GuestOptions> = {}): string[] =>
  guestArgs({ serialPath: serialPath(lab, 'a'), ramMb: RAM_MB, workload: 'redis', ...options });

/** Boots the redis guest on host a, ready to be attached to; settles when redis answers. */
export const bootRedisGuest = async (lab: Lab): Promise<RunningVm> => {
  const qmpPath = lab.path('qmp');
  const args = redisGuestArgs(lab, { qmpPath, ramPath: lab.sharedMemoryPath('ram') });
  const qemu = await lab.host('a').spawn('qemu-system-x86_64', args);
  await waitForText(serialPath(lab, 'a'), guestReadyText, { timeoutMs: 60_000 });
  return { host: 'a', pid: qemu.pid, qmpPath };
};

/** Nobody is taken for dead because the machine is busy, and a lost backup is found again soon. */
export const calm = ['--heartbeat-timeout', '2s', '--retry', '100ms'] as const;

export interface Protection {
  readonly backup: JsonProcess;
  readonly primary: JsonProcess;
}

/** `holdfast backup` on the other host for the VM where it runs. */
export const startBackupFor = async (
  lab: Lab,
  vm: RunningVm,
  args: readonly string[] = [],
): Promise<JsonProcess> => {
  const to = otherHost(vm.host);
  return await startBackup(lab, to, [...serialReplacement(lab, to), ...args]);
};

/** `holdfast primary` for a running VM, towards the other host. */
export const startPrimaryFor = async (
  lab: Lab,
  vm: RunningVm,
  args: readonly string[] = [],
): Promise<JsonProcess> =>
  await startPrimary(lab, {
    host: vm.host,
    backup: otherHost(vm.host),
    args: [...calm, ...args],
    vm: ['--qmp', vm.qmpPath],
  });

/** Protects a VM onto the other host; settles with the first checkpoint. */
export const protect = async (
  lab: Lab,
  vm: RunningVm,
  args: { readonly backup?: readonly string[]; readonly primary?: readonly string[] } = {},
): Promise<Protection> => {
  const backup = await startBackupFor(lab, vm, args.backup);
  const primary = await startPrimaryFor(lab, vm, args.primary);
  await primary.message('protected');
  return { backup, primary };
};

export const otherHost = (host: 'a' | 'b'): 'a' | 'b' => (host === 'a' ? 'b' : 'a');

/** Exit code of `holdfast status` on a host, and the phases that it shows. */
export const statusOf = async (lab: Lab, host: 'a' | 'b'): Promise<{ code: number; phases: string[] }> => {
  const { code, stdout } = await holdfast(lab, host, ['status', '--json'], { check: false });
  const { daemons = [] } = JSON.parse(stdout) as { daemons?: { role: string; phase: string }[] };
  return { code: code ?? -1, phases: daemons.map(({ role, phase }) => `${role} ${phase}`) };
};

/** A zombie is dead: an orphan's remains wait for process 1, which is not ours. */
export const isRunning = (pid: number): boolean => /^State:\s+[^ZX]/m.test(readText(`/proc/${pid}/status`));

/** SIGKILL to a process of the lab that is nobody's child here, and waits for its end. */
export const killOrphan = async (pid: number): Promise<void> => {
  if (isRunning(pid)) process.kill(pid, 'SIGKILL');
  await waitFor(`process ${pid} to end`, () => !isRunning(pid), { intervalMs: 5 });
};

/** Runs `ask` with a QMP connection of its own; nobody else may hold the socket. */
export const withQmp = async <T>(path: string, ask: (qmp: QmpClient) => Promise<T>): Promise<T> => {
  const qmp = await QmpClient.connect(path, { timeoutMs: 5_000, sendWithFd: native.sendWithFd });
  try {
    return await ask(qmp);
  } finally {
    await qmp.close();
  }
};

/** Guest RAM and replicas. */
export const ramFiles = (lab: Lab): string[] =>
  readdirSync(lab.sharedMemoryDir).filter((name) => !name.startsWith('run-'));

/** Everything that the daemons keep in a host's run directory; directories that are empty don't count. */
export const runFiles = (lab: Lab, host: HostName): string[] =>
  readdirSync(runDirOf(lab, host), { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map(({ name }) => name);

/** What of a closed lab is still on the machine: namespaces and directories. */
export const remainsOf = (lab: Lab): string[] =>
  ['/run/netns', '/tmp', '/dev/shm'].flatMap((dir) =>
    (existsSync(dir) ? readdirSync(dir) : [])
      .filter((entry) => entry === lab.name || entry.startsWith(`${lab.name}-`))
      .map((entry) => join(dir, entry)),
  );
