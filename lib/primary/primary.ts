/**
 * The primary's effects: carries out what machine.ts decides, and reports back
 * as events. One Primary protects one running VM.
 *
 *   Primary.start ─ pre-flight ─ inject ─► machine ─► connect, base sync, epochs …
 *        machine.step ──actions──► effects here ──events──► machine.step
 */
import { EventEmitter } from 'node:events';
import { mkdir, rm, statfs } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import type { ControlMessage, PageDisk, SessionMessage } from '../control/messages.js';
import { DiskSet } from '../disk/disk-set.js';
import type { MovedDisks } from '../disk/move-disks.js';
import { reviveDiskServers } from '../disk/revive-servers.js';
import {
  CancelledError,
  DiskError,
  type HoldfastError,
  isFullErrno,
  NoSpaceError,
  NotProtectedError,
  PeerLostError,
  toHoldfastError,
  UnsupportedVmError,
} from '../errors.js';
import { TMPFS_MAGIC } from '../file-systems.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { agreedPoint, type FallBackPoint } from '../migrate/fall-back-point.js';
import { native, type PrimaryEngine, type RamMapping } from '../native.js';
import type { FaultCost, ServeProgress } from '../native-early.js';
import { chooseGate } from '../output/choose-gate.js';
import { type GateStats, isInQemu, type OutputGate } from '../output/gate.js';
import { relaysOf, type VmRelay } from '../output/relay-files.js';
import { QmpClient } from '../qmp/client.js';
import { isLocalPeer, usableSenders } from '../send/sender-availability.js';
import { BASE_STRATEGY, type SenderExplanation, type UnavailableSenders } from '../send/sender-choice.js';
import { type VmRecord, VmRecords } from '../state/records.js';
import type { MemoryBackend, VmDescription } from '../vm/describe.js';
import type { ProcessIdentity } from '../vm/process.js';
import { BackupLink, SupersededError } from './backup-link.js';
import { fixedConvergence, type RoundStats } from './convergence.js';
import type { CopyProgress } from './copy-progress.js';
import { Dial } from './dial.js';
import type { DiskPlan } from './disk-plan.js';
import { type DisksCopied, type PrimaryDiskStatus, PrimaryDisks } from './disks.js';
import { EpochEffects } from './epoch-effects.js';
import type { EpochReport, EpochSummary, FinalEpoch } from './epoch-report.js';
import { examineVm } from './examine-vm.js';
import { followsOnStandby, GuestClock, type GuestClockStatus } from './guest-clock.js';
import { recordOf, scratchName } from './identity.js';
import { type IoErrorStop, IoErrorWatch, stopCure, stopText } from './io-error-watch.js';
import {
  type AfterRound,
  type Failure,
  initialState,
  type Outcome,
  type PrimaryAction,
  type PrimaryEvent,
  type PrimaryState,
  step,
} from './machine.js';
import {
  checkPrimarySettings,
  type PrimarySettings,
  type PrimarySettingsInput,
  parseHostPort,
} from './options.js';
import { describeOutcome, outcomeError } from './outcome.js';
import type { PacingExplanation } from './pacing-report.js';
import { awaitIndex, beginIndex, type DisksIndexed, diskPagesOf, pageDisksOf } from './page-disks.js';
import { QemuEnd } from './qemu-end.js';
import { servePages } from './serve-pages.js';
import { standbySpecOf } from './standby-spec.js';
import { prefixFile, VmDriver } from './vm-driver.js';

/** QEMU writes 5 KB to a few hundred KB of device state; ROM blocks come on top in the prefix. */
const DEVICE_BYTES_MAX = 64 << 20;
/** A round of this many pages fits into a pause of a few milliseconds. */
const BASE_ROUND_PAGES_SMALL = 4_096;
/** Epochs an iterator may fall behind before the oldest are dropped. */
const ITERATOR_EPOCHS_MAX = 1_024;

export interface PrimaryOptions extends PrimarySettingsInput {
  /** Pre-shared key, at least 16 bytes; the same on both sides. */
  readonly key: Uint8Array;
  /** QMP socket of the running VM; no other client may hold it. */
  readonly qmp: string;
  /** Ends protection as detach() does. */
  readonly signal?: AbortSignal;
  readonly logger?: Logger;
}

export interface PrimaryStatus {
  readonly role: 'primary';
  readonly name: string;
  /** connecting, syncing, protected, waiting (backup lost), ended. */
  readonly phase: PrimaryState['phase']['name'];
  /** Why, in `waiting` and `ended`. */
  readonly reason?: string;
  readonly vm: {
    readonly id: string;
    readonly name: string;
    readonly pid: number;
    readonly qmp: string;
    readonly ramBytes: number;
    readonly vcpus: number;
    readonly running: boolean;
    /** QEMU has stopped it by itself: why, and what to do. */
    readonly stopReason?: string;
  };
  readonly backup: string;
  readonly term: number;
  readonly epoch: number;
  readonly committedEpoch: number;
  readonly outputHeld: boolean;
  /** What holds the output, whether it tells when output waits, and, where it counts, what it counts. */
  readonly gate: { readonly kind: OutputGate['kind']; readonly seesOutput: boolean } & Partial<GateStats>;
  readonly guestClock: GuestClockStatus;
  readonly baseRounds: number;
  /** Absent for a VM without disks. */
  readonly disks?: readonly PrimaryDiskStatus[];
  /** While the disks are copied to a backup. */
  readonly diskCopy?: CopyProgress;
  readonly settings: Omit<PrimarySettings, 'runDir' | 'replace' | 'name' | 'backup'>;
  /** How the latest epochs were sent, and why so. */
  readonly sender: SenderExplanation;
  /** When epochs begin, why so, and whether the budgets are kept. */
  readonly pacing: PacingExplanation;
  readonly epochs: number;
  readonly distributions: EpochSummary;
}

/** A VM that is to move. */
export interface Moving {
  /** When its rounds end. */
  readonly afterRound: (pageBytes: number) => AfterRound;
  /** Whether it may run there before its memory is there: never, when `afterRound` says so, at once. */
  readonly resumeEarly: ResumeEarly;
  /** For so long either side waits for a cut link, while pages are still to come. */
  readonly earlyWaitMs: number;
  /** Where the backup has checkpoints of it, to go on from the newest should this host be lost meanwhile. */
  readonly fallback?: string | undefined;
  /** Pages on a disk that both hosts have are not sent. */
  readonly skipDiskPages: boolean;
}

export type ResumeEarly = 'never' | 'auto' | 'now';

export interface RunsEarly {
  readonly term: number;
  /** By this host's clock: from the stop here until it was heard that it runs there. */
  readonly downtimeMs: number;
  readonly pages: number;
}

interface PrimaryEvents {
  epoch: [EpochReport];
  round: [RoundStats];
  /** Before the first round of a migration: for so many milliseconds the VM stood still. */
  'prefix-ahead': [number];
  /** As asked: the backup would go on from this checkpoint. */
  fallback: [FallBackPoint];
  /** The VM runs there, and lacks so many pages of here. */
  'runs-early': [RunsEarly];
  /** The last epoch before a hand-over is with the backup. */
  final: [FinalEpoch];
  /** What a session is going to send of each disk. */
  'disk-plan': [readonly DiskPlan[]];
  /** Some times a second, while that is done. */
  'disk-copy': [CopyProgress];
  'disks-copied': [DisksCopied];
  /** Before the first round of a migration that skips pages on disks. */
  'disks-indexed': [DisksIndexed];
  /** Protection goes on, but somebody should know. */
  warning: [HoldfastError];
  /** QEMU has stopped the VM, for a disk that failed. */
  'vm-stopped': [IoErrorStop];
  /** … and it runs again. */
  'vm-goes-on': [];
  phase: [PrimaryStatus];
  ended: [Outcome];
}

/** The backend that holds guest RAM, with its mapping in QEMU. */
type MappedBackend = MemoryBackend & { readonly mapping: RamMapping };

export class Primary extends EventEmitter<PrimaryEvents> implements AsyncDisposable {
  readonly #settings: PrimarySettings;
  readonly #key: Uint8Array;
  readonly #qmp: QmpClient;
  readonly #vm: VmDescription;
  readonly #ram: MappedBackend;
  readonly #vmId: string;
  readonly #process: ProcessIdentity;
  readonly #qemuEnd: QemuEnd;
  readonly #records: VmRecords;
  readonly #engine: PrimaryEngine;
  readonly #gate: OutputGate;
  readonly #relays: readonly VmRelay[];
  readonly #servers: DiskSet | undefined;
  readonly #moved: MovedDisks | undefined;
  readonly #disks: PrimaryDisks | undefined;
  readonly #scratchDir: string;
  readonly #driver: VmDriver;
  readonly #guestClock: GuestClock;
  readonly #log: Logger;
  readonly #isMigration: boolean;
  /** Pages on these need not travel; undefined: all do. */
  readonly #pageDisks: readonly PageDisk[] | undefined;
  /** Those that the backup has, and that are being indexed. */
  #indexed: readonly string[] = [];
  readonly #moving: Moving | undefined;
  readonly #epochs: EpochEffects;
  readonly #ioErrors: IoErrorWatch;
  readonly #ended: { promise: Promise<Outcome>; resolve: (outcome: Outcome) => void };
  readonly #abortConnect = new AbortController();
  #state: PrimaryState;
  /** Of the first attempt to connect. */
  #dial: Dial | undefined;
  readonly #reached: Promise<boolean>;
  /** The firmware's memory, which is taken while the backup is reached; never rejects. */
  #prefixAhead: Promise<void> = Promise.resolve();
  #link: BackupLink | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  #finishing: Promise<void> | undefined;
  #faultCost: FaultCost | undefined;
  #fallback: FallBackPoint | undefined;

  private constructor(parts: {
    settings: PrimarySettings;
    key: Uint8Array;
    qmp: QmpClient;
    vm: VmDescription;
    ram: MappedBackend;
    record: VmRecord;
    records: VmRecords;
    engine: PrimaryEngine;
    gate: OutputGate;
    relays: readonly VmRelay[];
    servers: DiskSet | undefined;
    moved: MovedDisks | undefined;
    scratchDir: string;
    unavailable: UnavailableSenders;
    log: Logger;
    leftStopped: boolean;
    operatorPaused: boolean;
    moving: Moving | undefined;
    afterRound: AfterRound | undefined;
    pageDisks: readonly PageDisk[] | undefined;
    ioError: boolean;
    dial: Dial | undefined;
  }) {
    super();
    this.#settings = parts.settings;
    this.#key = parts.key;
    this.#qmp = parts.qmp;
    this.#qemuEnd = new QemuEnd(parts.qmp);
    this.#vm = parts.vm;
    this.#ram = parts.ram;
    this.#vmId = parts.record.vmId;
    this.#process = parts.record.process;
    this.#records = parts.records;
    this.#engine = parts.engine;
    this.#gate = parts.gate;
    this.#relays = parts.relays;
    this.#servers = parts.servers;
    this.#moved = parts.moved;
    if (parts.servers !== undefined) {
      parts.servers.onLost((reason) => this.#dispatch({ type: 'backup-lost', reason: reason.message }));
      this.#disks = new PrimaryDisks({
        servers: parts.servers,
        engine: parts.engine,
        log: parts.log,
        onDue: () => this.#dispatch({ type: 'tick', trigger: 'disk' }),
        onPlan: (plans) => this.emit('disk-plan', plans),
        onCopy: (progress) => this.emit('disk-copy', progress),
        onDiskError: (error) => this.#warnOfDisk(error),
      });
    }
    this.#scratchDir = parts.scratchDir;
    this.#log = parts.log;
    this.#dial = parts.dial;
    this.#reached = parts.dial?.reached ?? Promise.resolve(false);
    this.#moving = parts.moving;
    this.#isMigration = parts.moving !== undefined;
    this.#pageDisks = parts.pageDisks;
    let resolve: (outcome: Outcome) => void = () => {};
    const promise = new Promise<Outcome>((settle) => {
      resolve = settle;
    });
    this.#ended = { promise, resolve };
    this.#guestClock = new GuestClock({
      // Nothing is to be made up for here: a migrated VM resumes on the other side.
      setting: this.#isMigration ? 'qemu' : parts.settings.guestClock,
      vm: parts.vm,
      native,
      log: parts.log,
    });
    this.#driver = new VmDriver({
      qmp: parts.qmp,
      gate: parts.gate,
      deviceState: parts.settings.deviceState,
      guestClock: this.#guestClock,
      disks: this.#disks,
      scratchDir: parts.scratchDir,
      stoppedByUs: parts.leftStopped,
      onOperator: (change) => this.#dispatch({ type: change === 'paused' ? 'vm-paused' : 'vm-resumed' }),
    });
    this.#epochs = new EpochEffects({
      settings: parts.settings,
      engine: parts.engine,
      driver: this.#driver,
      gate: parts.gate,
      disks: this.#disks,
      pageSize: parts.ram.mapping.pageSize,
      unavailable: parts.unavailable,
      log: parts.log,
      state: () => this.#state,
      qmpIsOpen: () => this.#qmp.open,
      dispatch: (event) => this.#dispatch(event),
      fail: (error, context) => this.#fail(error, context),
      lostOnBulk: (error, context) => this.#lostOnBulk(error, context),
      onReport: (report) => this.emit('epoch', report),
      onFinal: (final) => this.emit('final', final),
    });
    this.#ioErrors = new IoErrorWatch({
      qmp: parts.qmp,
      drives: parts.vm.drives,
      idle: () => this.#driver.idle(),
      log: parts.log,
      onStopped: (stop) => this.#stoppedItself(stop),
      onRoom: () => this.#dispatch({ type: 'disk-has-room' }),
      onGoesOn: () => this.#goesOn(),
    });
    this.#state = initialState(
      {
        onBackupLost: parts.settings.onBackupLost,
        retryMs: parts.settings.retryMs,
        captureFailuresMax: 3,
        purpose:
          parts.afterRound !== undefined
            ? {
                kind: 'migrate',
                afterRound: parts.afterRound,
                atOnce: parts.moving?.resumeEarly === 'now',
              }
            : {
                kind: 'protect',
                convergence: fixedConvergence({
                  pagesSmall: BASE_ROUND_PAGES_SMALL,
                  roundsMax: parts.settings.baseRoundsMax,
                }),
              },
      },
      {
        term: parts.record.term,
        hasDisks: parts.servers !== undefined,
        gateAdopted: parts.gate.installed,
        operatorPaused: parts.operatorPaused,
        ioError: parts.ioError,
        vmStopped: parts.leftStopped,
      },
    );
  }

  /**
   * Attaches to a running VM and begins to protect it. Settles when the VM has
   * passed the pre-flight checks and its tracker is armed; `protectedOnce()`
   * tells when the first checkpoint stands on the backup.
   *
   * What an earlier, killed daemon left in QEMU (userfaultfd, output gate) is
   * adopted, with the output it holds.
   *
   * @param moving for lib/migrate/migration.ts: the VM is to move.
   * @throws ConfigError, UnsupportedHostError, UnsupportedVmError (nothing was touched), InjectError,
   *         RamMappingError, QmpConnectionError
   */
  static async start(options: PrimaryOptions, moving?: Moving): Promise<Primary> {
    const { key, qmp: _qmp, signal, logger: _logger, ...input } = options;
    const settings = checkPrimarySettings(input);
    signal?.throwIfAborted();
    const dial = moving && new Dial(parseHostPort(settings.backup), key, settings.connectTimeoutMs);
    try {
      return await Primary.#attach(options, settings, moving, dial);
    } catch (error) {
      await dial?.close();
      throw error;
    }
  }

  static async #attach(
    { key, qmp: qmpPath, signal, logger }: PrimaryOptions,
    settings: PrimarySettings,
    moving: Moving | undefined,
    dial: Dial | undefined,
  ): Promise<Primary> {
    const unavailable = usableSenders(settings.sender, native.probeSenders());
    const log = logger ?? NOTHING_LOGGED;
    await reviveDiskServers(qmpPath, settings.runDir, log);
    const qmp = await QmpClient.connect(qmpPath, { timeoutMs: 5_000, sendWithFd: native.sendWithFd, signal });
    let engine: PrimaryEngine | undefined;
    let isTrackerOurs = false;
    let gate: OutputGate | undefined;
    let servers: DiskSet | undefined;
    try {
      const { vm, moved } = await examineVm(qmp, settings, log);
      // It has been shown that there is exactly one backend, and that it is mapped.
      const backend = vm.memoryBackends[0] as MappedBackend;
      const records = new VmRecords(settings.runDir, 'primary');
      const [movingTo, before] = await Promise.all([
        records.movingTo(vm.process),
        qmp.execute('query-status'),
      ]);
      if (movingTo !== undefined && !before.running) throw leftBehind(movingTo);
      const record = await recordOf(records, vm, qmpPath);
      const scratchDir = join(settings.runDir, scratchName(record.vmId));
      await mkdir(scratchDir, { recursive: true, mode: 0o700 });
      if ((await statfs(scratchDir)).type !== TMPFS_MAGIC) {
        log.warn(
          { runDir: settings.runDir },
          'the run directory is not on a tmpfs: pauses get longer by its disk',
        );
      }
      const relays = await relaysOf(vm);
      servers = await DiskSet.adopt({ vm, log });
      engine = new native.PrimaryEngine({
        pid: vm.process.pid,
        ram: backend.mapping,
        stagingBytesMax: settings.stagingMiB * (1 << 20),
        strategy: settings.sender === 'auto' ? BASE_STRATEGY : settings.sender,
        copyThreads: settings.copyThreads,
        disks: servers?.disks,
      });
      const choosing = chooseGate({ setting: settings.gate, vm, relays, qmp, native, log }).then((chosen) => {
        gate = chosen;
        return chosen;
      });
      const asking = qmp.execute('query-status');
      const attaching = engine.attach().then((attached) => {
        isTrackerOurs = !attached.adopted;
        return attached;
      });
      await Promise.allSettled([choosing, asking, attaching]); // should one fail, the others are undone
      const [chosen, { running, status }, attached] = [await choosing, await asking, await attaching];
      const adopted = chosen.installed;
      log.info(
        {
          pid: vm.process.pid,
          adopted: attached.adopted,
          injectMs: attached.injectMs,
          gateAdopted: adopted,
          gate: chosen.kind,
        },
        'attached to the VM',
      );
      const ioError = status === 'io-error';
      // A stopped VM is one that our own pause left stopped.
      const ours = (attached.adopted || adopted) && !ioError;
      if (moving !== undefined && !running && !ours && !ioError) throw paused();
      const primary = new Primary({
        settings,
        key,
        qmp,
        vm,
        ram: backend,
        record,
        records,
        engine,
        gate: chosen,
        relays,
        servers,
        moved,
        scratchDir,
        unavailable,
        log,
        leftStopped: !running && ours,
        operatorPaused: !running && !ours,
        moving,
        afterRound: moving?.afterRound(backend.mapping.pageSize),
        pageDisks: moving?.skipDiskPages === true ? await pageDisksOf(vm, servers?.disks ?? []) : undefined,
        ioError,
        dial,
      });
      primary.#listen(signal);
      if (ioError) void primary.#ioErrors.look();
      primary.#dispatch({ type: 'start' });
      return primary;
    } catch (error) {
      // One that was found tells the next command that this VM may have been handed over.
      if (isTrackerOurs) await engine?.detach().catch(() => {});
      await engine?.close();
      await servers?.close();
      await gate?.close();
      await qmp.close();
      throw toHoldfastError(error);
    }
  }

  /** Settles when protection has ended, with how. Never rejects. */
  get ended(): Promise<Outcome> {
    return this.#ended.promise;
  }

  /** The VM's disks that were moved to servers at the start, as `moveDisks` asks for; undefined: none. */
  get movedDisks(): MovedDisks | undefined {
    return this.#moved;
  }

  /** Of the pages that follow a VM which runs there already. */
  servingProgress(): ServeProgress {
    return this.#engine.serveProgress();
  }

  /** What the page faults over there have cost; undefined before all pages are there. */
  get faultCost(): FaultCost | undefined {
    return this.#faultCost;
  }

  /** From where the backup goes on should this host be lost while pages are to come, as agreed on. */
  get fallback(): FallBackPoint | undefined {
    return this.#fallback;
  }

  /** The VM may run on the backup: this side leaves it stopped, or its output held. */
  get mayRunThere(): boolean {
    return this.#state.mustHold;
  }

  /** Threads of QEMU that run the vCPUs, as they were at the start. */
  get vcpuThreads(): VmDescription['vcpuThreads'] {
    return this.#vm.vcpuThreads;
  }

  get vmId(): string {
    return this.#vmId;
  }

  /** Settles when a backup has acknowledged a checkpoint. @throws HoldfastError if protection ends before. */
  async protectedOnce(): Promise<void> {
    if (this.#state.everProtected) return;
    if (this.#state.phase.name === 'ended') throw endedError(this.#state.phase.outcome);
    await new Promise<void>((resolve, reject) => {
      const onEpoch = (): void => {
        this.off('ended', onEnded);
        resolve();
      };
      const onEnded = (outcome: Outcome): void => {
        this.off('epoch', onEpoch);
        reject(endedError(outcome));
      };
      this.once('epoch', onEpoch);
      this.once('ended', onEnded);
    });
  }

  /** Reports of the epochs from now on, until protection ends. A slow consumer loses the oldest. */
  async *epochs(): AsyncGenerator<EpochReport, void, undefined> {
    const queue: EpochReport[] = [];
    let wake: () => void = () => {};
    const onEpoch = (report: EpochReport): void => {
      if (queue.length >= ITERATOR_EPOCHS_MAX) queue.shift();
      queue.push(report);
      wake();
    };
    const onEnded = (): void => wake();
    this.on('epoch', onEpoch);
    this.once('ended', onEnded);
    try {
      for (;;) {
        const report = queue.shift();
        if (report !== undefined) yield report;
        else if (this.#state.phase.name === 'ended') return;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      this.off('epoch', onEpoch);
      this.off('ended', onEnded);
    }
  }

  status(): PrimaryStatus {
    const { phase } = this.#state;
    const { stop } = this.#ioErrors;
    const distributions = this.#epochs.summary();
    const { runDir: _runDir, replace: _replace, name, backup, ...settings } = this.#settings;
    const reason =
      phase.name === 'waiting'
        ? phase.reason
        : phase.name === 'ended'
          ? describeOutcome(phase.outcome)
          : undefined;
    return {
      role: 'primary',
      name,
      phase: phase.name,
      ...(reason === undefined ? {} : { reason }),
      vm: {
        id: this.#vmId,
        name: this.#vm.name ?? '',
        pid: this.#vm.process.pid,
        qmp: this.#qmp.path,
        ramBytes: this.#vm.ramBytes,
        vcpus: this.#vm.vcpus,
        // An epoch's pause doesn't count.
        running:
          !this.#state.operatorPaused &&
          (phase.name === 'protected' ? phase.cycle.at !== 'serving' : !this.#state.vmStopped),
        ...(stop === undefined ? {} : { stopReason: `${stopText(stop)}. ${stopCure(stop)}` }),
      },
      backup,
      term: this.#state.term,
      epoch: this.#state.epoch,
      committedEpoch: this.#state.committed,
      outputHeld: this.#gate.installed,
      gate: { kind: this.#gate.kind, seesOutput: this.#gate.seesOutput, ...this.#gate.stats() },
      guestClock: this.#guestClock.status(),
      baseRounds: phase.name === 'syncing' ? phase.rounds.length : 0,
      ...(this.#disks === undefined ? {} : { disks: this.#disks.status() }),
      ...(this.#disks?.copy === undefined ? {} : { diskCopy: this.#disks.copy }),
      settings,
      sender: this.#epochs.explainSender(),
      pacing: this.#epochs.explainPacing(distributions),
      epochs: this.#epochs.count,
      distributions,
    };
  }

  /**
   * Planned move: the VM continues on the backup, its QEMU here ends. Settles
   * with how protection ended: `switched-over`, or what came in between.
   * @throws CancelledError when there is no backup to move to, or it could not take over.
   */
  async switchover(): Promise<Outcome> {
    if (this.#state.phase.name !== 'protected') {
      throw new NotProtectedError(`switchover: the VM is not protected now (${this.#state.phase.name})`, {
        cure: 'Wait until `holdfast status` says protected.',
      });
    }
    // One that has stopped itself for a disk may have what it lacks there.
    if (this.#state.operatorPaused && !this.#state.ioError) {
      throw new NotProtectedError(
        'switchover: the VM is paused by somebody else; it would run on the backup',
        {
          cure: 'Resume it first (QMP cont).',
        },
      );
    }
    this.#dispatch({ type: 'switchover' });
    const refused = new Promise<never>((_resolve, reject) => {
      const onPhase = (): void => {
        if (this.#state.phase.name === 'ended' || this.#state.pending === 'switchover') return;
        this.off('phase', onPhase);
        reject(
          new CancelledError('switchover: the backup did not take over; the VM stays here', {
            cure: 'The log of the backup says why.',
          }),
        );
      };
      this.on('phase', onPhase);
    });
    return await Promise.race([this.ended, refused]);
  }

  /** Stops protecting; the VM runs on and QEMU is as it was. Idempotent. */
  async detach(): Promise<Outcome> {
    this.#abortConnect.abort();
    this.#dispatch({ type: 'detach' });
    return await this.ended;
  }

  /** A migration that has taken too long; one that has stopped the VM already goes on. */
  giveUp(failure: Failure): void {
    this.#dispatch({ type: 'give-up', failure });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
  }

  // --- events in -----------------------------------------------------------

  #listen(signal: AbortSignal | undefined): void {
    signal?.addEventListener('abort', () => void this.detach(), { once: true });
    // With the latter two ROM blocks may have come or gone.
    for (const event of ['RESET', 'DEVICE_ADDED', 'DEVICE_DELETED']) {
      this.#qmp.on(event, () => this.#dispatch({ type: 'vm-reset' }));
    }
    void this.#qmp.closed.then(() => this.#qmpClosed());
  }

  /** A lost monitor is a dead QEMU only if the process is gone too. */
  async #qmpClosed(): Promise<void> {
    const ended = await this.#qemuEnd.of(this.#process);
    if (ended === undefined) {
      this.#dispatch({
        type: 'failed',
        failure: {
          code: 'HOLDFAST_E_QMP_CONNECTION',
          message: 'the QMP connection was lost, but QEMU runs; its output stays held',
        },
      });
      return;
    }
    this.#dispatch({ type: 'vm-gone', ended: ended.wished, reason: ended.reason });
  }

  #dispatch(event: PrimaryEvent): void {
    const before = this.#state;
    const [next, actions] = step(before, event);
    this.#state = next;
    // Actions first: a listener that throws must not keep one from being carried out.
    for (const action of actions) this.#perform(action);
    if (next.phase.name !== before.phase.name || next.pending !== before.pending) {
      this.#log.info({ event: event.type, phase: next.phase.name, epoch: next.epoch }, 'phase');
      this.emit('phase', this.status());
    }
  }

  #perform(action: PrimaryAction): void {
    switch (action.type) {
      case 'connect':
        void this.#connect(action.term, action.outputHeld);
        return;
      case 'take-prefix':
        this.#prefixAhead = this.#lookAheadOnceReached();
        return;
      case 'copy-disks':
        void this.#copyDisks(action.resume);
        return;
      case 'stop-logs':
        void this.#disks?.end();
        return;
      case 'base-round':
        void this.#baseRound(action);
        return;
      case 'arm-epoch':
        this.#epochs.arm();
        return;
      case 'arm-retry':
        clearTimeout(this.#retryTimer);
        this.#retryTimer = setTimeout(() => this.#dispatch({ type: 'retry' }), action.ms);
        return;
      case 'begin-epoch':
        void this.#epochs.begin(action);
        return;
      case 'resume':
      case 'resume-after-failed-handover':
        void this.#epochs.resume();
        return;
      case 'continue-vm':
        void this.#driver.goOn().catch((error: unknown) => {
          this.#log.warn({ err: toHoldfastError(error).message }, 'the VM does not go on');
        });
        return;
      case 'send':
        void this.#epochs.send(action.epoch);
        return;
      case 'release':
        void this.#epochs.release(action.epoch);
        return;
      case 'hand-over':
        void this.#handOver(action.epoch, action.pagesFollow === true);
        return;
      case 'enter-loss':
        void this.#enterLoss(action);
        return;
      case 'finish':
        this.#finishing ??= this.#finish(action.outcome, action.release);
        return;
    }
  }

  /**
   * The final epoch is acknowledged, so its output may leave. QEMU's own filters can't deliver it: the VM
   * stays stopped.
   */
  async #handOver(epoch: number, pagesFollow: boolean): Promise<void> {
    const link = this.#link;
    if (pagesFollow && link !== undefined) void this.#servePages(link);
    if (!isInQemu(this.#gate)) {
      await this.#gate.release(this.#qmp).catch((error: unknown) => {
        this.#log.warn({ epoch, err: toHoldfastError(error).message }, "the final epoch's output is lost");
      });
    }
    const waitMs = this.#moving?.earlyWaitMs ?? 0;
    link?.send({ type: 'switchover', epoch, ...(pagesFollow ? { pagesFollow: { waitMs } } : {}) });
  }

  /** Also when the control connection is lost: it is the VM there that needs them. */
  async #servePages({ bulkPort: port, bulkToken: token }: BackupLink): Promise<void> {
    const { host } = parseHostPort(this.#settings.backup);
    const waitMs = this.#moving?.earlyWaitMs ?? 0;
    const stoppedMs = performance.now() - this.#epochs.stoppedForMs();
    try {
      this.#faultCost = await servePages({
        engine: this.#engine,
        peer: { host, port, token },
        waitMs,
        fallback: this.#fallback,
        log: this.#log,
      });
      this.#log.info({ ...this.#faultCost, ...this.#engine.serveProgress() }, 'all pages are there');
      this.#dispatch({ type: 'pages-served', downtimeMs: performance.now() - stoppedMs });
    } catch (error) {
      const { code, message, cure } = toHoldfastError(error);
      if (code === 'HOLDFAST_E_CANCELLED') return; // by our own disconnect, already decided
      this.#log.error({ code, err: message }, 'the pages are not to be brought there');
      this.#dispatch({ type: 'pages-lost', failure: { code, message, cure } });
    }
  }

  #fail(error: unknown, context: string): void {
    // QEMU is gone, or is about to be and has lost its memory first: that is what gets reported.
    if (!this.#qmp.open || (error as { errno?: number }).errno === constants.errno.ESRCH) return;
    const failure = toHoldfastError(error, context);
    this.#log.error({ code: failure.code, err: failure.message }, context);
    this.#dispatch({ type: 'failed', failure });
  }

  // --- connection ------------------------------------------------------------

  async #connect(term: number, outputHeld: boolean): Promise<void> {
    const address = parseHostPort(this.#settings.backup);
    let connecting = true;
    let lostMeanwhile: string | undefined;
    const peerIsLocal = isLocalPeer(address.host);
    const dial = this.#dial;
    this.#dial = undefined;
    try {
      const link = await BackupLink.open({
        address,
        key: this.#key,
        dial,
        session: this.#sessionMessage(term, outputHeld),
        connectTimeoutMs: this.#settings.connectTimeoutMs,
        signal: this.#abortConnect.signal,
        onMessage: (message) => this.#onMessage(message),
        onLost: (reason) => {
          if (!connecting) {
            this.#dispatch({ type: 'backup-lost', reason });
            return;
          }
          // This attempt fails, once: were it reported as a loss, the next attempt would begin beside
          // this one, and this one's disconnect would cut the next one's session unnoticed.
          lostMeanwhile = reason;
          void this.#engine.disconnect();
        },
      });
      this.#link = link;
      this.#agreeOnFallback(link);
      await this.#engine.connect({
        host: address.host,
        port: link.bulkPort,
        token: link.bulkToken,
        timeoutMs: this.#settings.connectTimeoutMs,
        streams: this.#settings.streams,
        verify: this.#settings.verify,
      });
      await this.#disks?.begin(link.journalBytes);
      await this.#indexDisks(link.pageDisks);
      this.#epochs.relink(await peerIsLocal);
      await this.#prefixAhead; // it was taken, or the machine knows that it was not
      if (lostMeanwhile !== undefined) throw new PeerLostError(lostMeanwhile);
      connecting = false;
      this.#dispatch({ type: 'connected' });
    } catch (error) {
      await this.#disconnect();
      const failure = toHoldfastError(error);
      this.#log.warn({ code: failure.code, err: failure.message }, 'backup not reached');
      if (failure instanceof SupersededError) {
        this.#dispatch({ type: 'fenced', term: failure.term, message: failure.message });
        return;
      }
      const { code, message, cure } = failure;
      const lostThere = code === 'HOLDFAST_E_VM_LOST';
      this.#dispatch({ type: lostThere ? 'lost-there' : 'connect-failed', failure: { code, message, cure } });
    }
  }

  /** @throws UnsupportedHostError */
  #agreeOnFallback(link: BackupLink): void {
    this.#fallback = agreedPoint(this.#moving?.fallback, link.fallback);
    if (this.#fallback !== undefined) this.emit('fallback', this.#fallback);
  }

  #sessionMessage(term: number, outputHeld: boolean): SessionMessage {
    return {
      type: 'session',
      vmId: this.#vmId,
      vmName: this.#vm.name ?? '',
      term,
      outputHeld: outputHeld && this.#gate.installed,
      ramBytes: this.#vm.ramBytes,
      pageSize: this.#ram.mapping.pageSize,
      deviceBytesMax: DEVICE_BYTES_MAX,
      heartbeatIntervalMs: this.#settings.heartbeatIntervalMs,
      heartbeatTimeoutMs: this.#settings.heartbeatTimeoutMs,
      guestClockFollows: followsOnStandby(this.#settings.guestClock, this.#vm),
      ...(this.#isMigration ? { handOverOnly: true } : {}),
      ...(this.#pageDisks === undefined
        ? {}
        : { pageDisks: this.#pageDisks.map(({ imagePath, imageBytes }) => ({ imagePath, imageBytes })) }),
      ...resumeEarlyOf(this.#moving),
      ...(this.#state.vmStopped || this.#state.operatorPaused ? { standsStill: true } : {}),
      ...(this.#servers === undefined
        ? {}
        : {
            disks: this.#servers.disks.map(({ id, imagePath, imageBytes }) => ({
              id,
              imagePath,
              imageBytes,
            })),
          }),
      standby: standbySpecOf(this.#vm, {
        backendId: this.#ram.id,
        relays: this.#relays,
        replace: this.#settings.replace,
        argv: this.#servers?.portableArgv(this.#vm.argv),
      }),
    };
  }

  #onMessage(message: ControlMessage): void {
    switch (message.type) {
      case 'took-over': {
        const { term, epoch, resumeMs } = message;
        const downtimeMs = this.#epochs.stoppedForMs();
        this.#dispatch({ type: 'took-over', term, epoch, resumeMs, downtimeMs });
        if (this.#state.pagesFollow) {
          this.emit('runs-early', { term, downtimeMs, pages: this.#engine.serveProgress().pages });
        }
        return;
      }
      case 'takeover-failed':
        this.#dispatch({
          type: 'takeover-failed',
          failure: { code: message.code, message: message.message },
        });
        return;
      case 'session-refused':
        // The backup decided for the other side while connected: it took over.
        if (message.code === 'HOLDFAST_E_FENCED') {
          this.#dispatch({
            type: 'fenced',
            term: message.term ?? this.#state.term,
            message: message.message,
          });
        }
        return;
      case 'failure':
        this.#dispatch({ type: 'backup-lost', reason: `${message.code}: ${message.message}` });
        return;
      default:
        return; // heartbeats count by having arrived; the rest is not for a primary
    }
  }

  async #disconnect(): Promise<void> {
    const link = this.#link;
    this.#link = undefined;
    await Promise.all([this.#engine.disconnect(), link?.close()]);
  }

  // --- base sync ----------------------------------------------------------------------------

  /** What fails here costs the time that it would have saved. */
  async #indexDisks(has: readonly number[]): Promise<void> {
    if (this.#pageDisks === undefined) return;
    this.#indexed = await beginIndex(this.#engine, this.#pageDisks, has).catch((error: unknown) => {
      this.emit('warning', toHoldfastError(error, 'pages on disks are sent like others'));
      return [];
    });
  }

  /** It has been read beside the disks' copying. */
  async #awaitIndex(): Promise<void> {
    if (this.#indexed.length === 0) return;
    const progress = await awaitIndex(this.#engine, this.#vm.ramBytes, this.#log);
    if (progress !== undefined) this.emit('disks-indexed', { ...progress, images: this.#indexed });
  }

  async #copyDisks(resume: boolean): Promise<void> {
    try {
      if (resume) await this.#driver.resume();
      const copied = await this.#disks?.copyImages();
      this.#dispatch({ type: 'disks-copied' });
      if (copied !== undefined) this.emit('disks-copied', copied);
    } catch (error) {
      this.#lostOnBulk(error, 'copying the disks');
    }
  }

  #stoppedItself(stop: IoErrorStop): void {
    this.#log.error({ ...stop }, 'QEMU has stopped the VM');
    this.#dispatch({ type: 'vm-io-error' });
    this.emit('vm-stopped', stop);
  }

  #goesOn(): void {
    this.#log.info({}, 'the VM goes on');
    this.#dispatch({ type: 'vm-resumed' });
    this.emit('vm-goes-on');
  }

  #warnOfDisk({
    id,
    image,
    errno,
  }: {
    readonly id: string;
    readonly image: string;
    readonly errno: string;
  }): void {
    const details = { id, image, errno };
    const warning = isFullErrno(errno)
      ? new NoSpaceError(`there is no room for the image of disk ${id}, ${image} (${errno})`, {
          cure: 'Make room in its file system, or `holdfast switchover`: the backup has room of its own.',
          details,
        })
      : new DiskError(`the image of disk ${id}, ${image}, fails with ${errno}; the guest sees the errors`, {
          cure: "While the backup's copy is whole: `holdfast switchover`, then look after this one.",
          details,
        });
    this.#log.error({ id, image, errno }, 'a local disk fails');
    this.emit('warning', warning);
  }

  async #baseRound({
    first,
    resume,
    prefixAhead,
  }: Extract<PrimaryAction, { type: 'base-round' }>): Promise<void> {
    try {
      // The other path has it in every state.
      if (prefixAhead && this.#settings.deviceState === 'xen-save') await this.#takePrefixAhead();
      else if (resume) await this.#driver.resume();
      if (first) await this.#awaitIndex();
      const startMs = performance.now();
      const { diskPages, ...sent } = await this.#engine.baseRound({
        first,
        prefix: prefixFile(prefixAhead ? this.#driver.prefixAhead : undefined),
      });
      const round = {
        ...sent,
        roundMs: performance.now() - startMs,
        ...(diskPages === undefined ? {} : { diskPages: diskPagesOf(diskPages, this.#ram.mapping.pageSize) }),
      };
      this.#log.info({ ...round, first }, 'base sync round');
      this.#dispatch({ type: 'round-done', round });
      this.emit('round', round);
    } catch (error) {
      this.#lostOnBulk(error, 'base sync');
    }
  }

  /** While the backup gets ready, what the pause would take longer for. Where nobody answers, nothing is done. */
  async #lookAheadOnceReached(): Promise<void> {
    if (!(await this.#reached)) return;
    // The other path has it in every state.
    if (this.#settings.deviceState === 'xen-save') await this.#takePrefixAhead();
    await this.#engine.findPopulated().catch((error: unknown) => {
      this.#log.warn({ err: toHoldfastError(error).message }, 'what RAM holds is found in the pause');
    });
  }

  /** What fails here is done in the pause. */
  async #takePrefixAhead(): Promise<void> {
    try {
      const stoodStillMs = await this.#driver.takePrefixAhead();
      this.#log.info({ stoodStillMs }, "took the firmware's memory ahead of the pause");
      this.emit('prefix-ahead', stoodStillMs);
    } catch (error) {
      this.#log.warn({ err: toHoldfastError(error).message }, "the firmware's memory is not taken yet");
      this.#dispatch({ type: 'vm-reset' });
    }
  }

  #lostOnBulk(error: unknown, context: string): void {
    const failure = toHoldfastError(error, context);
    if (failure.code === 'HOLDFAST_E_CANCELLED') return; // by our own disconnect, already decided
    if (failure.code === 'HOLDFAST_E_SYSCALL' || failure.code === 'HOLDFAST_E_UNSUPPORTED') {
      this.#fail(error, context);
      return;
    }
    this.#dispatch({ type: 'backup-lost', reason: failure.message });
  }

  // --- ends --------------------------------------------------------------------

  async #enterLoss(action: Extract<PrimaryAction, { type: 'enter-loss' }>): Promise<void> {
    const sliced = this.#epochs.disarm();
    const reason = this.#state.phase.name === 'waiting' ? this.#state.phase.reason : '';
    this.#log.warn({ reason, vm: action.vm, openGate: action.openGate }, 'backup lost');
    try {
      // If the backup can still hear us: released output voids its checkpoint; held output doesn't.
      this.#link?.send({ type: action.openGate ? 'detach' : 'reconnecting' });
      // First: held output stays within its bound. And no write waits for room in a log that nobody reads.
      await Promise.all([this.#disks?.end(), action.vm === 'stop' ? this.#driver.stop() : undefined]);
      await this.#disconnect();
      await sliced; // what it staged belongs to the session that is gone
      if (action.abortEpoch !== undefined) await this.#engine.abort(action.abortEpoch);
      if (action.vm === 'run' && !this.#state.operatorPaused) await this.#driver.resume();
      if (action.openGate) {
        await this.#writeRecord('active'); // the term granted stands before any output of it leaves
        await this.#driver.openGate();
      }
      this.#dispatch({ type: 'loss-entered' });
    } catch (error) {
      this.#fail(error, 'after losing the backup');
      // While the VM was handed over without its memory the end of QEMU here did not count. Now it does.
      if (!this.#qmp.open) await this.#qmpClosed();
    }
  }

  async #finish(outcome: Outcome, release: boolean): Promise<void> {
    const sliced = this.#epochs.disarm();
    this.#ioErrors.end();
    clearTimeout(this.#retryTimer);
    this.#abortConnect.abort();
    this.#log.info({ outcome: outcome.kind, release }, 'ending');
    try {
      await this.#tellBackup(outcome, release);
      await Promise.all([this.#disks?.end(), this.#disconnect()]);
      await sliced;
      await this.#driver.idle(); // nothing may start or stop the VM behind what comes now
      const vmIsGone = outcome.kind === 'vm-ended' || outcome.kind === 'vm-lost';
      if (vmIsGone || this.#qmp.open) await this.#leaveVm(outcome, release);
    } catch (error) {
      this.#log.error({ err: toHoldfastError(error).message }, 'while ending');
    }
    // One that was told to quit needs no detaching, and may be half gone. One that may run over there keeps its
    // tracker, as after a SIGKILL: by that the next command knows that it has to ask.
    const { mustHold, pagesFollow } = this.#state;
    const asksAgain = this.#isMigration && outcome.kind === 'failed' && mustHold && !pagesFollow;
    if (outcome.kind !== 'switched-over' && !asksAgain) {
      await this.#engine.detach().catch((error: unknown) => {
        this.#log.error({ err: toHoldfastError(error).message }, 'detaching from QEMU');
      });
    }
    await this.#engine.close();
    this.#disks?.close();
    await this.#servers?.close();
    await this.#gate.close();
    await this.#qmp.close();
    await rm(this.#scratchDir, { recursive: true, force: true }).catch(() => {});
    this.#ended.resolve(outcome);
    this.emit('ended', outcome);
  }

  async #tellBackup(outcome: Outcome, release: boolean): Promise<void> {
    switch (outcome.kind) {
      case 'detached':
      case 'failed': {
        if (!release || this.#link === undefined) return;
        const confirmed = await this.#link.detach(this.#settings.heartbeatTimeoutMs);
        if (!confirmed) this.#log.error({}, 'the backup did not confirm the detach; it may take over');
        return;
      }
      case 'vm-ended':
        this.#link?.send({ type: 'vm-ended', reason: outcome.reason });
        return;
      case 'vm-lost':
        this.#link?.send({ type: 'vm-lost', reason: outcome.reason });
        return;
      case 'switched-over':
      case 'fenced':
        return;
    }
  }

  /** Leaves the VM in the state that the outcome defines (DESIGN part 3: the guest is never harmed by us). */
  async #leaveVm(outcome: Outcome, release: boolean): Promise<void> {
    switch (outcome.kind) {
      case 'switched-over':
        await this.#driver.quit(); // its twin runs on the backup: this one must never run again
        await this.#records.remove(this.#vmId);
        return;
      case 'fenced':
        await this.#driver.stop();
        await this.#writeRecord('superseded');
        return;
      case 'detached':
      case 'failed':
        if (!release) {
          await this.#driver.stop();
          return;
        }
        if (!this.#state.operatorPaused) await this.#driver.resume();
        await this.#driver.openGate();
        if (outcome.kind === 'detached') await this.#records.remove(this.#vmId);
        return;
      case 'vm-ended':
      case 'vm-lost':
        await this.#records.remove(this.#vmId);
        return;
    }
  }

  async #writeRecord(role: VmRecord['role']): Promise<void> {
    await this.#records.write({
      vmId: this.#vmId,
      vmName: this.#vm.name ?? '',
      term: this.#state.term,
      role,
      process: this.#process,
      qmpPath: this.#qmp.path,
      ramPath: this.#ram.mapping.path,
    });
  }
}

const resumeEarlyOf = (moving: Moving | undefined): Pick<SessionMessage, 'resumeEarly' | 'fallback'> =>
  moving === undefined || moving.resumeEarly === 'never'
    ? {}
    : {
        resumeEarly: moving.resumeEarly,
        ...(moving.fallback === undefined ? {} : { fallback: { dir: moving.fallback } }),
      };

/** By QEMU's engine, whose destination was not heard of after the hand-over. */
const leftBehind = (to: string): UnsupportedVmError =>
  new UnsupportedVmError(`the VM stands still since it was moved to ${to}, and may run there`, {
    cure: `Ask that one: holdfast migrate --engine qemu --to ${to}. If you know that the VM does not run there: QMP cont.`,
  });

/** Stopped by somebody else, and meant to stay so. */
const paused = (): UnsupportedVmError =>
  new UnsupportedVmError('the VM is paused; it would run on the destination', {
    cure: 'Resume it first (QMP cont), unless a migration left it so: then look first whether it runs where that was to.',
  });

const endedError = (outcome: Outcome): HoldfastError =>
  outcomeError(outcome) ?? new CancelledError(`protection ended: ${outcome.kind}`);
