/**
 * The backup's effects: carries out what machine.ts decides. One Backup waits
 * for one VM's primary, keeps its checkpoints, and takes over.
 *
 *   control channel ─┐
 *   receiver events ─┼─► machine.step ─► prepare, accept, take over, drop …
 *   liveness, timer ─┘
 */
import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type ControlChannel, ControlServer } from '../control/channel.js';
import { Liveness } from '../control/liveness.js';
import type { ControlMessage, SessionMessage } from '../control/messages.js';
import { diskSupport } from '../disk/disk-support.js';
import {
  CancelledError,
  DiskError,
  type HoldfastError,
  NoSpaceError,
  NotProtectedError,
  StandbyError,
  toHoldfastError,
  UnsupportedHostError,
} from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import type { FallBackPoint } from '../migrate/fall-back-point.js';
import type { ReceiverEvent } from '../native.js';
import type { EarlyGuestStats } from '../native-early.js';
import { parseHostPort } from '../primary/options.js';
import { outlivesItsVm, type VmRecord, VmRecords } from '../state/records.js';
import { SampleWindow } from '../stats.js';
import { exitText } from '../vm/launch.js';
import { isAlive } from '../vm/process.js';
import { EnquiryDesk } from './answer-enquiry.js';
import type { DiskSupport } from './disk-support.js';
import type { EarlyResume } from './early-resume.js';
import { endLacking } from './end-lacking.js';
import {
  FallBack,
  type FallBackPlace,
  type FallBackReport,
  type FallenVm,
  fallBackFailure,
  isOfSource,
  survivedLoss,
} from './fall-back.js';
import { assertMayFallBack } from './fall-back-check.js';
import { finishTakeover } from './finish-takeover.js';
import { type AnyGeneration, Generation } from './generation.js';
import { asOfNow, isTakenBack, NOTHING_KNOWN, refusalOf } from './known-vm.js';
import { arrivedRecord, fallenRecord, lackingRecord, lostRecord, wholeRecord } from './lacking-record.js';
import {
  type BackupAction,
  type BackupEvent,
  type BackupState,
  type Failure,
  initialState,
  isDecided,
  isTakeoverPossible,
  step,
} from './machine.js';
import { type BackupSettings, type BackupSettingsInput, checkBackupSettings } from './options.js';
import { QemuGeneration } from './qemu-generation.js';
import { type DiskFault, type ReplicaDiskStatus, ReplicaKeeper, type TakenDisks } from './replica-disks.js';

export interface BackupOptions extends BackupSettingsInput {
  /** Pre-shared key, at least 16 bytes; the same on both sides. */
  readonly key: Uint8Array;
  readonly signal?: AbortSignal;
  readonly logger?: Logger;
}

/** How a takeover went. */
export interface TakeoverReport {
  readonly vmId: string;
  readonly vmName: string;
  readonly term: number;
  /** The checkpoint that runs now. */
  readonly epoch: number;
  readonly planned: boolean;
  readonly reason: string;
  /** Between the last sign of life and the decision. */
  readonly detectMs: number;
  /** No more acknowledgements, last epoch applied. */
  readonly fenceMs: number;
  /** Device state written until the VM ran. */
  readonly loadMs: number;
  /** Decision until the VM ran. */
  readonly resumeMs: number;
  /** From then on until its disks took writes, which had waited; absent without disks, or while they don't. */
  readonly disksMs?: number;
  /** Unix time, milliseconds. */
  readonly decidedAtMs: number;
  readonly resumedAtMs: number;
  /** Where the VM runs now. */
  readonly qmp: string;
  readonly pid: number;
  /** Since then it runs from a checkpoint on disk, for its source was lost before all of its memory had come. */
  readonly fellBack?: FallBackReport;
}

export interface BackupStatus {
  readonly role: 'backup';
  readonly name: string;
  readonly phase: BackupState['phase']['name'];
  readonly reason?: string;
  readonly listen: string;
  readonly vm?: { readonly id: string; readonly name: string; readonly ramBytes: number };
  readonly term: number;
  readonly committedEpoch: number;
  /** The VM comes by a migration: nothing but its hand-over, or the operator, makes it run here. */
  readonly handOverOnly: boolean;
  readonly primary?: string;
  readonly standbyPid?: number;
  readonly replica?: string;
  /** Replicas of the VM's disks; absent if it has none, and after a takeover. */
  readonly disks?: readonly ReplicaDiskStatus[];
  readonly takeover?: TakeoverReport;
  /** Of a VM that was resumed before its memory was here, while that is so. */
  readonly pages?: EarlyGuestStats;
  /** From what it goes on should its source be lost; `underWay`: it was. */
  readonly fallBack?: FallBackPoint & { readonly underWay: boolean };
  readonly receiveMs?: { readonly p50: number; readonly p99: number; readonly max: number };
  readonly applyMs?: { readonly p50: number; readonly p99: number; readonly max: number };
}

export type BackupOutcome =
  | { readonly kind: 'stopped' }
  | { readonly kind: 'left-running'; readonly takeover: TakeoverReport }
  | { readonly kind: 'vm-exited'; readonly reason: string };

interface BackupEvents {
  phase: [BackupStatus];
  round: [{ readonly pages: number; readonly bytes: number }];
  committed: [{ readonly epoch: number; readonly pages: number; readonly receiveMs: number }];
  'took-over': [TakeoverReport];
  'takeover-failed': [HoldfastError];
  /** Of a VM that was resumed early: all its memory is here. */
  'pages-complete': [EarlyGuestStats];
  /** It cannot be any more; the VM is ended. One of the next two follows where a fallback was agreed on. */
  'pages-lost': [HoldfastError];
  /** It runs again, from a checkpoint. */
  'fell-back': [FallBackReport];
  /** It does not, or not any more: the checkpoint turned out to be damaged. */
  'fall-back-failed': [HoldfastError];
  warning: [HoldfastError];
  ended: [BackupOutcome];
}

/** Between attempts to make the disks of a VM that was taken over take its writes. */
const DISKS_RETRY_MS = 1_000;
/** Epochs of which receive and apply times are kept. */
const WINDOW_EPOCHS = 2_000;

interface Session {
  readonly generation: AnyGeneration;
  readonly channel: ControlChannel;
  liveness: Liveness | undefined;
  /** As the session asks for it. */
  fallBack: FallBack | undefined;
  /** The loss has been seen; what else the connection reports about it is of no interest. */
  over: boolean;
  /** The receiver was fenced by us: that its connection ends is our own doing. */
  fenced: boolean;
}

export class Backup extends EventEmitter<BackupEvents> implements AsyncDisposable {
  readonly #settings: BackupSettings;
  readonly #server: ControlServer;
  readonly #records: VmRecords;
  readonly #dir: string;
  readonly #replicaPrefix: string;
  readonly #log: Logger;
  readonly #support: DiskSupport | undefined;
  /** Undefined where there is no support for disks. */
  readonly #replicas: ReplicaKeeper | undefined;
  readonly #sessions = new Map<number, Session>();
  readonly #receiveMs = new SampleWindow(WINDOW_EPOCHS);
  readonly #applyMs = new SampleWindow(WINDOW_EPOCHS);
  readonly #ended: { promise: Promise<BackupOutcome>; resolve: (outcome: BackupOutcome) => void };
  #state: BackupState;
  #nextGeneration = 1;
  #graceTimer: NodeJS.Timeout | undefined;
  #takeover: TakeoverReport | undefined;
  /** Of the VM that runs here. */
  #record: VmRecord | undefined;
  #detectMs = 0;
  #takingOver: Promise<void> | undefined;
  /** Standbys of dropped generations that may not have ended yet. */
  readonly #endingStandbys = new Set<Promise<void>>();
  readonly #enquiries: EnquiryDesk;
  /** Generations being removed; close() waits for them. */
  readonly #drops = new Set<Promise<void>>();
  #closing: Promise<void> | undefined;
  /** Disks that did not take the VM's writes at once, after a takeover. */
  #activating: Promise<void> | undefined;
  /** Until the pages of a VM that runs are here, or lost; never rejects. */
  #pages: Promise<void> | undefined;
  /** The VM that lacked pages is ended by us, and goes on from this. */
  #falling: FallBack | undefined;
  /** It does. */
  #fallen: FallenVm | undefined;
  /** Until its memory is complete, or it has ended; never rejects. */
  #arrival: Promise<void> | undefined;
  /** It could not be started: its log says why. */
  #leavesLog = false;

  private constructor(
    settings: BackupSettings,
    server: ControlServer,
    records: VmRecords,
    log: Logger,
    support?: DiskSupport,
  ) {
    super();
    this.#settings = settings;
    this.#server = server;
    this.#records = records;
    this.#dir = join(settings.runDir, `backup-${settings.name}`);
    // The run directory is part of it: daemons of one name with different ones don't know each other's records.
    const runDirHash = createHash('sha256').update(settings.runDir).digest('hex').slice(0, 8);
    this.#replicaPrefix = `holdfast-${settings.name}-${runDirHash}-`;
    this.#log = log;
    this.#support = support;
    this.#replicas =
      support &&
      new ReplicaKeeper({
        metaDirOf: (imagePath) => support.metaDirOf(settings.diskDir, imagePath),
        openStore: (options) => support.openStore(options),
        journalBytes: settings.journalMiB * (1 << 20),
        adopt: settings.adoptDisks,
        log,
        onFault: (fault, image) => this.#onDiskFault(fault, image),
      });
    this.#enquiries = new EnquiryDesk({
      host: parseHostPort(settings.listen).host,
      bulkPort: settings.bulkPort,
      ramDir: settings.ramDir,
      occupied: () => occupation(this.#state),
      log,
    });
    this.#state = initialState({
      takeover: settings.takeover,
      connectionGraceMs: settings.connectionGraceMs,
      reconnectGraceMs: settings.reconnectGraceMs,
    });
    let resolve: (outcome: BackupOutcome) => void = () => {};
    const promise = new Promise<BackupOutcome>((settle) => {
      resolve = settle;
    });
    this.#ended = { promise, resolve };
  }

  /**
   * Listens for a primary. What an earlier daemon of the same name left behind
   * (a standby that waits, its replica) is removed; a VM that it took over is
   * left alone, and its old primary will be refused.
   * @throws ConfigError, ConnectError
   */
  static async start(options: BackupOptions): Promise<Backup> {
    const { key, signal, logger, ...input } = options;
    const settings = checkBackupSettings(input);
    signal?.throwIfAborted();
    const records = new VmRecords(settings.runDir, 'backup');
    const server = await ControlServer.listen(parseHostPort(settings.listen), key);
    const backup = new Backup(settings, server, records, logger ?? NOTHING_LOGGED, diskSupport);
    const early: ControlChannel[] = [];
    let take = (channel: ControlChannel): void => void early.push(channel);
    // From the first connection on: a primary that tries again and again comes while the leftovers are
    // removed, and would wait for an answer from nobody.
    server.on('channel', (channel) => take(channel));
    server.on('rejected', ({ remote, error }) => {
      backup.#log.warn({ remote, code: error.code, err: error.message }, 'connection rejected');
      backup.emit('warning', error);
    });
    try {
      await backup.#removeLeftovers();
      await mkdir(backup.#dir, { recursive: true, mode: 0o700 });
    } catch (error) {
      await server.close();
      await Promise.all(early.map((channel) => channel.close()));
      throw toHoldfastError(error);
    }
    take = (channel) => backup.#onChannel(channel);
    for (const channel of early) if (!channel.isClosed) take(channel);
    signal?.addEventListener('abort', () => void backup.close(), { once: true });
    void backup.#finishTakeovers();
    return backup;
  }

  /** Port of the control connection. */
  get port(): number {
    return this.#server.port;
  }

  /** Settles when this backup has ended, with how. Never rejects. */
  get ended(): Promise<BackupOutcome> {
    return this.#ended.promise;
  }

  get takeover(): TakeoverReport | undefined {
    return this.#takeover;
  }

  /** What a VM that was resumed early still lacks; undefined where none does. */
  get pages(): EarlyGuestStats | undefined {
    return this.#session(this.#state.checkpoint?.generation)?.generation.early?.stats();
  }

  status(): BackupStatus {
    const { phase, vm, checkpoint } = this.#state;
    const session = this.#session(this.#state.receiving) ?? this.#session(checkpoint?.generation);
    const reason =
      phase.name === 'ended' ? phase.failure?.message : 'reason' in phase ? phase.reason : undefined;
    const receiveMs = this.#receiveMs.summary();
    const applyMs = this.#applyMs.summary();
    const disks = this.#replicas?.status() ?? [];
    const fallen = this.#fallen;
    const standbyPid = fallen?.process.pid ?? session?.generation.standby?.pid;
    const fallBack = fallen === undefined ? session?.fallBack?.point : undefined;
    return {
      role: 'backup',
      name: this.#settings.name,
      phase: phase.name,
      ...(reason === undefined ? {} : { reason }),
      listen: this.#settings.listen,
      ...(vm === undefined || session === undefined
        ? {}
        : {
            vm: {
              id: vm.vmId,
              name: session.generation.session.vmName,
              ramBytes: session.generation.session.ramBytes,
            },
          }),
      term: vm?.term ?? 0,
      committedEpoch: checkpoint?.epoch ?? 0,
      handOverOnly: this.#state.handOverOnly,
      ...(session === undefined
        ? {}
        : { primary: session.channel.remote, replica: fallen?.ramPath ?? session.generation.ramPath }),
      ...(standbyPid === undefined ? {} : { standbyPid }),
      ...(disks.length === 0 ? {} : { disks }),
      ...(this.#takeover === undefined ? {} : { takeover: this.#takeover }),
      ...(this.pages === undefined ? {} : { pages: this.pages }),
      ...(fallBack && { fallBack: { ...fallBack, underWay: this.#falling !== undefined } }),
      ...(receiveMs === undefined ? {} : { receiveMs }),
      ...(applyMs === undefined ? {} : { applyMs }),
    };
  }

  /**
   * Runs the last checkpoint now, on the operator's word; the primary, if it
   * lives, is fenced. Settles when the VM runs here.
   * @throws NotProtectedError if there is no checkpoint; StandbyError
   */
  async takeOver(): Promise<TakeoverReport> {
    if (!isTakeoverPossible(this.#state)) {
      throw new NotProtectedError(`takeover: there is no checkpoint to run (${this.#state.phase.name})`, {
        cure: '`holdfast status` shows whether a VM is protected here.',
      });
    }
    const done = new Promise<TakeoverReport>((resolve, reject) => {
      const onDone = (report: TakeoverReport): void => {
        this.off('takeover-failed', onFailed);
        resolve(report);
      };
      const onFailed = (error: HoldfastError): void => {
        this.off('took-over', onDone);
        reject(error);
      };
      this.once('took-over', onDone);
      this.once('takeover-failed', onFailed);
    });
    await this.#settleAll();
    this.#dispatch({ type: 'takeover-requested' });
    if (this.#state.phase.name !== 'taking-over' && this.#state.phase.name !== 'active') {
      done.catch(() => {});
      throw new NotProtectedError(`takeover: not possible any more (${this.#state.phase.name})`);
    }
    return await done;
  }

  /** Ends: a waiting standby and its replica are removed; a VM that was taken over runs on. */
  async close(): Promise<void> {
    this.#closing ??= this.#close({ kind: 'stopped' });
    await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // --- events in -----------------------------------------------------------------

  #dispatch(event: BackupEvent): void {
    const before = this.#state.phase.name;
    const [next, actions] = step(this.#state, event);
    this.#state = next;
    // Actions first: a listener that throws must not keep one from being carried out.
    for (const action of actions) this.#perform(action);
    if (next.phase.name !== before) {
      this.#log.info({ event: event.type, phase: next.phase.name }, 'phase');
      this.emit('phase', this.status());
    }
  }

  #onChannel(channel: ControlChannel): void {
    let session: Session | undefined;
    channel.on('message', (message) => {
      if (session === undefined && message.type === 'enquiry') this.#enquiries.take(channel);
      else if (session === undefined) session = this.#beginSession(channel, message);
      else void this.#onMessage(session, message);
    });
    channel.on('closed', (error) => {
      if (session !== undefined) void this.#onLost(session, { silent: false, reason: error.message });
    });
    channel.start();
  }

  #beginSession(channel: ControlChannel, message: ControlMessage): Session | undefined {
    if (message.type !== 'session') {
      channel.send({
        type: 'session-refused',
        code: 'HOLDFAST_E_PROTOCOL',
        message: `the first message must be a session, not ${message.type}`,
      });
      void channel.close();
      return undefined;
    }
    const id = this.#nextGeneration++;
    let session: Session | undefined;
    try {
      const Kind = message.qemuEngine === true ? QemuGeneration : Generation;
      const generation = new Kind({
        id,
        session: message,
        token: channel.bulkToken,
        listenHost: parseHostPort(this.#settings.listen).host,
        bulkPort: this.#freeBulkPort(),
        runDir: this.#dir,
        ramPath: this.#ramPathOf(id),
        qemu: this.#settings.qemu,
        replacements: this.#settings.replace,
        takeDisks: message.disks && (() => this.#takeDisks(message)),
        standbyDisks: this.#support && ((options) => this.#support!.standby(options)),
        retireDisks: async (disks) => await this.#replicas?.retire(disks),
        logger: this.#log,
        onStreamTaken: () => channel.send({ type: 'stream-taken' }),
        onReceiverEvent: (event) => {
          if (session !== undefined) this.#onReceiverEvent(session, event);
        },
        onStandbyExit: (reason) => {
          if (session !== undefined) void this.#onStandbyExit(session, reason);
        },
      });
      session = {
        ...{ generation, channel, liveness: undefined, fallBack: undefined },
        ...{ over: false, fenced: false },
      };
    } catch (error) {
      const failure = toHoldfastError(error, 'bulk port');
      channel.send({ type: 'session-refused', code: failure.code, message: failure.message });
      void channel.close();
      return undefined;
    }
    this.#sessions.set(id, session);
    void this.#requestSession(session, message);
    return session;
  }

  #ramPathOf(generation: number): string {
    return join(this.#settings.ramDir, `${this.#replicaPrefix}${process.pid}-g${generation}.ram`);
  }

  async #takeDisks({ disks, standby }: SessionMessage): Promise<TakenDisks> {
    if (this.#replicas === undefined || disks === undefined) {
      throw new UnsupportedHostError('this backup cannot keep disks');
    }
    return await this.#replicas.take(disks, [...standby.replacements, ...this.#settings.replace]);
  }

  /** The kept generation may still hold one of the two ports. */
  #freeBulkPort(): number {
    const first = this.#settings.bulkPort;
    if (first === 0) return 0;
    const taken = [...this.#sessions.values()].some(({ generation }) => generation.bulkPort === first);
    return taken ? first + 1 : first;
  }

  /** A VM that an earlier daemon here took over is known from its record. */
  async #requestSession(session: Session, message: SessionMessage): Promise<void> {
    const found = await this.#records.read(message.vmId);
    const { record, isHeld } = found === undefined ? NOTHING_KNOWN : await asOfNow(found, isAlive);
    if (isTakenBack(record, isHeld, message)) await this.#forget(message.vmId);
    if (session.over) {
      void this.#drop(session.generation.id); // closed meanwhile
      return;
    }
    const refusal = refusalOf(record, isHeld, message);
    if (refusal !== undefined) {
      this.#refuse(session.generation.id, refusal.failure, refusal.term);
      return;
    }
    this.#dispatch({
      type: 'session-requested',
      generation: session.generation.id,
      vmId: message.vmId,
      term: message.term,
      outputHeld: message.outputHeld,
      handOverOnly: message.handOverOnly === true,
      ...(message.resumeEarly === undefined ? {} : { mayLackPages: true }),
    });
  }

  async #forget(vmId: string): Promise<void> {
    try {
      await this.#records.forget(vmId);
    } catch (error) {
      this.#log.warn(
        { err: toHoldfastError(error).message },
        'the record still says that the VM was lost here, which its operator took back',
      );
    }
  }

  async #onMessage(session: Session, message: ControlMessage): Promise<void> {
    const generation = session.generation.id;
    switch (message.type) {
      case 'vm-ended':
        session.over = true;
        this.#dispatch({ type: 'protection-ended', generation, reason: message.reason });
        return;
      case 'detach':
        session.over = true;
        await this.#settle(session);
        // Said before the drop closes the channel; nothing can come between the two.
        if (!isDecided(this.#state)) session.channel.send({ type: 'detached' });
        this.#dispatch({ type: 'protection-ended', generation, reason: 'the primary detached' });
        return;
      case 'reconnecting':
        await this.#settle(session);
        session.over = true;
        this.#dispatch({ type: 'primary-reconnecting', generation });
        return;
      case 'vm-lost':
        session.over = true;
        this.#detectMs = 0; // told by the primary itself
        await this.#settle(session);
        this.#dispatch({ type: 'vm-lost', generation, reason: message.reason });
        return;
      case 'switchover':
        this.#detectMs = 0;
        await this.#settle(session);
        this.#dispatch({
          type: 'switchover',
          generation,
          epoch: message.epoch,
          ...(message.pagesFollow === undefined ? {} : { pagesWaitMs: message.pagesFollow.waitMs }),
        });
        return;
      default:
        return; // heartbeats count by having arrived
    }
  }

  #onReceiverEvent(session: Session, event: ReceiverEvent): void {
    switch (event.type) {
      case 'connected':
      case 'prefix':
        return;
      case 'round':
        this.emit('round', { pages: event.pages, bytes: event.bytes });
        return;
      case 'committed':
        this.#receiveMs.add(event.receiveMs);
        this.#dispatch({ type: 'committed', generation: session.generation.id, epoch: event.epoch });
        this.emit('committed', { epoch: event.epoch, pages: event.pages, receiveMs: event.receiveMs });
        return;
      case 'applied':
        this.#applyMs.add(event.applyMs);
        return;
      case 'disconnected':
        // A verdict on the primary is the control connection's; this may be the stream's fault alone.
        this.#log.warn({ code: event.code, err: event.message }, 'bulk connection ended');
        if (!session.over && !session.fenced && event.code !== 'HOLDFAST_E_PEER_LOST') {
          session.channel.send({ type: 'failure', code: event.code, message: event.message });
        }
        return;
    }
  }

  async #onLost(session: Session, loss: { silent: boolean; reason: string }): Promise<void> {
    if (session.over) return;
    session.over = true;
    session.liveness?.stop();
    this.#detectMs = Math.min(session.channel.idleMs(), session.generation.bulkIdleMs());
    await this.#settle(session);
    this.#dispatch({ type: 'primary-lost', generation: session.generation.id, ...loss });
    await session.channel.close(); // a primary that was only silent learns it here
  }

  /**
   * Whatever ends a session, its receiver is fenced first: then what has been
   * acknowledged is known exactly, also a commit whose event is still on its way.
   */
  async #settle(session: Session): Promise<void> {
    session.fenced = true;
    try {
      const { epoch } = await session.generation.fence();
      if (epoch > 0) this.#dispatch({ type: 'committed', generation: session.generation.id, epoch });
    } catch (error) {
      this.#log.error({ err: toHoldfastError(error).message }, 'fencing the receiver');
    }
  }

  async #settleAll(): Promise<void> {
    for (const session of this.#sessions.values()) await this.#settle(session);
  }

  async #onStandbyExit(session: Session, reason: string): Promise<void> {
    if (this.#falling !== undefined) return; // #goOnFromCheckpoint has ended it
    if (this.#state.phase.name === 'active' && this.#takeover !== undefined) {
      this.#dispatch({ type: 'vm-exited', reason });
      return;
    }
    if (this.#state.phase.name === 'taking-over') return; // Generation.run deals with it
    this.#log.error({ reason, log: session.generation.logPath }, 'the standby QEMU ended; starting another');
    await this.#ensureStandby(session);
  }

  async #ensureStandby(session: Session): Promise<void> {
    try {
      await Promise.all(this.#endingStandbys);
      await session.generation.ensureStandby();
    } catch (error) {
      const failure = toHoldfastError(error, 'starting a standby');
      this.emit('warning', failure);
      session.channel.send({ type: 'failure', code: failure.code, message: failure.message });
    }
  }

  // --- actions out -----------------------------------------------------------------

  #perform(action: BackupAction): void {
    switch (action.type) {
      case 'prepare':
        void this.#prepare(action.generation);
        return;
      case 'accept':
        this.#accept(action.generation);
        return;
      case 'refuse':
        this.#refuse(action.generation, action.failure, action.term);
        return;
      case 'drop-generation':
        void this.#drop(action.generation).then(() => this.#startPostponedStandby());
        return;
      case 'arm-grace':
        clearTimeout(this.#graceTimer);
        this.#graceTimer = setTimeout(() => this.#dispatch({ type: 'grace-over' }), action.ms);
        return;
      case 'cancel-grace':
        clearTimeout(this.#graceTimer);
        return;
      case 'take-over':
        this.#takingOver = this.#takeOver(action);
        return;
      case 'reply-switchover-failed':
        this.#session(action.generation)?.channel.send({ type: 'takeover-failed', ...action.failure });
        return;
      case 'clean-up':
        void this.#cleanUp(action.reason);
        return;
    }
  }

  #session(generation: number | undefined): Session | undefined {
    return generation === undefined ? undefined : this.#sessions.get(generation);
  }

  async #prepare(id: number): Promise<void> {
    const session = this.#session(id);
    if (session === undefined) return;
    try {
      if (session.generation.session.fallback !== undefined) assertMayFallBack(session.generation.session);
      await session.generation.prepare();
      await Promise.all(this.#endingStandbys);
      // An earlier generation's standby has the VM's tap device, image locks and ports. As long as it
      // could be needed, this one's waits; it can be started, for that one was.
      const kept = this.#session(this.#state.checkpoint?.generation);
      await kept?.generation.idle(); // it may be between two standbys
      if (kept === undefined || kept === session || kept.generation.standby === undefined) {
        await session.generation.ensureStandby();
      }
      await this.#prepareFallBack(session);
      this.#dispatch({ type: 'prepared', generation: id });
    } catch (error) {
      const failure = toHoldfastError(error, 'preparing the standby');
      this.#log.error({ code: failure.code, err: failure.message }, 'session not possible');
      this.emit('warning', failure);
      const cure = failure.cure === undefined ? '' : ` ${failure.cure}`;
      this.#dispatch({
        type: 'prepare-failed',
        generation: id,
        failure: { code: failure.code, message: `${failure.message}.${cure}` },
      });
    }
  }

  async #prepareFallBack(session: Session): Promise<void> {
    const { session: asked } = session.generation;
    if (asked.fallback === undefined) return;
    // Where an earlier generation is kept this one's standby waits (#prepare), and will be of the same QEMU.
    const kept = this.#session(this.#state.checkpoint?.generation);
    const qemuVersion = session.generation.qemuVersion ?? kept?.generation.qemuVersion;
    if (qemuVersion === undefined) throw new StandbyError('the standby has ended');
    const place = this.#placeOfFallBack(session.generation);
    session.fallBack = await FallBack.prepare(asked, asked.fallback.dir, qemuVersion, place);
    if (session.over) await session.fallBack.release(); // dropped meanwhile
  }

  /** Nothing is to come any more. Not waited for: its file system may hang, and the VM does not need it. */
  #releaseFallBack(session: Session): void {
    void session.fallBack?.release();
    session.fallBack = undefined;
  }

  /** The earlier generation is gone: see #prepare. */
  async #startPostponedStandby(): Promise<void> {
    const session = this.#session(this.#state.receiving);
    if (this.#state.phase.name === 'protecting' && session !== undefined) await this.#ensureStandby(session);
  }

  #accept(id: number): void {
    const session = this.#session(id);
    if (session === undefined) return;
    const { channel, generation, fallBack } = session;
    const { heartbeatIntervalMs, heartbeatTimeoutMs } = generation.session;
    channel.send({
      type: 'session-ready',
      bulkPort: generation.bulkPort,
      ...(generation.session.disks === undefined
        ? {}
        : { journalBytes: this.#settings.journalMiB * (1 << 20) }),
      ...(generation.session.pageDisks === undefined ? {} : { pageDisks: [...generation.pageDisks] }),
      ...(fallBack && { fallback: { epoch: fallBack.point.epoch, takenAt: fallBack.point.takenAt } }),
    });
    session.liveness = new Liveness({
      intervalMs: heartbeatIntervalMs,
      timeoutMs: heartbeatTimeoutMs,
      sendHeartbeat: (sequence) => channel.send({ type: 'heartbeat', sequence }),
      idleMs: () => Math.min(channel.idleMs(), generation.bulkIdleMs()),
      onSilent: (idleMs) =>
        void this.#onLost(session, {
          silent: true,
          reason: `the primary is silent since ${Math.round(idleMs)} ms`,
        }),
    });
  }

  #refuse(id: number, failure: Failure, term: number | undefined): void {
    const session = this.#session(id);
    if (session === undefined) return;
    this.#log.warn({ ...failure }, 'session refused');
    session.over = true;
    session.channel.send({ type: 'session-refused', ...failure, term });
    void session.channel.close();
    void this.#drop(id);
  }

  async #drop(id: number): Promise<void> {
    const session = this.#session(id);
    if (session === undefined) return;
    this.#sessions.delete(id);
    session.over = true;
    void session.fallBack?.release();
    session.liveness?.stop();
    const dropped = session.generation.drop().catch((error: unknown) => {
      this.#log.error({ err: toHoldfastError(error).message }, 'dropping a generation');
    });
    this.#drops.add(dropped);
    void dropped.then(() => this.#drops.delete(dropped));
    const standbyEnded = session.generation.idle();
    this.#endingStandbys.add(standbyEnded);
    await standbyEnded;
    this.#endingStandbys.delete(standbyEnded);
    await Promise.all([session.channel.close(), dropped]);
  }

  async #takeOver(action: Extract<BackupAction, { type: 'take-over' }>): Promise<void> {
    const session = this.#session(action.generation);
    const { vm, phase } = this.#state;
    if (session === undefined || vm === undefined) return;
    const reason = phase.name === 'taking-over' ? phase.reason : '';
    const decidedAtMs = Date.now();
    const startMs = performance.now();
    session.over = true;
    // A planned one's heartbeats go on: the primary waits for the answer.
    if (!action.planned) session.liveness?.stop();
    const { generation } = session;
    try {
      await this.#replicas?.recover();
      const { fenceMs } = await generation.fence();
      if (this.#session(action.abandon)?.generation.standby !== undefined) void this.#drop(action.abandon!);
      await Promise.all(this.#endingStandbys); // a standby that is being ended still has the tap device
      const { epoch, loadMs } = await generation.run((standby) => {
        const whole: VmRecord = {
          vmId: vm.vmId,
          vmName: generation.session.vmName,
          term: action.term,
          role: 'active',
          process: standby,
          qmpPath: generation.qmpPath,
          ramPath: generation.ramPath,
          ...(generation.diskSockets.length === 0 ? {} : { disks: [...generation.diskSockets] }),
        };
        if (action.pagesWaitMs === undefined) return this.#claim(whole);
        return this.#claim(lackingRecord(whole, session.fallBack));
      }, action.pagesWaitMs);
      if (generation.early !== undefined) this.#pages = this.#awaitPages(session, generation.early);
      else this.#releaseFallBack(session);
      const report: TakeoverReport = {
        vmId: vm.vmId,
        vmName: generation.session.vmName,
        term: action.term,
        epoch,
        planned: action.planned,
        reason,
        detectMs: this.#detectMs,
        fenceMs,
        loadMs,
        resumeMs: performance.now() - startMs,
        decidedAtMs,
        resumedAtMs: Date.now(),
        qmp: generation.qmpPath,
        pid: generation.standby?.pid ?? 0,
      };
      this.#takeover = report;
      // First: until it hears this, the primary does not know that the VM stands still no more.
      if (action.planned) {
        session.channel.send({ type: 'took-over', term: action.term, epoch, resumeMs: report.resumeMs });
      }
      this.#dispatch({ type: 'took-over', epoch });
      const activating = this.#activateDisks(generation);
      // Tell a primary that still hears us, now that the VM runs here; its silence does not depend on it.
      if (!action.planned) this.#tellFenced(action.term);
      const disksMs = await activating;
      if (disksMs !== undefined) this.#takeover = { ...report, disksMs };
      await this.#afterTakeover(session, action.abandon);
      this.#log.info({ ...this.#takeover }, 'took over');
      this.emit('took-over', this.#takeover);
    } catch (error) {
      const failure = toHoldfastError(error, 'takeover');
      this.#log.error({ code: failure.code, err: failure.message }, 'takeover failed');
      await this.#records.remove(vm.vmId);
      this.#dispatch({
        type: 'takeover-failed',
        failure: { code: failure.code, message: failure.message },
      });
      this.emit('takeover-failed', failure);
    }
  }

  /** It is about to run here; whoever asks is told so from now on, also by the next daemon. */
  async #claim(record: VmRecord): Promise<void> {
    await this.#records.write(record);
    this.#record = record;
  }

  /**
   * Closes the journals, then lets the VM's writes through. It runs already, so there is no way back: what
   * fails is tried again, for as long as the VM waits.
   * @returns how long it took; undefined without disks, or if it has not succeeded at once
   */
  async #activateDisks(generation: AnyGeneration): Promise<number | undefined> {
    if (generation.session.disks === undefined) return undefined;
    const startMs = performance.now();
    try {
      await generation.activateDisks();
      return performance.now() - startMs;
    } catch (error) {
      this.#warn(toHoldfastError(error, "the VM runs, but its disks don't take writes yet"));
      this.#activating = this.#goOnActivating(generation);
      return undefined;
    }
  }

  async #goOnActivating(generation: AnyGeneration): Promise<void> {
    while (this.#state.phase.name === 'active' && this.#closing === undefined) {
      await delay(DISKS_RETRY_MS);
      if (this.#closing !== undefined) return; // the next daemon finishes it
      try {
        await generation.activateDisks();
        this.#log.info({}, "the VM's disks take writes");
        return;
      } catch (error) {
        this.#log.error({ err: toHoldfastError(error).message }, "the VM's disks don't take writes");
      }
    }
  }

  /** A replica fails: its session ends, for nothing more can be committed; what is committed stays. */
  #onDiskFault(fault: DiskFault, image: string): void {
    const message = `the replica of disk ${fault.id}, ${image}: ${fault.message}`;
    const details = { id: fault.id, image, errno: fault.errno };
    const failure =
      fault.code === 'HOLDFAST_E_NO_SPACE'
        ? new NoSpaceError(message, {
            cure: 'Make room in its file system; the primary comes back by itself.',
            details,
          })
        : new DiskError(message, {
            cure: 'Look after the disk it lies on, or move it (--replace); the primary comes back by itself.',
            details,
          });
    this.#warn(failure);
    const session = this.#session(this.#state.receiving);
    if (session === undefined || session.over) return;
    session.channel.send({ type: 'failure', code: failure.code, message: failure.message });
  }

  #warn(failure: HoldfastError): void {
    this.#log.error({ code: failure.code, err: failure.message }, 'warning');
    this.emit('warning', failure);
  }

  /** What may wait until the VM runs; nothing here may undo that. */
  async #afterTakeover(session: Session, abandon: number | undefined): Promise<void> {
    const report = (what: string) => (error: unknown) => {
      this.#log.warn({ err: toHoldfastError(error).message }, what);
    };
    session.liveness?.stop();
    // A QEMU that lacks pages may not answer until they are there: for one that loses them nobody waits.
    const announced = session.generation.announce().catch(report('announce-self'));
    await Promise.race([announced, lossOf(session.generation.early)]);
    // The journals are needed until the disks take writes.
    const needed = [this.#activating, this.#pages].filter((waits) => waits !== undefined);
    const receiving = Promise.all(needed).then(() => session.generation.endReceiving());
    const ended = receiving.catch(report('closing the receiver'));
    if (needed.length === 0) await ended;
    if (abandon !== undefined) await this.#drop(abandon);
  }

  /** The VM runs, and lacks pages. If they are lost it cannot go on: it would wait for them for ever. */
  async #awaitPages(session: Session, early: EarlyResume): Promise<void> {
    const { generation, fallBack } = session;
    try {
      await early.ended;
      const stats = early.stats();
      this.#log.info({ ...stats }, "all of the VM's pages are here");
      await this.#claimWhole();
      this.#releaseFallBack(session);
      this.emit('pages-complete', stats);
    } catch (error) {
      if (error instanceof CancelledError) return; // the VM has ended
      const loss = toHoldfastError(error, 'the VM that runs here lacks pages');
      this.#log.error({ code: loss.code, err: loss.message }, 'pages lost; ending the VM');
      await this.#takingOver; // first it is told that it ran here
      const goesOn = fallBack !== undefined && isOfSource(loss) && (await this.#isThere(generation));
      if (goesOn) this.#falling = fallBack;
      this.emit('pages-lost', goesOn ? survivedLoss(loss, fallBack.point) : loss);
      if (goesOn) await this.#goOnFromCheckpoint(session, fallBack, loss);
      else await this.#endLacking(session);
    }
  }

  async #endLacking(session: Session): Promise<void> {
    if (session.fallBack !== undefined) {
      this.#releaseFallBack(session);
      await this.#claimLost(); // its source is not to hear that it may go on here
    }
    await endLacking(session.generation, this.#log);
  }

  /** Else it has ended by itself, and its source, which has all of it, is better than any checkpoint. */
  async #isThere({ standby }: AnyGeneration): Promise<boolean> {
    return standby !== undefined && (await isAlive(standby)) && this.#state.phase.name === 'active';
  }

  /** Settles when the VM needs this process no more. */
  async #goOnFromCheckpoint(session: Session, fallBack: FallBack, loss: HoldfastError): Promise<void> {
    const startMs = performance.now();
    const { point, runs, daemon } = fallBack;
    const lacking = this.#record!;
    let fallen: FallenVm;
    try {
      fallen = await fallBack.goOn(session.generation, (vm) =>
        this.#claim(fallenRecord(lacking, point, { ...runs, process: vm }, daemon)),
      );
    } catch (error) {
      await this.#fallBackFailed(session, loss, error, point);
      return;
    }
    this.#releaseFallBack(session); // its memory has a claim of its own
    this.#fallen = fallen;
    this.#arrival = this.#awaitArrival(fallen);
    void fallen.exited.then((exit) => {
      const reason = `QEMU (process ${fallen.process.pid}) ended with ${exitText(exit)}`;
      this.#dispatch({ type: 'vm-exited', reason });
    });
    const report: FallBackReport = {
      ...{ ...point, reason: loss.message, totalMs: performance.now() - startMs },
      ...{ resumedAtMs: Date.now(), qmp: fallen.qmpPath, pid: fallen.process.pid },
    };
    const takeover = this.#takeover!; // it was told before any page could be lost
    this.#takeover = { ...takeover, qmp: report.qmp, pid: report.pid, fellBack: report };
    this.#log.info({ ...report }, 'the VM goes on from a checkpoint');
    this.emit('fell-back', report);
    await this.#arrival;
  }

  /** To who looks for leftovers: a generation like any other. */
  #placeOfFallBack({ session: { standby } }: AnyGeneration): FallBackPlace {
    const { qemu, replace } = this.#settings;
    const id = this.#nextGeneration++;
    return {
      dir: join(this.#dir, `g${id}`),
      ramPath: this.#ramPathOf(id),
      ...{ qemu, replacements: [...standby.replacements, ...replace], log: this.#log },
    };
  }

  async #fallBackFailed(
    session: Session,
    loss: HoldfastError,
    error: unknown,
    point: FallBackPoint,
  ): Promise<void> {
    const { standby } = session.generation;
    const isStuck = standby !== undefined && (await isAlive(standby)); // not even SIGKILL has ended it
    const failure = fallBackFailure(loss, error, point, isStuck);
    this.#log.error({ code: failure.code, err: failure.message }, 'no checkpoint runs in its place');
    await this.#claimLost();
    this.#falling = undefined;
    this.#leavesLog = true;
    this.#releaseFallBack(session);
    if (isStuck)
      this.#warn(failure); // this daemon does not end, and say so then
    else this.#dispatch({ type: 'vm-exited', reason: failure.message });
    this.emit('fall-back-failed', failure);
  }

  /** Its memory follows from the checkpoint. */
  async #awaitArrival({ complete }: FallenVm): Promise<void> {
    try {
      this.#log.info({ ...(await complete) }, "all of the VM's memory is here");
      await this.#changeRecord(arrivedRecord, 'the record still says that the VM needs this process');
    } catch (error) {
      const failure = toHoldfastError(error);
      this.#log.error({ code: failure.code, err: failure.message }, 'the VM was ended');
      this.emit('fall-back-failed', failure);
    }
  }

  /** Nobody runs it, and nobody will. */
  async #claimLost(): Promise<void> {
    try {
      await this.#claim(lostRecord(this.#record!));
    } catch (error) {
      this.#log.warn(
        { err: toHoldfastError(error).message },
        'the record says that the VM goes on from a checkpoint',
      );
    }
  }

  /** From now on it is a VM as any other: its end is no loss that its source has to hear of. */
  async #claimWhole(): Promise<void> {
    await this.#changeRecord(wholeRecord, 'the record still says that the VM lacks pages');
  }

  /** @param otherwise what it says if that fails */
  async #changeRecord(change: (record: VmRecord) => VmRecord, otherwise: string): Promise<void> {
    try {
      const record = await this.#records.read(this.#state.vm?.vmId ?? '');
      if (record !== undefined) await this.#claim(change(record));
    } catch (error) {
      this.#log.warn({ err: toHoldfastError(error).message }, otherwise);
    }
  }

  #tellFenced(term: number): void {
    for (const session of this.#sessions.values()) {
      session.channel.send({
        type: 'session-refused',
        code: 'HOLDFAST_E_FENCED',
        message: `the backup took over in term ${term}`,
        term,
      });
    }
  }

  async #cleanUp(reason: string): Promise<void> {
    this.#log.info({ reason }, 'protection ended');
    if (this.#state.phase.name === 'ended') await this.#close({ kind: 'vm-exited', reason });
  }

  async #close(outcome: BackupOutcome): Promise<void> {
    clearTimeout(this.#graceTimer);
    await this.#server.close();
    await this.#enquiries.close();
    await this.#takingOver; // what is half taken over would be lost to both sides
    if (outcome.kind === 'stopped') await this.#pages; // the VM waits for nobody else
    if (this.#state.phase.name === 'grace') {
      this.#log.warn({ reason: this.#state.phase.reason }, 'closing drops the checkpoint of a lost primary');
    }
    const takeover = this.#takeover;
    const { phase } = this.#state;
    const failed = phase.name === 'ended' && phase.failure !== undefined; // its files say why: they stay
    for (const [id, session] of [...this.#sessions]) {
      const isTheVm = takeover !== undefined && session.generation.standby?.pid === takeover.pid;
      if (isTheVm && outcome.kind === 'vm-exited') {
        await session.generation.removeFiles();
      }
      if (!failed) await this.#drop(id);
    }
    if (outcome.kind === 'vm-exited') await this.#leaveEnded();
    // Also those that a detach has just begun: their standbys hold a tap and the replica until they have ended.
    await Promise.all(this.#drops);
    await this.#replicas?.close(); // a takeover that failed keeps its generation, but not the images' locks
    if (!failed && !this.#leavesLog && (takeover === undefined || outcome.kind === 'vm-exited')) {
      await rm(this.#dir, { recursive: true, force: true }).catch(() => {});
    }
    const final: BackupOutcome =
      takeover !== undefined && outcome.kind === 'stopped' ? { kind: 'left-running', takeover } : outcome;
    this.emit('ended', final);
    this.#ended.resolve(final);
  }

  /** The VM that ran here has ended. */
  async #leaveEnded(): Promise<void> {
    await this.#arrival;
    await this.#fallen?.removeFiles();
    const record = this.#record;
    if (record === undefined) return;
    // The source of one that was lost, which may ask again, must not go on by itself.
    if (!outlivesItsVm(record)) await this.#records.remove(record.vmId);
    else if (record.fallsBackTo !== undefined) await this.#claimLost();
  }

  /** VMs whose takeover an earlier daemon did not live to finish: their writes wait for it. */
  async #finishTakeovers(): Promise<void> {
    for (const record of await this.#records.list()) {
      while (this.#closing === undefined && record.role === 'active' && (await isAlive(record.process))) {
        try {
          if (await this.#finishTakeover(record.disks ?? [])) {
            this.#log.info({ vm: record.vmName }, 'a takeover of an earlier run is finished');
          }
          break;
        } catch (error) {
          this.#warn(toHoldfastError(error, `the VM ${record.vmName} runs, but its disks don't take writes`));
          await delay(DISKS_RETRY_MS);
        }
      }
    }
  }

  async #finishTakeover(sockets: readonly string[]): Promise<boolean> {
    const support = this.#support;
    const replicas = this.#replicas;
    if (support === undefined || replicas === undefined) return false;
    const servers = await support.find(sockets);
    if (servers.length < sockets.length) throw new DiskError('a disk server of it is not there');
    return await finishTakeover({
      servers,
      take: () =>
        replicas.take(
          servers.map(({ id, imagePath, imageBytes }) => ({ id, imagePath, imageBytes })),
          [],
        ),
      retire: (disks) => replicas.retire(disks),
    });
  }

  /** Standbys and replicas of an earlier daemon of this name that was killed. */
  async #removeLeftovers(): Promise<void> {
    const kept = new Set<string>();
    for (const record of await this.#records.list()) {
      if (record.role === 'active' && (await isAlive(record.process))) kept.add(record.ramPath);
    }
    const names = await readdir(this.#settings.ramDir).catch(() => [] as string[]);
    for (const name of names) {
      const path = join(this.#settings.ramDir, name);
      const daemon = name.startsWith(this.#replicaPrefix)
        ? /^(\d+)-g\d+\.ram$/.exec(name.slice(this.#replicaPrefix.length))?.[1]
        : undefined;
      if (daemon === undefined || kept.has(path) || existsSync(`/proc/${daemon}`)) continue;
      await endProcessesUsing(path, this.#log);
      await rm(path, { force: true });
      this.#log.info({ path }, 'removed the replica of an earlier run');
    }
  }
}

/** Settles if pages that follow a VM are lost. */
const lossOf = (early: EarlyResume | undefined): Promise<void> =>
  new Promise((resolve) => {
    early?.ended.catch(() => resolve());
  });

/** Why no other VM can come now. */
const occupation = ({ phase }: BackupState): string | undefined => {
  switch (phase.name) {
    case 'idle':
      return undefined;
    case 'active':
    case 'taking-over':
      return 'it runs a VM that it took over';
    case 'ended':
      return 'it has ended';
    default:
      return 'it is there for another VM';
  }
};

/** Ends QEMUs that an earlier run started over this replica: their command line names it. */
const endProcessesUsing = async (ramPath: string, log: Logger): Promise<void> => {
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const commandLine = await readFile(`/proc/${entry}/cmdline`, 'utf8').catch(() => '');
    const [binary = '', ...argv] = commandLine.split('\0');
    if (!/qemu-/.test(binary) || !argv.some((argument) => argument.includes(`mem-path=${ramPath}`))) continue;
    log.warn({ pid: Number(entry), ramPath }, 'ending the standby of an earlier run');
    try {
      process.kill(Number(entry), 'SIGKILL');
    } catch {
      // it ended by itself
    }
  }
};
