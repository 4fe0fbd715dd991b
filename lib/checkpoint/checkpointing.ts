/**
 * Checkpoints of one running VM, onto disk, one after the other.
 *
 *   start ─ pre-flight ─ attach
 *   take ─ rounds: pages to a file while the VM runs ─ its images flushed ─ pause: what is left to staging,
 *          devices ─ the rest to the file ─ manifest, rename: it is a checkpoint ─ upkeep of older ones
 *   close ─ detach: the VM runs on, untracked
 *
 * The first one has all of RAM, the others what was written since the one before.
 */
import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import {
  CancelledError,
  DiskError,
  type HoldfastError,
  NoSpaceError,
  toHoldfastError,
  UnsupportedVmError,
} from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native, type RamMapping } from '../native.js';
import { NoGate } from '../output/gate.js';
import { GuestClock } from '../primary/guest-clock.js';
import { VmDriver } from '../primary/vm-driver.js';
import { QmpClient } from '../qmp/client.js';
import { describeVm, type MemoryBackend, type VmDescription } from '../vm/describe.js';
import { flushAhead } from '../vm/flush-ahead.js';
import type { ProcessIdentity } from '../vm/process.js';
import type { FinishedLayer, LayerCapture, LayerRound, NativeCheckpointer } from './binding.js';
import { catchUp } from './catch-up.js';
import type { Upkeep } from './chain.js';
import type { Claim } from './claims.js';
import { writeDeviceState } from './device-state.js';
import {
  beginCheckpoint,
  epochDir,
  listCheckpoints,
  nextEpoch,
  publishCheckpoint,
  writingDir,
} from './directory.js';
import { DiskOverlays } from './disk-overlays.js';
import type { Manifest } from './manifest.js';
import { type CheckpointSettings, type CheckpointSettingsInput, checkCheckpointSettings } from './options.js';
import { assertCheckpointable } from './preflight.js';
import { keepUp } from './upkeep.js';
import { enterAsWriter } from './writer.js';

export interface CheckpointingOptions extends CheckpointSettingsInput {
  /** QMP socket of the running VM; no other client may hold it. */
  readonly qmp: string;
  /**
   * Called in each pause, when the VM is captured, and waited for before it goes on: for whatever else has to be
   * of the same moment.
   */
  readonly whileStopped?: (epoch: number) => Promise<void>;
  readonly signal?: AbortSignal;
  readonly logger?: Logger;
}

/** One checkpoint; times in milliseconds. */
export interface CheckpointReport {
  readonly epoch: number;
  readonly path: string;
  /** All of RAM, or what was written since `parent`. */
  readonly full: boolean;
  readonly parent: number | null;
  /** In its file, with content. */
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** Written while the VM ran, before the pause. */
  readonly rounds: number;
  /** The VM stood still for so long: in it `stopMs`, `deviceMs`, `scanMs`, `copyMs`, `contMs`. */
  readonly pauseMs: number;
  readonly stopMs: number;
  readonly deviceMs: number;
  readonly scanMs: number;
  readonly copyMs: number;
  readonly contMs: number;
  readonly pausePages: number;
  /** In totalMs: memory and devices, and the copies of the disks. */
  readonly saveStateMs: number;
  readonly copyFileMs: number;
  /** From the begin until it could be restored. */
  readonly totalMs: number;
}

interface CheckpointingEvents {
  round: [LayerRound & { readonly epoch: number; readonly round: number }];
  taken: [CheckpointReport];
  /** Its disks' overlays are in their images again. */
  committed: [{ readonly epoch: number; readonly commitMs: number }];
  upkeep: [Upkeep];
  /** It goes on, but somebody should know. */
  warning: [HoldfastError];
}

type MappedBackend = MemoryBackend & { readonly mapping: RamMapping };

export class Checkpointing extends EventEmitter<CheckpointingEvents> implements AsyncDisposable {
  readonly #settings: CheckpointSettings;
  readonly #root: string;
  readonly #qmp: QmpClient;
  readonly #vm: VmDescription;
  readonly #ram: MappedBackend;
  readonly #overlays: DiskOverlays;
  readonly #engine: NativeCheckpointer;
  readonly #driver: VmDriver;
  readonly #scratchDir: string;
  readonly #claim: Claim;
  readonly #log: Logger;
  readonly #whileStopped: CheckpointingOptions['whileStopped'];
  readonly #cancelled = new AbortController();
  #queue: Promise<unknown> = Promise.resolve();
  /** What goes on behind the checkpoints; never rejects. */
  #committing: Promise<void> = Promise.resolve();
  #upkeep: Promise<void> = Promise.resolve();
  #operatorPaused = false;
  /** Of the last checkpoint of this run; undefined: the next one has to be a full one. */
  #parent: number | undefined;
  #prefix: Buffer = Buffer.alloc(0);
  /** None was taken, or the machine was reset since: what it holds may have been rewritten. */
  #prefixIsStale = true;
  /** A pause was to take it, and it is not here yet. */
  #prefixIsUnread = false;
  #closing: Promise<void> | undefined;

  private constructor(parts: {
    settings: CheckpointSettings;
    root: string;
    qmp: QmpClient;
    vm: VmDescription;
    ram: MappedBackend;
    engine: NativeCheckpointer;
    scratchDir: string;
    claim: Claim;
    log: Logger;
    leftStopped: boolean;
    whileStopped: CheckpointingOptions['whileStopped'];
  }) {
    super();
    this.#settings = parts.settings;
    this.#root = parts.root;
    this.#qmp = parts.qmp;
    this.#vm = parts.vm;
    this.#ram = parts.ram;
    this.#overlays = new DiskOverlays(parts.qmp);
    this.#engine = parts.engine;
    this.#scratchDir = parts.scratchDir;
    this.#claim = parts.claim;
    this.#log = parts.log;
    this.#whileStopped = parts.whileStopped;
    this.#driver = new VmDriver({
      qmp: parts.qmp,
      gate: new NoGate(),
      deviceState: 'xen-save',
      guestClock: new GuestClock({ setting: 'follow', vm: parts.vm, native, log: parts.log }),
      scratchDir: parts.scratchDir,
      stoppedByUs: parts.leftStopped,
      onOperator: (change) => {
        this.#operatorPaused = change === 'paused';
      },
    });
    parts.qmp.on('RESET', () => {
      this.#prefixIsStale = true;
    });
  }

  /**
   * Attaches to a running VM. What an earlier run was killed in is tidied up: files that are no checkpoint, a
   * userfaultfd in QEMU, a VM that stands still by its word.
   *
   * @throws ConfigError, UnsupportedHostError, UnsupportedVmError (nothing was touched), InjectError,
   *         RamMappingError, QmpConnectionError, DiskError
   */
  static async start(options: CheckpointingOptions): Promise<Checkpointing> {
    const { qmp: qmpPath, whileStopped, signal, logger, ...input } = options;
    const settings = checkCheckpointSettings(input);
    const log = logger ?? NOTHING_LOGGED;
    signal?.throwIfAborted();
    const root = resolve(settings.dir);
    const qmp = await QmpClient.connect(qmpPath, { timeoutMs: 5_000, sendWithFd: native.sendWithFd, signal });
    let claim: Claim | undefined;
    let engine: NativeCheckpointer | undefined;
    let isTrackerOurs = false;
    let madeDir: string | undefined;
    try {
      const pid = native.peerPid(qmp.socketFd);
      const vm = await describeVm({ qmp, pid, findRamMappings: native.findRamMappings });
      assertCheckpointable(vm);
      const scratch = join(settings.runDir, scratchNameOf(vm.process));
      // Only a killed run leaves it. A tracker alone may be a migration's, or a primary's: then another host may
      // run the VM.
      const isLeftByUs = existsSync(scratch);
      const found = await qmp.execute('query-status');
      if (!found.running && !isLeftByUs) throw notRunning(found.status);
      // It has been shown that there is exactly one backend, and that it is mapped.
      const ram = vm.memoryBackends[0] as MappedBackend;
      claim = await enterAsWriter(root);
      if (!isLeftByUs) madeDir = scratch;
      await mkdir(scratch, { recursive: true, mode: 0o700 });
      const { running, status } = await qmp.execute('query-status');
      engine = new native.Checkpointer({
        pid,
        ram: ram.mapping,
        stagingBytesMax: settings.stagingMiB * (1 << 20),
        copyThreads: settings.copyThreads,
      });
      const attached = await engine.attach();
      isTrackerOurs = !attached.adopted;
      log.info({ pid, adopted: attached.adopted, injectMs: attached.injectMs }, 'attached to the VM');
      // A stopped VM is one that a killed run of ours left stopped.
      const ours = attached.adopted && isLeftByUs && status !== 'io-error';
      if (!running && !ours) throw notRunning(status);
      const checkpointing = new Checkpointing({
        ...{ settings, root, qmp, vm, ram, engine, scratchDir: scratch, claim, log },
        whileStopped,
        leftStopped: !running,
      });
      if (!running) {
        await checkpointing.#driver.resume();
        // What was found has told all that it can: a VM that stands still from here on does so by another's word.
        isTrackerOurs = true;
        madeDir = scratch;
      }
      const left = await checkpointing.#overlays.attach(vm);
      if (left > 0) log.warn({ left }, 'committed the overlays of a run that was killed');
      if (signal?.aborted) checkpointing.cancel();
      signal?.addEventListener('abort', () => checkpointing.cancel(), { once: true });
      return checkpointing;
    } catch (error) {
      // Until it runs, what was found tells the next run why the VM stands still.
      if (isTrackerOurs) await engine?.detach().catch(() => {});
      await engine?.close();
      if (madeDir !== undefined) await rm(madeDir, { recursive: true, force: true });
      await claim?.release();
      await qmp.close();
      throw toHoldfastError(error);
    }
  }

  get vm(): VmDescription {
    return this.#vm;
  }

  /** Settles when the connection to QEMU has ended. */
  get vmGone(): Promise<unknown> {
    return this.#qmp.closed;
  }

  /**
   * Takes one checkpoint. Settles when it can be restored; older ones are merged and removed behind it.
   * If it rejects the VM runs on, and the checkpoints before are as they were.
   * @throws NoSpaceError, CancelledError, QmpError, QmpConnectionError, VmGoneError, SystemError, UnsupportedVmError
   */
  take(): Promise<CheckpointReport> {
    const done = this.#queue.then(() => this.#take());
    this.#queue = done.catch(() => {});
    return done;
  }

  /** Settles when nothing is left to do behind the checkpoints. Never rejects. */
  async idle(): Promise<void> {
    await this.#queue;
    await Promise.all([this.#committing, this.#upkeep]);
  }

  /** What is being written is given up, unless it is complete. */
  cancel(): void {
    this.#cancelled.abort();
    this.#engine.cancelWrites();
  }

  /** Gives up what is under way, and lets go of the VM, which runs on. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    this.cancel();
    await this.idle();
    await this.#driver.idle();
    await this.#engine.detach().catch((error: unknown) => {
      this.#log.error({ err: toHoldfastError(error).message }, 'detaching from QEMU');
    });
    await this.#engine.close();
    await this.#qmp.close();
    await rm(this.#scratchDir, { recursive: true, force: true });
    await this.#claim.release();
  }

  async #take(): Promise<CheckpointReport> {
    this.#assertMayPause();
    const startMs = performance.now();
    await this.#committing;
    await this.#overlays.commit(); // what had failed there
    const epoch = nextEpoch(await listCheckpoints(this.#root));
    try {
      const report = await this.#write(epoch, startMs);
      await this.#engine.commit();
      this.#parent = epoch;
      this.emit('taken', report);
      this.#commitDisks(epoch);
      this.#keepUp();
      return report;
    } catch (error) {
      await this.#giveUp(epoch);
      throw withPlace(toHoldfastError(error, `checkpoint ${epoch}`), this.#root);
    }
  }

  async #write(epoch: number, startMs: number): Promise<CheckpointReport> {
    const full = this.#parent === undefined;
    const parent = this.#parent ?? null;
    const dir = await beginCheckpoint(this.#root, epoch);
    const ramPath = join(dir, 'ram');
    await this.#engine.begin({ ramPath, full });
    await this.#overlays.prepare();
    const rounds = await this.#catchUp(epoch);
    this.#assertMayPause();
    const paused = await this.#pause(epoch);
    const takenAt = new Date();
    const { device: saved, prefix } = paused;
    let finished: FinishedLayer | undefined;
    let contMs: number;
    try {
      await this.#whileStopped?.(epoch);
      if (!paused.captured.staged) {
        // No torn pages: what is read where it lies must not change meanwhile.
        finished = await this.#engine.finish({ indexPath: join(dir, 'ram.index') });
      }
    } finally {
      contMs = await this.#driver.resume();
    }
    const pauseMs = (this.#driver.lastResumeMs ?? 0) - paused.pauseStartMs;
    if (prefix !== undefined) this.#prefix = (await readFile(prefix.path)).subarray(0, prefix.bytes);
    this.#prefixIsUnread = false;
    const device = await writeDeviceState({
      prefix: this.#prefix,
      state: await readFile(saved.path),
      skipBytes: saved.skipBytes,
      path: join(dir, 'device'),
    });
    finished ??= await this.#engine.finish({ indexPath: join(dir, 'ram.index') });
    const savedMs = performance.now();
    const disks = await this.#overlays.copyTo(dir);
    const copyFileMs = performance.now() - savedMs;
    this.#throwIfCancelled();
    await publishCheckpoint(this.#root, {
      epoch,
      parent,
      takenAt: takenAt.toISOString(),
      pauseMs,
      vm: vmOf(this.#vm, this.#ram),
      ram: {
        file: 'ram',
        index: 'ram.index',
        digest: finished.digest,
        pages: finished.pages,
        zeroPages: finished.zeroPages,
      },
      device: { file: 'device', ...device },
      disks: [...disks],
    });
    return {
      epoch,
      path: epochDir(this.#root, epoch),
      full,
      parent,
      pages: finished.pages,
      zeroPages: finished.zeroPages,
      bytes: finished.pages * this.#ram.mapping.pageSize,
      rounds,
      pauseMs,
      stopMs: paused.stopMs,
      deviceMs: paused.deviceMs,
      scanMs: paused.captured.scanMs,
      copyMs: paused.captured.copyMs,
      contMs,
      pausePages: paused.captured.dirtyPages,
      saveStateMs: savedMs - startMs,
      copyFileMs,
      totalMs: performance.now() - startMs,
    };
  }

  /** The VM stands still when this settles, and is as it was when it rejects. */
  async #pause(epoch: number) {
    const takePrefix = this.#prefixIsStale;
    this.#prefixIsStale = false; // unless it is reset from here on
    this.#prefixIsUnread = takePrefix;
    try {
      return await this.#driver.pause<LayerCapture>({
        epoch,
        installGate: false,
        takePrefix,
        capture: () => this.#engine.capture(),
        switchDisks: () => this.#overlays.switchOver(),
      });
    } catch (error) {
      if (this.#driver.isStoppedByUs) {
        if (this.#qmp.open) await this.#driver.resume();
      } else {
        this.#assertMayPause(); // perhaps that is why
      }
      throw error;
    }
  }

  async #catchUp(epoch: number): Promise<number> {
    return await catchUp({
      stagingBytesMax: this.#settings.stagingMiB * (1 << 20),
      round: async (number) => {
        const round = await this.#engine.round();
        this.emit('round', { ...round, epoch, round: number });
        return round.dirtyPages * this.#ram.mapping.pageSize;
      },
      flush: () =>
        flushAhead(this.#overlays.flushedFiles, {
          signal: this.#cancelled.signal,
          dropped: this.#prefixIsStale ? this.#overlays.cachedFiles : [],
        }),
    });
  }

  async #giveUp(epoch: number): Promise<void> {
    if (this.#prefixIsUnread) this.#prefixIsStale = true;
    this.#prefixIsUnread = false;
    await this.#engine.giveUp().catch(() => {}); // closed
    this.#commitDisks(undefined);
    await rm(writingDir(this.#root, epoch), { recursive: true, force: true }).catch(() => {});
  }

  /** The guest writes to its images again, soon. */
  #commitDisks(epoch: number | undefined): void {
    const work = async (): Promise<void> => {
      const beganMs = performance.now();
      try {
        await this.#commitOverlays();
        if (epoch !== undefined) this.emit('committed', { epoch, commitMs: performance.now() - beganMs });
      } catch (error) {
        this.emit('warning', toHoldfastError(error));
      }
    };
    this.#committing = this.#committing.then(work);
  }

  /** @throws DiskError if it was not done, also because QEMU ended before or meanwhile */
  async #commitOverlays(): Promise<void> {
    let failure: unknown;
    try {
      if (this.#qmp.open) return await this.#overlays.commit();
    } catch (error) {
      if (this.#qmp.open) throw error;
      failure = error;
    }
    const left = await this.#overlays.left();
    if (left.length > 0) throw notCommitted(left, failure);
  }

  #keepUp(): void {
    const { keep } = this.#settings;
    const work = async (): Promise<void> => {
      try {
        await keepUp({
          root: this.#root,
          keep,
          native,
          log: this.#log,
          onStep: (step) => this.emit('upkeep', step),
          signal: this.#cancelled.signal,
        });
      } catch (error) {
        if (error instanceof CancelledError) return;
        this.emit('warning', withPlace(toHoldfastError(error, 'merging older checkpoints'), this.#root));
      }
    };
    this.#upkeep = this.#upkeep.then(work);
  }

  #assertMayPause(): void {
    this.#throwIfCancelled();
    if (this.#operatorPaused) throw notRunning('paused');
  }

  #throwIfCancelled(): void {
    if (this.#cancelled.signal.aborted) throw new CancelledError('the checkpoint was cancelled');
  }
}

export const vmOf = (vm: VmDescription, ram: MappedBackend): Manifest['vm'] => ({
  name: vm.name ?? '',
  qemuVersion: vm.qemuVersion,
  binary: vm.binary,
  argv: [...vm.argv],
  cwd: vm.cwd,
  machineType: vm.machineType,
  accelerator: vm.accelerator,
  vcpus: vm.vcpus,
  ramBytes: ram.sizeBytes,
  pageSize: ram.mapping.pageSize,
  ramId: ram.id,
});

/** Short, for QEMU reads its path byte by byte; and the same again, so that a killed run leaves nothing behind. */
const scratchNameOf = ({ pid, startTicks }: ProcessIdentity): string =>
  `c${createHash('sha256').update(`${pid} ${startTicks}`).digest('base64url').slice(0, 10)}`;

const notRunning = (status: string): UnsupportedVmError =>
  new UnsupportedVmError(`the VM does not run (${status}): a checkpoint would start it`, {
    cure: "Resume it first (QMP cont). If a migration or a daemon of Holdfast's that ended left it so, give that command again instead, which asks the other side: the VM may run there.",
  });

const notCommitted = (overlays: readonly string[], cause: unknown): DiskError =>
  new DiskError(
    `QEMU ended, or its monitor did, before ${overlays.join(', ')} was committed: what the guest wrote since the pause is only there`,
    {
      cause,
      cure: 'If QEMU has ended: `qemu-img commit` it, and remove it, before the VM is started again (docs/checkpoints.md, Disks). If it runs, the next `holdfast checkpoint` commits it.',
      details: { overlays },
    },
  );

const withPlace = (error: HoldfastError, root: string): HoldfastError =>
  error instanceof NoSpaceError
    ? new NoSpaceError(error.message, {
        cause: error,
        cure: `Make room where ${root} lies, or keep fewer checkpoints (--keep). Those that are there stay whole.`,
        details: error.details,
      })
    : error;
