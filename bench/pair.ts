/**
 * A guest on lab host a, and a primary and a backup around it, as separate
 * processes in their namespaces (role.ts), talking over the replication link.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { EpochReport, PrimaryOptions } from '../lib/index.js';
import { type GuestOptions, guestArgs, guestReadyText, repositoryRoot } from '../test/lab/guest.js';
import type { Lab, LabHost } from '../test/lab/lab.js';
import { replicationLinks } from '../test/lab/network.js';
import type { LabProcess } from '../test/lab/process.js';
import { waitForText } from '../test/lab/wait.js';

const CONTROL_PORT = 7001;

export interface RoleMessage {
  readonly event: string;
  readonly message?: string;
  readonly [field: string]: unknown;
}

/** A role's process and what it has said. */
export class Role {
  readonly process: LabProcess;
  readonly messages: RoleMessage[] = [];
  readonly #waiters = new Set<() => void>();

  constructor(started: LabProcess) {
    this.process = started;
    createInterface({ input: started.child.stdout }).on('line', (line) => {
      this.messages.push(JSON.parse(line) as RoleMessage);
      for (const wake of this.#waiters) wake();
    });
    void started.exited.then(() => {
      for (const wake of this.#waiters) wake();
    });
  }

  say(line: string): void {
    this.process.child.stdin.write(`${line}\n`);
  }

  /** The first message for which `wanted` holds; rejects at the deadline or if the process ends before. */
  async until(wanted: (message: RoleMessage) => boolean, timeoutMs = 60_000): Promise<RoleMessage> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const found = this.messages.find(wanted);
      if (found !== undefined) return found;
      const error = this.messages.find((message) => message.event === 'error');
      if (error !== undefined) throw new Error(`role failed: ${error.message}`);
      const leftMs = deadline - performance.now();
      if (leftMs <= 0 || !this.process.running) {
        throw new Error(`role said no such thing; stderr: ${this.process.stderr.slice(-2_000)}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(done, Math.min(leftMs, 1_000));
        const waiters = this.#waiters;
        function done(): void {
          clearTimeout(timer);
          waiters.delete(done);
          resolve();
        }
        waiters.add(done);
      });
    }
  }
}

export interface RunningGuest {
  readonly process: LabProcess;
  readonly qmpPath: string;
  readonly ramPath: string;
  readonly serialPath: string;
}

let started = 0;

/** Boots the lab guest on host a and waits for its workload. */
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
    .spawn('qemu-system-x86_64', guestArgs({ ...options, serialPath, qmpPath, ramPath }));
  await waitForText(serialPath, guestReadyText, { timeoutMs: 60_000 });
  return { process: qemu, qmpPath, ramPath, serialPath };
};

const spawnRole = async (host: LabHost, role: 'primary' | 'backup', options: object): Promise<Role> => {
  const script = join(repositoryRoot(), 'dist/bench/role.js');
  return new Role(await host.spawn(process.execPath, [script, role, JSON.stringify(options)]));
};

export interface Pair {
  readonly primary: Role;
  readonly backup: Role;
}

/** Starts both roles; settles when the first checkpoint stands. */
export const startPair = async (
  lab: Lab,
  guest: RunningGuest,
  settings: Partial<Omit<PrimaryOptions, 'key' | 'signal' | 'logger'>>,
): Promise<Pair> => {
  const id = ++started;
  const key = createHash('sha256').update(lab.name).digest('hex');
  const backup = await spawnRole(lab.host('b'), 'backup', {
    key,
    listen: `${replicationLinks.aToB.to.address}:${CONTROL_PORT}`,
    name: `b${id}`,
    runDir: lab.path('b'),
    ramDir: lab.sharedMemoryDir,
    replace: [{ from: guest.serialPath, to: `${guest.serialPath}-b` }],
  });
  await backup.until((message) => message.event === 'listening');
  const primary = await spawnRole(lab.host('a'), 'primary', {
    key,
    backup: `${replicationLinks.aToB.to.address}:${CONTROL_PORT}`,
    qmp: guest.qmpPath,
    name: `p${id}`,
    runDir: lab.path('a'),
    ...settings,
  });
  await primary.until((message) => message.event === 'epoch');
  return { primary, backup };
};

/** Ends protection; the guest runs on. */
export const endPair = async ({ primary, backup }: Pair): Promise<void> => {
  primary.say('detach');
  await primary.process.exited;
  backup.say('close');
  await backup.process.exited;
};

export type MeasuredEpoch = EpochReport & { readonly rssBytes: number };

/** Epoch reports of `count` epochs from now on. */
export const collectEpochs = async (
  primary: Role,
  count: number,
  timeoutMs: number,
): Promise<MeasuredEpoch[]> => {
  const before = primary.messages.filter((message) => message.event === 'epoch').length;
  const isLast = (): boolean =>
    primary.messages.filter((message) => message.event === 'epoch').length >= before + count;
  await primary.until(() => isLast(), timeoutMs);
  return primary.messages
    .filter((message) => message.event === 'epoch')
    .slice(before, before + count) as unknown as MeasuredEpoch[];
};
