/**
 * The disk servers of a VM that is being launched to be protected: one for each writable raw image of its
 * command line, which is put over their sockets.
 *
 *   planDisks ─► start ─► QEMU is launched over `argv` ─► bind ─► they end with it
 */
import { join, resolve } from 'node:path';
import { ConfigError } from '../errors.js';
import { findDisks, wireDisks } from '../vm/disks.js';
import type { ProcessIdentity } from '../vm/process.js';
import { DISK_SOCKET_PATH_BYTES_MAX, type DiskServerSpec, diskMetaDir } from './disk-files.js';
import { NBDKIT_DEFAULT } from './disk-plugin.js';
import {
  bindDiskServer,
  endDiskServer,
  imageBytesOf,
  type StartedDiskServer,
  startDiskServer,
} from './disk-process.js';

export interface PlanDisksOptions {
  readonly argv: readonly string[];
  /** Against which QEMU's relative paths count. */
  readonly cwd: string;
  /** For the servers' sockets and rings: on a tmpfs. */
  readonly dir: string;
  readonly diskDir: string;
  readonly ringBytes: number;
}

export class LaunchedDisks {
  /** The command line over the servers' sockets. */
  readonly argv: readonly string[];
  readonly #specs: readonly DiskServerSpec[];
  #started: StartedDiskServer[] = [];

  private constructor(argv: readonly string[], specs: readonly DiskServerSpec[]) {
    this.argv = argv;
    this.#specs = specs;
  }

  get sockets(): readonly string[] {
    return this.#specs.map(({ socket }) => socket);
  }

  /** @throws ConfigError if a writable disk of the command line cannot be on a server, DiskError (image) */
  static async plan({ argv, cwd, dir, diskDir, ringBytes }: PlanDisksOptions): Promise<LaunchedDisks> {
    const { files, refused } = findDisks(argv);
    const first = refused[0];
    if (first !== undefined) throw new ConfigError(`${first.what}: ${first.reason}`, { cure: first.cure });
    const specs = files.map(async ({ id, image, format }): Promise<DiskServerSpec> => {
      if (format !== 'raw') {
        throw new ConfigError(
          format === undefined
            ? `disk ${id} (${image}): its format is not named`
            : `disk ${id} (${image}): its format is ${format}; only raw images are replicated`,
          {
            cure:
              format === undefined
                ? 'Add format=raw, if that is what it is.'
                : `Convert it: qemu-img convert -O raw ${image} NEW.raw, and name that with format=raw.`,
          },
        );
      }
      const imagePath = resolve(cwd, image);
      const socket = join(dir, `${id}.sock`);
      if (Buffer.byteLength(socket) > DISK_SOCKET_PATH_BYTES_MAX) {
        throw new ConfigError(
          `disk ${id}: its socket's path ${socket} would be longer than ${DISK_SOCKET_PATH_BYTES_MAX} bytes`,
          { cure: 'Choose a shorter --run-dir, --name or id of the disk.' },
        );
      }
      const imageBytes = await imageBytesOf(imagePath);
      const metaDir = await diskMetaDir(diskDir, imagePath);
      return {
        ...{ id, imagePath, imageBytes, metaDir, socket, ringBytes },
        ...{ mode: 'active', nbdkit: NBDKIT_DEFAULT, vm: null },
      };
    });
    const planned = await Promise.all(specs);
    const sockets = new Map(planned.map(({ id, socket }) => [id, socket]));
    return new LaunchedDisks(wireDisks(argv, sockets), planned);
  }

  /** Before QEMU, which opens its disks at its start. @throws DiskError; none is left then */
  async start(signal?: AbortSignal): Promise<void> {
    const outcomes = await Promise.allSettled(this.#specs.map((spec) => startDiskServer(spec, { signal })));
    this.#started = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed === undefined) return;
    await this.end();
    throw failed.reason;
  }

  /** As soon as QEMU's process exists. Whoever protects the VM is their controller from then on. */
  async bind(vm: ProcessIdentity): Promise<void> {
    await Promise.all(
      this.#started.splice(0).map(async (server) => {
        await bindDiskServer(server, vm);
        await server.control.close();
      }),
    );
  }

  /** After QEMU, or where there is none. */
  async end(): Promise<void> {
    await Promise.all(this.#started.splice(0).map(({ control }) => control.close()));
    await Promise.all(this.sockets.map(endDiskServer));
  }
}
