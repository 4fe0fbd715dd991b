/**
 * The disks of a protected VM: their part of a session and of each epoch, and
 * what is known of them.
 *
 *   begin ─ what does the backup have? ─► plan ─► logs on ─► copy, beside the guest
 *   pause ─ stop pending ─► QEMU drains ─► boundary (the addon notes the logs' ends)
 *   ACK   ─ first: sync id ─► maps rotate, every second or so
 *   end   ─ logs off: writes are only marked
 *
 * Image and log are the disk servers'; bytes travel from the log to the backup
 * by the addon (docs/disk.md).
 */
import { randomBytes } from 'node:crypto';
import { getSystemErrorName } from 'node:util';
import { CancelledError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { DiskStats, PrimaryEngine } from '../native.js';
import { CopyMeter, type CopyProgress } from './copy-progress.js';
import { type DiskPlan, planDisks } from './disk-plan.js';
import { isJournalShareFull } from './disk-tick.js';
import { MapWindows } from './map-windows.js';

/** How often it is looked whether an epoch must end: at 2 GB/s a fifth of the smallest journal's share more. */
const WATCH_MS = 20;
const PROGRESS_MS = 250;
const STATS_MS = 1_000;

/** What a disk server counts; of its life, not of the session. */
export interface DiskServerCounts {
  readonly id: string;
  readonly writes: number;
  readonly writeBytes: number;
  readonly flushes: number;
  readonly flushMsMax: number;
  /** Writes that waited for room in the log, and how long. */
  readonly stalls: number;
  readonly stalledMs: number;
  /** Reads, writes and flushes that the image failed. */
  readonly errors: number;
  readonly lastErrno: number;
  /** Of the image, what may differ from the backup's. */
  readonly markedBytes: number;
}

/** The disk servers of a VM, as far as a session needs them: lib/disk has them. */
export interface DiskServers {
  readonly disks: readonly { readonly id: string; readonly imagePath: string; readonly imageBytes: number }[];
  startLogs(): Promise<void>;
  /** Idempotent; also of servers that are gone. */
  stopLogs(): Promise<void>;
  setSyncId(syncId: string): Promise<void>;
  rotateMaps(): Promise<void>;
  counts(): Promise<readonly DiskServerCounts[]>;
}

export interface PrimaryDiskStatus {
  readonly id: string;
  readonly image: string;
  readonly imageBytes: number;
  /** Of this session: logged by the server, and what of it the backup has. */
  readonly loggedBytes: number;
  readonly receivedBytes: number;
  readonly ringUsedBytes: number;
  readonly ringBytes: number;
  /** Bytes that were copied by the processor on their way from the log to the network. */
  readonly copiedBytes: number;
  readonly server?: Omit<DiskServerCounts, 'id' | 'lastErrno'> & { readonly lastError?: string };
}

/** A copy of the images that is done. */
export interface DisksCopied {
  readonly bytes: number;
  /** Of the images, what was told to be a hole and did not travel. */
  readonly holeBytes: number;
  readonly millis: number;
}

export interface PrimaryDisksOptions {
  readonly servers: DiskServers;
  readonly engine: Pick<
    PrimaryEngine,
    'connectDisks' | 'syncDisks' | 'diskProgress' | 'setStopPending' | 'diskStats'
  >;
  readonly log: Logger;
  /** An epoch has to end: much was written. */
  readonly onDue: () => void;
  readonly onPlan: (plans: readonly DiskPlan[]) => void;
  readonly onCopy: (progress: CopyProgress) => void;
  /** An image fails the guest: told once per disk and kind of error. */
  readonly onDiskError: (error: {
    readonly id: string;
    readonly image: string;
    readonly errno: string;
  }) => void;
}

interface Session {
  readonly syncId: string;
  readonly windows: MapWindows;
  isSynced: boolean;
  /** `loggedBytes` of each disk at the last pause. */
  boundary: ReadonlyMap<string, number>;
}

export class PrimaryDisks {
  readonly #options: PrimaryDisksOptions;
  readonly #servers: DiskServers;
  readonly #engine: PrimaryDisksOptions['engine'];
  #plans: readonly DiskPlan[] = [];
  #journalBytes = Number.POSITIVE_INFINITY;
  #copy: CopyProgress | undefined;
  #session: Session | undefined;
  /** Requests to the servers that follow from an acknowledgement, of whichever session. */
  #forgetting = false;
  #watch: NodeJS.Timeout | undefined;
  #statsTimer: NodeJS.Timeout;
  #counts: readonly DiskServerCounts[] = [];
  readonly #told = new Map<string, number>();

  constructor(options: PrimaryDisksOptions) {
    this.#options = options;
    this.#servers = options.servers;
    this.#engine = options.engine;
    this.#statsTimer = setInterval(() => void this.#count(), STATS_MS);
    this.#statsTimer.unref();
  }

  /** While the images are copied. */
  get copy(): CopyProgress | undefined {
    return this.#copy;
  }

  status(): readonly PrimaryDiskStatus[] {
    const shipped = new Map(this.#engine.diskStats().map((stats) => [stats.id, stats]));
    return this.#servers.disks.map(({ id, imagePath, imageBytes }) => {
      const counts = this.#counts.find((each) => each.id === id);
      const { loggedBytes, receivedBytes, ringUsedBytes, ringBytes, copiedBytes } =
        shipped.get(id) ?? nothing;
      return {
        id,
        image: imagePath,
        imageBytes,
        ...{ loggedBytes, receivedBytes, ringUsedBytes, ringBytes, copiedBytes },
        ...(counts === undefined ? {} : { server: serverStatus(counts) }),
      };
    });
  }

  /**
   * After the bulk connection stands: asks what the backup has of each disk.
   * @param journalBytes of each of its journals
   */
  async begin(journalBytes: number | undefined): Promise<void> {
    this.#journalBytes = journalBytes ?? Number.POSITIVE_INFINITY;
    this.#plans = planDisks(await this.#engine.connectDisks());
    for (const plan of this.#plans) this.#options.log.info({ ...plan }, 'disk to be copied');
    this.#options.onPlan(this.#plans);
  }

  /** Logs on, then the images: settles when the backup has them, but for what comes by the log. */
  async copyImages(): Promise<DisksCopied> {
    const session: Session = {
      syncId: randomBytes(16).toString('hex'),
      windows: new MapWindows(),
      isSynced: false,
      boundary: new Map(),
    };
    this.#session = session;
    await this.#servers.startLogs();
    if (session !== this.#session) {
      // Ended while a server was started anew: what it logs from now on nobody reads.
      if (this.#session === undefined) await this.#servers.stopLogs();
      throw new CancelledError('the session ended while the logs were switched on');
    }
    const meter = new CopyMeter();
    const look = (): void => {
      const progress = this.#engine.diskProgress();
      if (progress === undefined) return;
      const { doneBytes, totalBytes } = progress;
      this.#copy = meter.sample(performance.now(), doneBytes, totalBytes);
      this.#options.onCopy(this.#copy);
    };
    const timer = setInterval(look, PROGRESS_MS);
    try {
      const plans = this.#plans.map(({ id, what }) => ({ id, what }));
      const copied = await this.#engine.syncDisks({ plans, syncId: session.syncId });
      this.#options.log.info({ ...copied, syncId: session.syncId }, 'disks copied');
      if (session === this.#session) this.#watch ??= setInterval(() => this.#look(), WATCH_MS);
      return copied;
    } finally {
      clearInterval(timer);
      this.#copy = undefined;
    }
  }

  /** Right before QEMU is told to stop, and when it has answered. */
  stopPending(isPending: boolean): void {
    this.#engine.setStopPending(isPending);
  }

  /** The VM is stopped and captured: what is logged from now on is the next epoch's. */
  captured(): void {
    if (this.#session === undefined) return;
    this.#session.boundary = new Map(
      this.#engine.diskStats().map(({ id, loggedBytes }) => [id, loggedBytes]),
    );
  }

  /** The backup has all that was written before this pause. Nothing waits for what follows from it. */
  acknowledged(pauseStartMs: number): void {
    const session = this.#session;
    if (session === undefined || this.#forgetting) return;
    if (!session.windows.isDue(pauseStartMs, performance.now())) return;
    this.#forgetting = true;
    void this.#forget(session).finally(() => {
      this.#forgetting = false;
    });
  }

  /** Also where a server is gone. Writes are only marked from now on, and none waits any more. */
  async end(): Promise<void> {
    this.#session = undefined;
    clearInterval(this.#watch);
    this.#watch = undefined;
    await this.#servers.stopLogs().catch((error: unknown) => {
      this.#options.log.error({ err: toHoldfastError(error).message }, 'switching the logs of the disks off');
    });
  }

  close(): void {
    clearInterval(this.#watch);
    clearInterval(this.#statsTimer);
  }

  async #forget(session: Session): Promise<void> {
    try {
      if (!session.isSynced) {
        await this.#servers.setSyncId(session.syncId); // the backup has set it with this commit
        session.isSynced = true;
      }
      await this.#servers.rotateMaps();
      session.windows.rotated(performance.now());
    } catch (error) {
      // Marks that stay cost a later resynchronisation time, no more.
      this.#options.log.warn({ err: toHoldfastError(error).message }, 'rotating the maps of the disks');
    }
  }

  #look(): void {
    const { boundary } = this.#session!; // the watch ends with it
    if (isJournalShareFull(this.#engine.diskStats(), boundary, this.#journalBytes)) this.#options.onDue();
  }

  async #count(): Promise<void> {
    const counts = await this.#servers.counts().catch(() => undefined);
    if (counts === undefined) return; // who looks after the servers reports a loss
    this.#counts = counts;
    for (const { id, errors, lastErrno } of counts) {
      if (errors === 0 || this.#told.get(id) === lastErrno) continue;
      this.#told.set(id, lastErrno);
      const image = this.#servers.disks.find((disk) => disk.id === id)?.imagePath ?? '';
      this.#options.onDiskError({ id, image, errno: errorName(lastErrno) });
    }
  }
}

const nothing: Omit<DiskStats, 'id'> = {
  ...{ loggedBytes: 0, shippedBytes: 0, receivedBytes: 0, ringUsedBytes: 0, ringBytes: 0, copiedBytes: 0 },
  ...{ flushesOwed: 0, flushesPaid: 0 },
};

const serverStatus = ({
  id: _id,
  lastErrno,
  ...counts
}: DiskServerCounts): NonNullable<PrimaryDiskStatus['server']> => ({
  ...counts,
  ...(lastErrno === 0 ? {} : { lastError: errorName(lastErrno) }),
});

const errorName = (errno: number): string => {
  try {
    return getSystemErrorName(-errno);
  } catch {
    return `errno ${errno}`;
  }
};
