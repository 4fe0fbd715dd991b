/**
 * The disk servers of a VM that is being protected. They are processes of their own and outlive this one: a
 * daemon that is killed leaves servers that log no more and mark what is written; one that detaches, too.
 *
 *   adopt ─ by QEMU's disks and the servers' records ─► connected
 *   a server dies ─► started again, at once ─► onLost: the session is void, what it logged is lost
 */
import { DiskError, type HoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { DiskServerCounts, DiskServers } from '../primary/disks.js';
import type { VmDescription } from '../vm/describe.js';
import { wireDisks } from '../vm/disks.js';
import type { DiskControl } from './disk-control.js';
import { type DiskServerRecord, diskServerFiles, mapPathOf } from './disk-files.js';
import { DiskLink } from './disk-link.js';
import { portableSocketOf } from './portable-disks.js';

/** As in the map: native/disk/disk_map.h. */
const BLOCK_BYTES = 64 << 10;

/** One disk, as PrimaryEngineOptions.disks wants it. */
export interface PrimaryDisk {
  readonly id: string;
  readonly imagePath: string;
  readonly imageBytes: number;
  readonly ringPath: string;
  readonly mapPath: string;
}

export interface DiskSetOptions {
  readonly vm: Pick<VmDescription, 'drives' | 'process'>;
  readonly log: Logger;
}

export class DiskSet implements DiskServers, AsyncDisposable {
  readonly disks: readonly PrimaryDisk[];
  readonly #links: ReadonlyMap<string, DiskLink>;
  #onLost: (reason: HoldfastError) => void = () => {};

  private constructor(records: readonly DiskServerRecord[], { vm, log }: DiskSetOptions) {
    this.disks = records.map(({ id, imagePath, imageBytes, socket, metaDir }) => ({
      id,
      imagePath,
      imageBytes,
      ringPath: diskServerFiles(socket).ring,
      mapPath: mapPathOf(metaDir),
    }));
    const { pid, startTicks } = vm.process;
    const onLost = (reason: HoldfastError): void => this.#onLost(reason);
    this.#links = new Map(
      records.map(({ process: _process, ...spec }) => [
        spec.id,
        new DiskLink({ spec: { ...spec, mode: 'active', vm: { pid, startTicks } }, log, onLost }),
      ]),
    );
  }

  /**
   * Connects to the servers of the VM's writable disks; one that has died is started again, while QEMU waits.
   * @returns undefined for a VM without writable disks
   * @throws DiskError if a server cannot be reached
   */
  static async adopt(options: DiskSetOptions): Promise<DiskSet | undefined> {
    const records = options.vm.drives.flatMap(({ server }) => server ?? []);
    if (records.length === 0) return undefined;
    const set = new DiskSet(records, options);
    try {
      const connecting = [...set.#links.values()].map(async (link) => {
        const control = await link.connect();
        // Its journal has to be closed first, or it would be applied over what the VM writes: the backup's part.
        if (!control.isActive) {
          throw new DiskError(
            'the VM was taken over, but its disks do not take writes yet: its backup daemon ended too early',
            { cure: 'Start `holdfast backup` on this host with its old settings; it finishes the takeover.' },
          );
        }
      });
      await allSettled(connecting);
    } catch (error) {
      await set.close();
      throw error;
    }
    return set;
  }

  /**
   * One listener: a server, or the connection to it, was lost, so that its log has a gap. The session is to be
   * given up and opened anew, when startLogs() finds the server that has taken its place.
   */
  onLost(listener: (reason: HoldfastError) => void): void {
    this.#onLost = listener;
  }

  /** QEMU's arguments, for the backup: each disk by its id, whether it was launched on a server or moved there. */
  portableArgv(argv: readonly string[]): string[] {
    return wireDisks(argv, new Map(this.disks.map(({ id }) => [id, portableSocketOf(id)])), this.#sockets());
  }

  async startLogs(): Promise<void> {
    await this.#each(async (control) => {
      await control.startLog();
    });
  }

  async stopLogs(): Promise<void> {
    // A server that is gone logs nothing, and one that is started in its place doesn't by itself.
    const connected = [...this.#links.values()].flatMap((link) => link.connected ?? []);
    await allSettled(
      connected.map(async (control) => {
        await control.stopLog().catch((error: unknown) => {
          if (!control.isClosed) throw error;
        });
      }),
    );
  }

  async setSyncId(syncId: string): Promise<void> {
    await this.#each((control) => control.setSyncId(syncId));
  }

  async rotateMaps(): Promise<void> {
    await this.#each(async (control) => {
      await control.rotateMap();
    });
  }

  async counts(): Promise<readonly DiskServerCounts[]> {
    const counting = [...this.#links].map(async ([id, link]) => {
      const stats = await link.connected?.stats().catch(() => undefined);
      if (stats === undefined) return [];
      const { writes, writeBytes, flushes, flushMsMax, stalls, stalledMs, errors, lastErrno } = stats;
      return [
        {
          id,
          ...{ writes, writeBytes, flushes, flushMsMax, stalls, stalledMs, errors, lastErrno },
          markedBytes: stats.markedBlocks * BLOCK_BYTES,
        },
      ];
    });
    return (await Promise.all(counting)).flat();
  }

  /** Lets go; the servers go on, and log no more. */
  async close(): Promise<void> {
    await Promise.all([...this.#links.values()].map((link) => link.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #sockets(): ReadonlyMap<string, string> {
    return new Map(this.disks.map(({ id, ringPath }) => [id, ringPath.slice(0, -'.ring'.length)]));
  }

  async #each(work: (control: DiskControl) => Promise<void>): Promise<void> {
    await allSettled([...this.#links.values()].map(async (link) => work(await link.control())));
  }
}

/** All of them to their end, then the first failure: nothing is under way afterwards. */
const allSettled = async (works: readonly Promise<void>[]): Promise<void> => {
  for (const outcome of await Promise.allSettled(works)) {
    if (outcome.status === 'rejected') throw outcome.reason;
  }
};
