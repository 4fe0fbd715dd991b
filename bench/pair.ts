/**
 * A guest on lab host a, and a primary and a backup around it, as separate
 * processes in their namespaces (role.ts), talking over the replication link.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { BackupOptions, EpochReport, PrimaryOptions } from '../lib/index.js';
import { type GuestOptions, guestArgs, guestReadyText, repositoryRoot } from '../test/lab/guest.js';
import { JsonProcess } from '../test/lab/json-process.js';
import type { Lab, LabHost } from '../test/lab/lab.js';
import { replicationLinks } from '../test/lab/network.js';
import type { LabProcess } from '../test/lab/process.js';
import { waitForText } from '../test/lab/wait.js';

const CONTROL_PORT = 7001;

/** A guest that can be protected. */
export interface BenchGuest {
  /** QEMU's. */
  readonly pid: number;
  readonly qmpPath: string;
  readonly ramPath: string;
  readonly serialPath: string;
}

/** One whose QEMU is a child of this process. */
export interface RunningGuest extends BenchGuest {
  readonly process: LabProcess;
}

/** As lib/cli/main.ts has them. */
export const nodeFlags = ['--no-lazy', '--no-flush-bytecode'] as const;

let started = 0;

/**
 * Boots the lab guest on host a, on a tap, and waits for its workload: a VM that Holdfast did not launch. Its
 * virtio devices are legacy ones, as docs/operations.md advises for short pauses.
 */
export const startGuest = async (
  lab: Lab,
  options: Omit<GuestOptions, 'serialPath'>,
): Promise<RunningGuest> => {
  const id = ++started;
  const serialPath = lab.path(`serial-${id}`);
  const qmpPath = lab.path(`qmp-${id}`);
  const ramPath = lab.sharedMemoryPath(`ram-${id}`);
  const qemu = await lab
    .host('a')
    .spawn('qemu-system-x86_64', guestArgs({ virtio: 'legacy', ...options, serialPath, qmpPath, ramPath }));
  await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  return { process: qemu, pid: qemu.pid, qmpPath, ramPath, serialPath };
};

export const spawnRole = async (
  host: LabHost,
  role: 'primary' | 'backup' | 'launch',
  options: object,
): Promise<JsonProcess> => {
  const script = join(repositoryRoot(), 'dist/bench/role.js');
  return new JsonProcess(
    await host.spawn(process.execPath, [...nodeFlags, script, role, JSON.stringify(options)]),
  );
};

/**
 * As startGuest(), but launched as `holdfast primary -- qemu…` does it: a relay stands between QEMU and
 * the tap, and passes everything on until somebody protects the guest.
 */
export const startRelayedGuest = async (
  lab: Lab,
  options: Omit<GuestOptions, 'serialPath'>,
): Promise<BenchGuest> => {
  const id = ++started;
  const serialPath = lab.path(`serial-${id}`);
  const ramPath = lab.sharedMemoryPath(`ram-${id}`);
  const launch = await spawnRole(lab.host('a'), 'launch', {
    runDir: lab.sharedMemoryPath('a'),
    ramDir: lab.sharedMemoryDir,
    name: `g${id}`,
    commandLine: ['qemu-system-x86_64', ...guestArgs({ virtio: 'legacy', ...options, serialPath, ramPath })],
  });
  const { pid, qmp } = await launch.message('launched');
  await launch.process.exited;
  await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  return { pid: Number(pid), qmpPath: String(qmp), ramPath, serialPath };
};

export interface Pair {
  readonly primary: JsonProcess;
  readonly backup: JsonProcess;
}

export interface PairOptions {
  /** Default 60,000. */
  readonly baseSyncTimeoutMs?: number;
  /** The backup's settings, beside those that every pair has. */
  readonly backup?: Partial<Omit<BackupOptions, 'key' | 'signal' | 'logger'>>;
}

/** Starts both roles; settles when the first checkpoint stands. */
export const startPair = async (
  lab: Lab,
  guest: BenchGuest,
  settings: Partial<Omit<PrimaryOptions, 'key' | 'signal' | 'logger'>>,
  { baseSyncTimeoutMs = 60_000, backup: backupSettings = {} }: PairOptions = {},
): Promise<Pair> => {
  const id = ++started;
  const key = createHash('sha256').update(lab.name).digest('hex');
  const backup = await spawnRole(lab.host('b'), 'backup', {
    key,
    listen: `${replicationLinks.aToB.to.address}:${CONTROL_PORT}`,
    name: `b${id}`,
    runDir: lab.sharedMemoryPath('b'),
    ramDir: lab.sharedMemoryDir,
    ...backupSettings,
    replace: [{ from: guest.serialPath, to: `${guest.serialPath}-b` }, ...(backupSettings.replace ?? [])],
  });
  await backup.message('listening');
  const primary = await spawnRole(lab.host('a'), 'primary', {
    key,
    backup: `${replicationLinks.aToB.to.address}:${CONTROL_PORT}`,
    qmp: guest.qmpPath,
    name: `p${id}`,
    runDir: lab.sharedMemoryPath('a'), // a tmpfs, as /run is
    ...settings,
  });
  await primary.message('epoch', { timeoutMs: baseSyncTimeoutMs });
  return { primary, backup };
};

/** Ends protection; the guest runs on. */
export const endPair = async ({ primary, backup }: Pair): Promise<void> => {
  primary.say('detach');
  await primary.process.exited;
  backup.say('close');
  await backup.process.exited;
};

export type MeasuredEpoch = EpochReport & {
  readonly ownBytes: number;
  /** When its output was released, by the role's own clock. */
  readonly atMs: number;
};

/** Epoch reports of `count` epochs from now on. */
export const collectEpochs = async (
  primary: JsonProcess,
  count: number,
  timeoutMs: number,
): Promise<MeasuredEpoch[]> => {
  const before = primary.of('epoch').length;
  await primary.until(`${count} epochs`, () => primary.of('epoch').length >= before + count, timeoutMs);
  return primary.of('epoch').slice(before, before + count) as unknown as MeasuredEpoch[];
};
