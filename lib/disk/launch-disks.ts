/**
 * The disks of a VM that Holdfast launches: found on its command line, and each given a server before QEMU
 * opens them.
 *
 *   planDisks ─ command line, images ─► argv over servers ─► start ─► launch QEMU ─► bind
 */
import { join, resolve } from 'node:path';
import { UnsupportedVmError } from '../errors.js';
import { findDisks, wireDisks } from '../vm/disks.js';
import type { Refusal } from '../vm/preflight.js';
import type { ProcessIdentity } from '../vm/process.js';
import { DISK_SOCKET_PATH_BYTES_MAX, type DiskServerSpec, diskMetaDir } from './disk-files.js';
import { NBDKIT_DEFAULT } from './disk-plugin.js';
import { bindDiskServer, endDiskServer, type StartedDiskServer, startDiskServer } from './disk-process.js';
import { inspectImage } from './inspect-image.js';

export interface DiskPlacement {
  /** For the servers' sockets and rings: on a tmpfs. */
  readonly dir: string;
  /** Setting `diskDir`. */
  readonly diskDir: string;
  readonly ringBytes: number;
  /** Program to run instead of the nbdkit on PATH. */
  readonly nbdkit?: string | undefined;
}

export interface PlannedDisks {
  readonly argv: readonly string[];
  readonly specs: readonly DiskServerSpec[];
}

/**
 * Puts every writable disk on a server; nothing is started yet.
 * @param cwd QEMU's, for relative paths
 * @throws UnsupportedVmError with all that cannot be replicated, and how to cure it
 */
export const planDisks = async (
  argv: readonly string[],
  cwd: string,
  placement: DiskPlacement,
): Promise<PlannedDisks> => {
  const { files, refused } = findDisks(argv);
  const planned = await Promise.all(
    files.map(({ id, image, format }) => planDisk(id, resolve(cwd, image), format, placement)),
  );
  const refusals = [...refused, ...planned.flatMap((plan) => ('reason' in plan ? plan : []))];
  if (refusals.length > 0) throw cannotBeProtected(refusals);
  const specs = planned.flatMap((plan) => ('reason' in plan ? [] : plan));
  return { argv: wireDisks(argv, new Map(specs.map(({ id, socket }) => [id, socket]))), specs };
};

/** The server that an image is to have; active, and bound to no VM yet. */
export const planDisk = async (
  id: string,
  imagePath: string,
  format: string | undefined,
  { dir, diskDir, ringBytes, nbdkit = NBDKIT_DEFAULT }: DiskPlacement,
): Promise<DiskServerSpec | Refusal> => {
  const inspected = await inspectImage(id, imagePath, format);
  if ('reason' in inspected) return inspected;
  const socket = join(dir, `${id}.sock`);
  if (Buffer.byteLength(socket) > DISK_SOCKET_PATH_BYTES_MAX) {
    return {
      what: `disk ${id}`,
      reason: `Its socket's path ${socket} would be longer than ${DISK_SOCKET_PATH_BYTES_MAX} bytes.`,
      cure: 'Give the drive a shorter id, or choose a shorter --run-dir.',
    };
  }
  const metaDir = await diskMetaDir(diskDir, imagePath);
  const imageBytes = inspected.bytes;
  return { id, imagePath, imageBytes, metaDir, socket, ringBytes, mode: 'active', nbdkit, vm: null };
};

const cannotBeProtected = (refusals: readonly Refusal[]): UnsupportedVmError =>
  new UnsupportedVmError(
    `this VM cannot be protected; nothing was started${refusals
      .map(({ what, reason, cure }) => `\n  - ${what}: ${reason} ${cure}`)
      .join('')}`,
    { details: { reasons: refusals } },
  );

/** All of them, or none. @throws DiskError */
export const startDiskServers = async (
  specs: readonly DiskServerSpec[],
  signal?: AbortSignal,
): Promise<StartedDiskServers> => {
  const outcomes = await Promise.allSettled(specs.map((spec) => startDiskServer(spec, { signal })));
  const started = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []));
  const servers = new StartedDiskServers(started);
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed === undefined) return servers;
  await servers.end();
  throw failed.reason;
};

/** Servers that wait for their QEMU. */
export class StartedDiskServers {
  readonly #servers: readonly StartedDiskServer[];

  constructor(servers: readonly StartedDiskServer[]) {
    this.#servers = servers;
  }

  /** They end with that process from now on, and are whoever protects it to control. */
  async bind(vm: ProcessIdentity): Promise<void> {
    await Promise.all(
      this.#servers.map(async (server) => {
        await bindDiskServer(server, vm);
        await server.control.close();
      }),
    );
  }

  /** QEMU was not started, or has ended. */
  async end(): Promise<void> {
    await Promise.all(
      this.#servers.map(async ({ record, control }) => {
        await control.close();
        await endDiskServer(record.socket);
      }),
    );
  }
}
