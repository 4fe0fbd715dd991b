/**
 * The disk servers of a standby. They answer its reads, and its writes wait until the VM was taken over and
 * the journals are closed: activate(). After that they stay with the VM, where the next primary finds them.
 *
 *   start ─► QEMU is launched over `sockets` ─► bind ─► … ─► activate
 *   a server dies while QEMU lives ─► started again, in the mode it had; after activate() active, though
 *   its record be lost
 *
 * No connection to a server is kept: it has one controller, and after a takeover that is the next primary.
 */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DiskError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { type Replacement, replaceText } from '../vm/command-line.js';
import { moveDiskSockets } from '../vm/disks.js';
import { isAlive, type ProcessIdentity, waitForExit } from '../vm/process.js';
import { withClaim } from './disk-claim.js';
import { DiskControl } from './disk-control.js';
import {
  type DiskServerRecord,
  type DiskServerSpec,
  diskServerFiles,
  RING_BYTES_DEFAULT,
  readDiskServerRecord,
  runningDiskServer,
  writeDiskServerRecord,
} from './disk-files.js';
import { NBDKIT_DEFAULT } from './disk-plugin.js';
import {
  bindDiskServer,
  endDiskServer,
  ensureDiskServer,
  type StartedDiskServer,
  startDiskServer,
} from './disk-process.js';
import { portableSocketOf } from './portable-disks.js';

/** Between attempts to start a server anew that a running VM waits for. */
const RESTART_PAUSE_MS = 1_000;

export interface StandbyDisk {
  readonly id: string;
  /** The replica. It exists, with its size: the store was opened. */
  readonly imagePath: string;
  readonly imageBytes: number;
  readonly metaDir: string;
}

export interface StandbyDisksOptions {
  readonly disks: readonly StandbyDisk[];
  /** For the servers' sockets and rings: on a tmpfs. */
  readonly dir: string;
  /** Tells the sockets of one standby from those of the next one. */
  readonly launch: number;
  readonly log: Logger;
  /** Program to run instead of the nbdkit on PATH. */
  readonly nbdkit?: string | undefined;
}

export class StandbyDisks {
  /** On which the servers listen for QEMU, and by which they are found again. */
  readonly sockets: readonly string[];
  readonly #specs: readonly DiskServerSpec[];
  readonly #log: Logger;
  #started: StartedDiskServer[] = [];
  /** Of a server that is started again, whatever its record says: active from activate() on. */
  #mode: DiskServerSpec['mode'] = 'standby';
  #ending = false;

  constructor({ disks, dir, launch, log, nbdkit = NBDKIT_DEFAULT }: StandbyDisksOptions) {
    this.#log = log;
    this.#specs = disks.map((disk) => ({
      ...disk,
      socket: join(dir, `${disk.id}-${launch}.sock`),
      ringBytes: RING_BYTES_DEFAULT,
      mode: 'standby',
      nbdkit,
      vm: null,
    }));
    this.sockets = this.#specs.map(({ socket }) => socket);
  }

  /**
   * The standby's arguments over these servers.
   * @param argv the primary's (DiskSet.portableArgv), with or without the replacements applied
   * @throws ConfigError if a disk is not in there
   */
  over(argv: readonly string[], replacements: readonly Replacement[] = []): string[] {
    const moves = this.#specs.flatMap(({ id, socket }): [string, string][] => {
      const portable = portableSocketOf(id);
      return [[replaceText(portable, replacements), socket]];
    });
    return moveDiskSockets(argv, new Map(moves));
  }

  /** Before QEMU, which opens its disks at its start. Settles when each answers. @throws DiskError */
  async start(): Promise<void> {
    const outcomes = await Promise.allSettled(this.#specs.map((spec) => startDiskServer(spec)));
    this.#started = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed === undefined) return;
    await this.end();
    throw failed.reason;
  }

  /** As soon as QEMU's process exists: the servers end with it, and are started again while it lives. */
  async bind(vm: ProcessIdentity): Promise<void> {
    const started = this.#started;
    this.#started = [];
    await Promise.all(
      started.map(async (server) => {
        const record = await bindDiskServer(server, vm);
        await server.control.close();
        void this.#keep(record);
      }),
    );
  }

  /**
   * The guest's writes go to the images from now on, those that wait first. Idempotent.
   * @throws DiskError; it may be tried again
   */
  async activate(): Promise<void> {
    this.#mode = 'active';
    await Promise.all(this.sockets.map(activateDiskServer));
  }

  /** After QEMU has ended. */
  async end(): Promise<void> {
    this.#ending = true;
    await Promise.all(this.#started.splice(0).map(({ control }) => control.close()));
    await Promise.all(this.sockets.map(endDiskServer));
  }

  async #keep(record: DiskServerRecord): Promise<void> {
    await waitForExit(record.process);
    if (this.#ending || record.vm === null || !(await isAlive(record.vm))) return;
    const names = { disk: record.id, image: record.imagePath, pid: record.process.pid };
    this.#log.error({ ...names, log: diskServerFiles(record.socket).log }, 'the disk server of a VM ended');
    while (!this.#ending && (await isAlive(record.vm))) {
      const { process: _process, ...spec } = (await readDiskServerRecord(record.socket)) ?? record;
      const mode = this.#mode === 'active' ? 'active' : spec.mode;
      try {
        await this.#keep(await ensureDiskServer({ ...spec, mode }));
        return;
      } catch (error) {
        this.#log.error({ ...names, err: toHoldfastError(error).message }, 'the VM waits for its disk');
        await delay(RESTART_PAUSE_MS);
      }
    }
  }
}

/**
 * Lets the writes of a standby through that has become the VM. Idempotent.
 * @throws DiskError, ConnectError; it may be tried again
 */
export const activateDiskServer = async (socket: string): Promise<void> => {
  const restart = await withClaim(diskServerFiles(socket).claim, () => activateRunning(socket));
  if (restart !== undefined) await ensureDiskServer(restart);
};

/**
 * Within the claim: a server that dies now is started anew, and written down, only afterwards, so that the
 * record that is written here is never the newer one's.
 * @returns what is to be started in the place of a server that has ended
 */
const activateRunning = async (socket: string): Promise<DiskServerSpec | undefined> => {
  const record = await readDiskServerRecord(socket);
  if (record === undefined) {
    throw new DiskError(`there is no record of a disk server on ${socket}`, {
      cure: 'Was the run directory cleared? The VM has to be ended; its images are whole.',
    });
  }
  if (record.mode === 'active') return undefined;
  const active: DiskServerRecord = { ...record, mode: 'active' };
  if ((await runningDiskServer(socket)) === undefined) {
    const { process: _process, ...spec } = active;
    return spec;
  }
  await using control = await DiskControl.connect(diskServerFiles(socket).control);
  await control.activate();
  await writeDiskServerRecord(active);
  return undefined;
};
