/**
 * Leaving nothing behind: when a lab closes, when its process exits or is interrupted, and, for a
 * process that was killed, when the next lab is made.
 *
 * A lab's processes are found by its network namespaces: whatever lives there is the lab's, also the
 * orphans of a daemon that a test killed.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const netnsDir = '/run/netns';
const temporaryRoot = '/tmp';
const sharedMemoryRoot = '/dev/shm';

/** hf<pid of the owner>-<label>, in a namespace's name followed by -<host>. */
const ownedName = /^(hf(\d+)-[a-z0-9]+)(-[abcd])?$/;

export const labDir = (name: string): string => join(temporaryRoot, name);
export const labSharedMemoryDir = (name: string): string => join(sharedMemoryRoot, name);

const listDir = (dir: string): string[] => {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
};

const namespacesOf = (name: string): string[] =>
  listDir(netnsDir).filter((namespace) => ownedName.exec(namespace)?.[1] === name);

/** Every process in a network namespace. */
export const processesIn = (namespace: string): number[] => {
  const { stdout } = spawnSync('ip', ['netns', 'pids', namespace], { encoding: 'utf8' });
  return (stdout ?? '')
    .split('\n')
    .filter((line) => line !== '')
    .map(Number);
};

/** Sends SIGKILL to every process in these namespaces, one right after the other; returns how many there were. */
export const killProcessesIn = (namespaces: readonly string[]): number => {
  const pids = namespaces.flatMap(processesIn);
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It ended by itself.
    }
  }
  return pids.length;
};

/** Sends SIGKILL to every process in the lab's namespaces; returns how many there were. */
export const killProcesses = (name: string): number => killProcessesIn(namespacesOf(name));

/** A test may have mounted a file system of its own below its directory. */
const unmountBelow = (dir: string): void => {
  for (const line of readFileSync('/proc/mounts', 'utf8').split('\n')) {
    const mountPoint = line.split(' ')[1];
    if (mountPoint?.startsWith(`${dir}/`)) spawnSync('umount', ['--lazy', mountPoint]);
  }
};

/** Removes namespaces and directories. Its processes must have ended. */
export const removeRemains = (name: string): void => {
  for (const namespace of namespacesOf(name)) spawnSync('ip', ['netns', 'delete', namespace]);
  unmountBelow(labSharedMemoryDir(name));
  rmSync(labDir(name), { recursive: true, force: true });
  rmSync(labSharedMemoryDir(name), { recursive: true, force: true });
};

/** Kills and removes without returning to the event loop, waiting at most 5 s for the processes to end. */
export const removeNow = (name: string): void => {
  const deadline = performance.now() + 5000;
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  while (killProcesses(name) > 0 && performance.now() < deadline) Atomics.wait(sleeper, 0, 0, 20);
  removeRemains(name);
};

/** Removes labs whose owner was killed before it could. A live owner's lab is never touched. */
export const removeAbandoned = (): void => {
  const names = [netnsDir, temporaryRoot, sharedMemoryRoot]
    .flatMap(listDir)
    .map((entry) => ownedName.exec(entry));
  const abandoned = new Set(
    names.filter((match) => match !== null && !existsSync(`/proc/${match[2]}`)).map((match) => match![1]!),
  );
  for (const name of abandoned) removeNow(name);
};

const open = new Set<string>();
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

const removeOpen = (): void => {
  for (const name of open) removeNow(name);
  open.clear();
};

/** A program with a handler of its own closes its labs itself; then the exit handler has nothing left to do. */
const onSignal = (signal: NodeJS.Signals): void => {
  if (process.listenerCount(signal) > 1) return;
  removeOpen();
  process.removeListener(signal, onSignal);
  process.kill(process.pid, signal);
};

/** From now on the lab is removed when this process exits or is interrupted. */
export const removeAtExit = (name: string): void => {
  if (open.size === 0) {
    process.on('exit', removeOpen);
    for (const signal of signals) process.on(signal, onSignal);
  }
  open.add(name);
};

/** The lab has been removed. */
export const forget = (name: string): void => {
  if (!open.delete(name) || open.size > 0) return;
  process.removeListener('exit', removeOpen);
  for (const signal of signals) process.removeListener(signal, onSignal);
};
