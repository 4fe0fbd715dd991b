/**
 * One generation: a replica file, a receiver that fills it, and a standby QEMU
 * that can run it. Made per session; at a takeover it becomes the VM.
 *
 *   prepare ─► token accepted on bulk port
 *   ensureStandby ─► QEMU waits with -incoming defer; disk servers answer its reads, its writes would wait
 *   prefix, committed ─► it is given the checkpoint's prefix (standby-feed.ts)
 *   fence   ─► no acknowledgement leaves any more; last epoch applied, to RAM and images
 *   run     ─► device state into the standby; it resumes
 *   activateDisks ─► journals closed for good; now its writes go to the images
 *   drop    ─► everything removed (not after run)
 */
import { mkdir, rm, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { SessionMessage } from '../control/messages.js';
import {
  CancelledError,
  NoSpaceError,
  StandbyError,
  toHoldfastError,
  UnsupportedHostError,
} from '../errors.js';
import { HUGETLBFS_MAGIC } from '../file-systems.js';
import type { Logger } from '../log.js';
import { type FenceResult, native, type Receiver, type ReceiverEvent, type WrittenState } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import {
  announceSelf,
  type MigrationCapabilities,
  prepareIncoming,
  restoreMigrationCapabilities,
  versionText,
  waitRunning,
} from '../qmp/recipes.js';
import { replaceText } from '../vm/command-line.js';
import { exitText, killVm, type LaunchedVm, reapVm } from '../vm/launch.js';
import { isAlive, type ProcessIdentity } from '../vm/process.js';
import type { StandbyDisks, StandbyDisksOptions } from './disk-support.js';
import { EarlyResume } from './early-resume.js';
import { launchStandby, refuseOlderQemu } from './launch-standby.js';
import type { TakenDisks } from './replica-disks.js';
import { type Fed, feedStep, isUseless } from './standby-feed.js';
import type { StandbyRelays } from './standby-relays.js';

const TMPFS_PAGE_BYTES = 4096;

/** A standby that died is replaced this often at a takeover before it is given up. */
const STANDBY_ATTEMPTS_MAX = 3;
/** Ordinary loads take 4 to 6 ms; slow disks for the kernel image can make a fresh start take longer. */
const RESUME_TIMEOUT_MS = 10_000;

/** What a Backup does with a generation, whichever way its memory comes (qemu-generation.ts). */
export type AnyGeneration = Pick<Generation, keyof Generation>;

export interface GenerationOptions {
  readonly id: number;
  readonly session: SessionMessage;
  readonly token: Uint8Array;
  readonly listenHost: string;
  readonly bulkPort: number;
  readonly runDir: string;
  readonly ramPath: string;
  readonly qemu: string | undefined;
  readonly replacements: readonly { readonly from: string; readonly to: string }[];
  /** Opens the replicas of the session's disks; undefined if it has none. */
  readonly takeDisks: (() => Promise<TakenDisks>) | undefined;
  readonly standbyDisks: ((options: StandbyDisksOptions) => StandbyDisks) | undefined;
  /** Their journals are to be closed: see ReplicaKeeper.retire. */
  readonly retireDisks: (disks: TakenDisks) => Promise<void>;
  readonly logger: Logger;
  readonly onReceiverEvent: (event: ReceiverEvent) => void;
  readonly onStandbyExit: (reason: string) => void;
}

export interface Resumed {
  readonly epoch: number;
  /** Writing the device state until the VM ran. */
  readonly loadMs: number;
}

interface Standby {
  readonly vm: LaunchedVm;
  readonly qmp: QmpClient;
  readonly relays: StandbyRelays;
  readonly disks: StandbyDisks | undefined;
  readonly incomingPath: string;
  fed: Fed;
}

export class Generation {
  readonly id: number;
  readonly session: SessionMessage;
  readonly ramPath: string;
  readonly #options: GenerationOptions;
  readonly #receiver: Receiver;
  readonly #dir: string;
  #standby: Standby | undefined;
  #launches = 0;
  /** How the standby's migration capabilities stood before prepareIncoming() changed them. */
  #capabilitiesBefore: MigrationCapabilities = [];
  /** Of a takeover: it may run at any moment, and nobody else decides on it. */
  #loading: Standby | undefined;
  /** Which prefix the checkpoint has, or the first one will have, as the receiver counts them. */
  #prefix = 0;
  /** Standbys that ended by themselves with that prefix. */
  #fedLosses = 0;
  #mayHaveRun = false;
  #queue: Promise<void> = Promise.resolve();
  #state: 'new' | 'ready' | 'running' | 'dropped' = 'new';
  #fencing: Promise<FenceResult> | undefined;
  #disks: TakenDisks | undefined;
  #pageDisks: readonly number[] = [];
  #early: EarlyResume | undefined;
  #receivingEnded: Promise<void> | undefined;

  constructor(options: GenerationOptions) {
    this.id = options.id;
    this.session = options.session;
    this.ramPath = options.ramPath;
    this.#options = options;
    this.#dir = join(options.runDir, `g${options.id}`);
    this.#receiver = new native.Receiver({
      host: options.listenHost,
      port: options.bulkPort,
      onEvent: (event) => {
        if (event.type === 'prefix' || event.type === 'committed') this.#onPrefix(event.prefix);
        options.onReceiverEvent(event);
      },
    });
  }

  get bulkPort(): number {
    return this.#receiver.port;
  }

  /** Indexes of the session's page disks that this host has. */
  get pageDisks(): readonly number[] {
    return this.#pageDisks;
  }

  /** The standby's process, or the running VM's; undefined while there is none. */
  get standby(): ProcessIdentity | undefined {
    return this.#standby?.vm.identity;
  }

  /** QMP socket for the operator and for the next primary; the daemon has one of its own. */
  get qmpPath(): string {
    return join(this.#dir, 'qmp.sock');
  }

  get logPath(): string {
    return join(this.#dir, 'qemu.log');
  }

  /** Of the standby, or of the running VM. */
  get qemuVersion(): string | undefined {
    const qmp = this.#standby?.qmp;
    return qmp && versionText(qmp.greeting.version);
  }

  bulkIdleMs(): number {
    return this.#receiver.idleMs();
  }

  /**
   * Reserves the replica and waits for the bulk connection.
   * @throws NoSpaceError, DiskError, UnsupportedHostError
   */
  async prepare(): Promise<void> {
    await this.#checkPageSize();
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const disks = await this.#options.takeDisks?.();
    if (this.#state === 'dropped') {
      await disks?.letGo();
      throw new CancelledError('the session ended while its disks were opened');
    }
    this.#disks = disks;
    const { ramBytes, pageSize, deviceBytesMax } = this.session;
    const replacements = [...this.session.standby.replacements, ...this.#options.replacements];
    const opened = await this.#receiver.openSession({
      token: this.#options.token,
      ramPath: this.ramPath,
      ramBytes,
      pageSize,
      epochBytesMax: ramBytes,
      deviceBytesMax,
      sparse: this.session.resumeEarly === 'now',
      disks: disks?.store,
      referenceDisks: this.session.pageDisks?.map(({ imagePath, imageBytes }) => ({
        path: replaceText(imagePath, replacements),
        bytes: imageBytes,
      })),
    });
    this.#pageDisks = opened.referenceDisks.flatMap((isHere, index) => (isHere ? [index] : []));
    if (this.#state === 'new') this.#state = 'ready';
  }

  /**
   * Idempotent. After it settles nothing is acknowledged, and the last committed epoch is in the replica.
   * If it rejects nothing is acknowledged either, but the images lack writes; it may be tried again.
   */
  fence(): Promise<FenceResult> {
    if (this.#fencing === undefined) {
      const fencing = this.#receiver.fence();
      this.#fencing = fencing;
      fencing.catch(() => {
        if (this.#fencing === fencing) this.#fencing = undefined;
      });
    }
    return this.#fencing;
  }

  /**
   * Launches the standby if there is none; one that died while waiting, or cannot run the checkpoint, is
   * replaced. The replica and the checkpoint are not touched by that.
   * @throws StandbyError, VmGoneError
   */
  async ensureStandby(): Promise<void> {
    await this.#exclusively(async () => {
      if (this.#state === 'running' || this.#state === 'dropped') return;
      const standby = this.#standby;
      if (standby?.qmp.open && (standby === this.#loading || !isUseless(standby.fed, this.#prefix))) return;
      await this.#endStandby();
      await this.#launchStandby();
    });
  }

  /**
   * Runs the last committed epoch. `claim` is called with the process that is
   * about to run, before it can. A standby that ended without having run is
   * replaced; one that may have run is never started over the same replica again.
   * @param pagesWaitMs pages follow (see `early`): so long a source that is lost is waited for
   * @throws StandbyError
   */
  async run(claim: (standby: ProcessIdentity) => Promise<void>, pagesWaitMs?: number): Promise<Resumed> {
    const { epoch } = await this.fence();
    if (this.#mayHaveRun) throw this.#noCheckpointAnyMore(epoch);
    let failure: unknown;
    for (let attempt = 0; attempt < STANDBY_ATTEMPTS_MAX; attempt += 1) {
      try {
        await this.ensureStandby();
        const standby = this.#standby;
        if (standby === undefined) throw new StandbyError('the generation was dropped');
        this.#loading = standby;
        await claim(standby.vm.identity);
        if (pagesWaitMs !== undefined) await this.#expectPages(standby, pagesWaitMs);
        const loadMs = await this.#load(standby);
        this.#state = 'running';
        return { epoch, loadMs };
      } catch (error) {
        this.#loading = undefined;
        failure = error;
        const { logger } = this.#options;
        logger.error({ attempt, err: toHoldfastError(error).message, log: this.logPath }, 'no resume');
        // Whoever asked is told at once: it has the VM, which runs there again.
        if (toHoldfastError(error) instanceof NoSpaceError) throw error;
        if (this.#mayHaveRun) {
          await this.#exclusively(() => this.#endStandby()); // before anybody is told that it failed
          throw this.#noCheckpointAnyMore(epoch, error);
        }
      }
    }
    throw new StandbyError(`no standby resumed epoch ${epoch}: ${toHoldfastError(failure).message}`, {
      cause: failure,
      cure: `The replica is kept at ${this.ramPath}; QEMU's log is ${this.logPath}.`,
    });
  }

  /** After run(): the pages that follow; undefined if none do. */
  get early(): EarlyResume | undefined {
    return this.#early;
  }

  /** Ends the VM of a running generation, which cannot go on: its pages are lost. What it held is free then. */
  async killVm(): Promise<void> {
    if (this.#standby !== undefined) await reapVm(this.#standby.vm, this.session.ramBytes);
  }

  /** Pages that follow a VM have numbers: they must mean the same on both sides (native/postcopy/link_origin.cc). */
  async #checkPageSize(): Promise<void> {
    const { resumeEarly, pageSize } = this.session;
    if (resumeEarly === undefined) return;
    const { type, bsize } = await statfs(dirname(this.ramPath));
    const ours = type === HUGETLBFS_MAGIC ? bsize : TMPFS_PAGE_BYTES;
    if (ours === pageSize) return;
    throw new UnsupportedHostError(
      `a VM on pages of ${pageSize} bytes cannot be resumed early on pages of ${ours}: ` +
        `choose another --ram-dir, or migrate without --resume-early`,
    );
  }

  async #expectPages(standby: Standby, waitMs: number): Promise<void> {
    await this.#early?.close(); // of a standby that did not run
    this.#early = await EarlyResume.begin({
      pid: standby.vm.identity.pid,
      ramPath: this.ramPath,
      ramBytes: this.session.ramBytes,
      emptyAll: this.session.resumeEarly === 'now',
      origin: { receiver: this.#receiver },
      waitMs,
      log: this.#options.logger,
    });
  }

  /** A standby that ran, or may have, has written to the replica. */
  #noCheckpointAnyMore(epoch: number, cause?: unknown): StandbyError {
    return new StandbyError(
      `the standby may have run from epoch ${epoch} before it failed; its replica is no checkpoint any more`,
      { cause, cure: `The replica is kept at ${this.ramPath}; QEMU's log is ${this.logPath}.` },
    );
  }

  /**
   * After run(): the guest's writes, which wait since it resumed, go to the images from now on. Idempotent.
   * @throws DiskError; it may be tried again
   */
  async activateDisks(): Promise<void> {
    if (this.#disks === undefined) return;
    await this.#options.retireDisks(this.#disks);
    await this.#standby?.disks?.activate();
  }

  /** Sockets of the standby's disk servers, by which they are found again. */
  get diskSockets(): readonly string[] {
    return this.#standby?.disks?.sockets ?? [];
  }

  /** Frees what only a backup needs: the replica is the VM's RAM now. */
  endReceiving(): Promise<void> {
    this.#receivingEnded ??= this.#endReceiving();
    return this.#receivingEnded;
  }

  async #endReceiving(): Promise<void> {
    await this.#early?.close();
    this.#early = undefined;
    await this.#receiver.closeSession();
    await this.#receiver.close();
    await this.#disks?.letGo();
  }

  /** Repeats the guest's announcement, and makes the standby an ordinary VM: one that can be migrated with its RAM. */
  async announce(): Promise<void> {
    const standby = this.#standby;
    if (!standby?.qmp.open) return;
    await announceSelf(standby.qmp);
    await restoreMigrationCapabilities(standby.qmp, this.#capabilitiesBefore);
  }

  /** Removes all of it. A running generation is only let go of: its VM stays. */
  async drop(): Promise<void> {
    if (this.#state === 'running') {
      await this.#standby?.qmp.close();
      return;
    }
    if (this.#state === 'dropped') return;
    this.#state = 'dropped';
    await this.#exclusively(() => this.#endStandby()); // also one that is being launched right now
    await this.#early?.close();
    await this.#receiver.close();
    await this.#disks?.letGo();
    await rm(this.ramPath, { force: true });
    await rm(this.#dir, { recursive: true, force: true });
  }

  /** Settles when no standby is being launched or ended, as far as it was asked for. */
  async idle(): Promise<void> {
    await this.#queue;
  }

  /** After the VM of a running generation has ended. */
  async removeFiles(): Promise<void> {
    await this.endReceiving();
    await this.#standby?.qmp.close();
    await this.#standby?.relays.end();
    await this.#standby?.disks?.end();
    await rm(this.ramPath, { force: true });
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #launchStandby(): Promise<void> {
    if (this.#state === 'dropped') return;
    const { standby } = this.session;
    const { qemu, replacements, logger } = this.#options;
    this.#launches += 1;
    const incomingPath = join(this.#dir, `incoming-${this.#launches}.sock`);
    const disks = this.#standbyDisks();
    const { vm, relays } = await launchStandby({
      spec: standby,
      qemu,
      replacements: [...standby.replacements, ...replacements],
      ramPath: this.ramPath,
      loads: 'composite',
      disks,
      dir: this.#dir,
      launch: this.#launches,
      qmpPath: this.qmpPath,
      logPath: this.logPath,
      log: logger,
    });
    const launched: Standby = { vm, qmp: vm.qmp, relays, disks, incomingPath, fed: 'starting' };
    this.#standby = launched;
    void vm.exited.then((exit) => {
      if (this.#standby !== launched) return; // ended by us
      if (launched.fed === 'under-way' || typeof launched.fed === 'number') this.#fedLosses += 1;
      this.#options.onStandbyExit(`QEMU (process ${vm.pid}) ended with ${exitText(exit)}`);
    });
    refuseOlderQemu(standby.qemuVersion, versionText(vm.qmp.greeting.version));
    this.#capabilitiesBefore = await prepareIncoming(vm.qmp, incomingPath);
    launched.fed = 'nothing';
    this.#keepFed();
  }

  #onPrefix(prefix: number): void {
    if (prefix === this.#prefix) return;
    this.#prefix = prefix;
    this.#fedLosses = 0;
    this.#keepFed();
  }

  /** Beside everything else: where it fails a takeover writes all, or replaces the standby. */
  #keepFed(): void {
    const standby = this.#standby;
    if (standby === undefined || this.#loading !== undefined || this.#state !== 'ready') return;
    const step = feedStep({ prefix: this.#prefix, fed: standby.fed, losses: this.#fedLosses });
    if (step === 'feed') void this.#feed(standby);
    if (step === 'replace') void this.#replaceStandby();
  }

  async #feed(standby: Standby): Promise<void> {
    standby.fed = 'under-way';
    let fed: Fed;
    try {
      const { prefix } = await this.#receiver.feedStandby(standby.incomingPath);
      fed = prefix > 0 ? prefix : 'nothing';
    } catch (error) {
      if (standby !== this.#standby) return; // ended by us
      const { logger } = this.#options;
      fed = 'spoiled';
      this.#fedLosses += 1;
      logger.warn({ err: toHoldfastError(error).message }, 'the standby has no prefix ahead of a takeover');
    }
    if (standby.fed !== 'under-way') return; // a takeover was there meanwhile
    standby.fed = fed;
    if (fed !== 'nothing') this.#keepFed(); // there may be another prefix by now, or no use in this one
  }

  async #replaceStandby(): Promise<void> {
    this.#options.logger.info(
      { prefix: this.#prefix },
      'the standby cannot load this prefix any more: another one',
    );
    try {
      await this.ensureStandby();
    } catch (error) {
      this.#options.onStandbyExit(`there is no other one yet: ${toHoldfastError(error).message}`);
    }
  }

  #standbyDisks(): StandbyDisks | undefined {
    const { standbyDisks, logger } = this.#options;
    if (this.#disks === undefined) return undefined;
    return standbyDisks?.({
      disks: this.#disks.disks,
      dir: this.#dir,
      launch: this.#launches,
      log: logger,
    });
  }

  async #load(standby: Standby): Promise<number> {
    const startMs = performance.now();
    standby.qmp.on('RESUME', () => {
      this.#mayHaveRun = true;
    });
    const running = waitRunning(standby.qmp, { timeoutMs: RESUME_TIMEOUT_MS });
    running.catch(() => {}); // awaited below, after the write that may fail first
    const followClock = this.session.guestClockFollows === true;
    const { clockAdvancedMs } = await this.#writeState(standby, followClock);
    if (followClock) {
      const { logger } = this.#options;
      if (clockAdvancedMs !== undefined) logger.info({ clockAdvancedMs }, "the guest's clock goes on");
      else logger.warn({}, "the guest's clock goes on from where the checkpoint was taken");
    }
    try {
      await running;
    } catch (error) {
      // A QEMU that is still there may be running, or about to: only a dead one has certainly not run.
      if (await isAlive(standby.vm.identity)) this.#mayHaveRun = true;
      throw error;
    }
    return performance.now() - startMs;
  }

  async #writeState(standby: Standby, followClock: boolean): Promise<WrittenState> {
    try {
      return await this.#receiver.writeState(standby.incomingPath, { followClock });
    } catch (error) {
      standby.fed = 'spoiled';
      throw error;
    }
  }

  async #endStandby(): Promise<void> {
    const standby = this.#standby;
    this.#standby = undefined;
    if (standby === undefined) return;
    await killVm(standby.vm.identity);
    this.#receiver.endFeed();
    await standby.relays.end(); // the next standby's need their taps
    await standby.disks?.end();
    await standby.qmp.close();
  }

  /** Launching and ending standbys, one at a time. */
  #exclusively(work: () => Promise<void>): Promise<void> {
    const done = this.#queue.then(work);
    this.#queue = done.catch(() => {});
    return done;
  }
}
