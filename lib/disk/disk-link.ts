/**
 * Somebody's hold on one disk server, through the server's death.
 *
 *   connected ──server ends──► recovering: find it or start another, connect ──► connected
 *                                  └─ in vain ──► tried again, for as long as QEMU lives
 *
 * QEMU waits meanwhile, and sends what was under way once more to the new server. What was logged and not
 * yet shipped is gone; its blocks are marked in the map.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { DiskError, type HoldfastError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { isAlive } from '../vm/process.js';
import type { DiskControl } from './disk-control.js';
import { type DiskServerSpec, diskServerFiles } from './disk-files.js';
import { bindDiskServer, reachDiskServer, type StartedDiskServer } from './disk-process.js';

const RECOVERY_PAUSE_MS = 100;
const RECOVERY_PAUSE_MS_MAX = 5_000;

export interface DiskLinkOptions {
  readonly spec: DiskServerSpec;
  readonly log: Logger;
  /** The server, or the connection to it, is gone: what was logged by it is not to be relied on. */
  readonly onLost: (reason: HoldfastError) => void;
  /** How it is reached; for tests. */
  readonly reach?: typeof reachDiskServer;
}

export class DiskLink {
  readonly #spec: DiskServerSpec;
  readonly #log: Logger;
  readonly #onLost: (reason: HoldfastError) => void;
  readonly #reach: typeof reachDiskServer;
  readonly #abort = new AbortController();
  #server: StartedDiskServer | undefined;
  #recovering: Promise<DiskControl> | undefined;

  constructor(options: DiskLinkOptions) {
    this.#spec = options.spec;
    this.#log = options.log;
    this.#onLost = options.onLost;
    this.#reach = options.reach ?? reachDiskServer;
  }

  /** Connects, to a server that is started if none runs. @throws DiskError */
  async connect(): Promise<DiskControl> {
    const server = await this.#reach(this.#spec, { signal: this.#abort.signal });
    if (this.#abort.signal.aborted) {
      await server.control.close();
      throw new DiskError('the disk server is not needed any more');
    }
    this.#server = server;
    const { control, record } = server;
    const { vm } = this.#spec;
    if (record.vm === null && vm !== null) await bindDiskServer(server, vm); // its launcher died before that
    void control.closed.then((reason) => {
      if (this.#server?.control !== control) return;
      this.#server = undefined;
      void this.#lost(reason);
    });
    return control;
  }

  /** The connection as it is, or a new one. @throws DiskError if there is none to be had */
  async control(): Promise<DiskControl> {
    const control = this.#server?.control;
    if (control !== undefined && !control.isClosed) return control;
    return await (this.#recovering ?? this.#tryToRecover());
  }

  /** The connection as it is. */
  get connected(): DiskControl | undefined {
    return this.#server?.control;
  }

  /** Lets go; the server goes on as it is. */
  async close(): Promise<void> {
    this.#abort.abort();
    const control = this.#server?.control;
    this.#server = undefined;
    await control?.close();
    await this.#recovering?.then(
      (late) => late.close(),
      () => {},
    );
  }

  async #lost(reason: HoldfastError): Promise<void> {
    const { vm } = this.#spec;
    // It ends with its VM; the end of the VM is somebody else's to tell.
    const isOver = async (): Promise<boolean> =>
      this.#abort.signal.aborted || (vm !== null && !(await isAlive(vm)));
    if (await isOver()) return;
    this.#log.error({ ...this.#names(), err: reason.message }, 'the disk server is lost; looking for it');
    this.#onLost(reason);
    for (let pauseMs = RECOVERY_PAUSE_MS; !(await isOver()); ) {
      try {
        await this.control();
        return;
      } catch (error) {
        this.#log.error({ ...this.#names(), err: toHoldfastError(error).message }, 'no disk server');
      }
      await delay(pauseMs, undefined, { signal: this.#abort.signal }).catch(() => {});
      pauseMs = Math.min(2 * pauseMs, RECOVERY_PAUSE_MS_MAX);
    }
  }

  #tryToRecover(): Promise<DiskControl> {
    const beganMs = performance.now();
    const recovering = this.connect().then((control) => {
      this.#log.warn(
        { ...this.#names(), afterMs: performance.now() - beganMs },
        'a disk server is in place again',
      );
      return control;
    });
    this.#recovering = recovering;
    const over = (): void => {
      if (this.#recovering === recovering) this.#recovering = undefined;
    };
    recovering.then(over, over);
    return recovering;
  }

  #names(): { disk: string; image: string; log: string } {
    const { id, imagePath, socket } = this.#spec;
    return { disk: id, image: imagePath, log: diskServerFiles(socket).log };
  }
}
