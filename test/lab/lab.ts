/**
 * The lab: two hosts (three on request) and a client, as network namespaces on one bridged LAN; see
 * network.ts for the picture. Needs root.
 *
 *     await using lab = await Lab.create();
 *     const qemu = await lab.host('a').spawn('qemu-system-x86_64', guestArgs({ … }));
 *     …
 *
 * Names are unique per process and lab and say who owns them: hf<pid>-<label>-<host>.
 */

import { accessSync, constants, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  forget,
  killProcesses,
  killProcessesIn,
  labDir,
  labSharedMemoryDir,
  processesIn,
  removeAbandoned,
  removeAtExit,
  removeRemains,
} from './cleanup.js';
import { createNetwork, type HostName, lanAddresses, linksUp } from './network.js';
import { type ExecOptions, type ExecResult, execToEnd, LabProcess, type SpawnOptions } from './process.js';
import { waitFor } from './wait.js';

export interface LabOptions {
  /** Shown in the names: up to 6 of a-z and 0-9. */
  readonly tag?: string;
  /** Also make host d, on which a resumed VM can be protected again. */
  readonly third?: boolean;
}

/** One namespace of the lab. */
export class LabHost {
  readonly name: HostName;
  /** Name of the network namespace, for `ip -n`. */
  readonly namespace: string;
  readonly lanAddress: string;
  readonly #track: (started: LabProcess) => void;

  constructor(name: HostName, namespace: string, track: (started: LabProcess) => void) {
    this.name = name;
    this.namespace = namespace;
    this.lanAddress = lanAddresses[name];
    this.#track = track;
  }

  /** Starts a program inside this host. `ip netns exec` executes it in place: the pid is the program's own. */
  async spawn(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<LabProcess> {
    const started = await LabProcess.start('ip', this.#inside(command, args), options);
    this.#track(started);
    return started;
  }

  /** Runs a program inside this host to its end; throws if it fails (unless `check: false`). */
  async exec(command: string, args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    return await execToEnd('ip', this.#inside(command, args), options, this.#track);
  }

  /** The host dies: SIGKILL to everything that runs on it. Its files and its network stay. */
  die(): void {
    killProcessesIn([this.namespace]);
  }

  /** Everything that runs on this host, orphans included. */
  get pids(): readonly number[] {
    return processesIn(this.namespace);
  }

  /** Cuts or restores one of this host's interfaces: lan0, tap0, repl0 or repl1. Restored, it carries packets. */
  async setLink(link: string, state: 'up' | 'down'): Promise<void> {
    await execToEnd('ip', ['-n', this.namespace, 'link', 'set', 'dev', link, state]);
    if (state === 'up') await linksUp(this.namespace);
  }

  #inside(command: string, args: readonly string[]): string[] {
    return ['netns', 'exec', this.namespace, command, ...args];
  }
}

let labsMade = 0;

/** The causes that are certain beforehand, in words a person can act on. */
const refuseIfImpossible = (): void => {
  if (process.getuid?.() !== 0) {
    throw new Error('the lab needs root: it makes network namespaces and tap devices');
  }
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK);
  } catch {
    throw new Error('the lab needs /dev/net/tun (kernel option TUN; in a container, --device /dev/net/tun)');
  }
};

export class Lab {
  /** hf<pid>-<label>: common prefix of the namespaces' names, and name of the directories. */
  readonly name: string;
  /** A directory with a short path, since a Unix socket's may have 107 characters. */
  readonly dir: string;
  /** A directory on tmpfs, for guest RAM and replicas. */
  readonly sharedMemoryDir: string;
  readonly #hosts: ReadonlyMap<HostName, LabHost>;
  readonly #processes = new Set<LabProcess>();
  #closing: Promise<void> | undefined;

  private constructor(name: string, hosts: readonly HostName[]) {
    this.name = name;
    this.dir = labDir(name);
    this.sharedMemoryDir = labSharedMemoryDir(name);
    this.#hosts = new Map(
      hosts.map((host) => [host, new LabHost(host, `${name}-${host}`, (started) => this.#track(started))]),
    );
  }

  /** Creates namespaces, network and directories. Whatever fails, nothing of it remains. */
  static async create({ tag = '', third = false }: LabOptions = {}): Promise<Lab> {
    if (!/^[a-z0-9]{0,6}$/.test(tag)) throw new Error(`lab tag "${tag}" must be up to 6 of a-z and 0-9`);
    refuseIfImpossible();
    removeAbandoned();
    labsMade += 1;
    const lab = new Lab(`hf${process.pid}-${tag}${labsMade}`, third ? ['a', 'b', 'c', 'd'] : ['a', 'b', 'c']);
    removeAtExit(lab.name);
    try {
      mkdirSync(lab.dir, { mode: 0o700 });
      mkdirSync(lab.sharedMemoryDir, { mode: 0o700 });
      await createNetwork(new Map([...lab.#hosts].map(([name, { namespace }]) => [name, namespace])));
    } catch (error) {
      await lab.close();
      throw new Error(`the lab could not be made: ${(error as Error).message}`, { cause: error });
    }
    return lab;
  }

  /** The host of that name; `c` is the client, `d` exists only with `third`. */
  host(name: HostName): LabHost {
    const host = this.#hosts.get(name);
    if (host === undefined) throw new Error(`this lab has no host ${name}`);
    return host;
  }

  get client(): LabHost {
    return this.host('c');
  }

  /** Path of a file in the lab's directory. */
  path(name: string): string {
    return join(this.dir, name);
  }

  /** Path of a file in the lab's tmpfs directory. */
  sharedMemoryPath(name: string): string {
    return join(this.sharedMemoryDir, name);
  }

  /** Kills every process that lives in the lab, and removes all of it. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#processes].map((started) => started.kill()));
    await waitFor(`the processes of ${this.name} to end`, () => killProcesses(this.name) === 0);
    removeRemains(this.name);
    forget(this.name);
  }

  #track(started: LabProcess): void {
    this.#processes.add(started);
    void started.exited.then(() => this.#processes.delete(started));
  }
}
