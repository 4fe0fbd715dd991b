/**
 * The primary's effects: carries out what machine.ts decides, and reports back
 * as events. One Primary protects one running VM.
 *
 *   Primary.start ─ pre-flight ─ inject ─► machine ─► connect, base sync, epochs …
 *        machine.step ──actions──► effects here ──events──► machine.step
 */
import { EventEmitter } from 'node:events';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type ControlChannel, connectControl } from '../control/channel.js';
import { Liveness } from '../control/liveness.js';
import type { ControlMessage } from '../control/messages.js';
import { CancelledError, PeerLostError, toHoldfastError } from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native, type PrimaryEngine, type RamMapping } from '../native.js';
import { FilterBufferGate } from '../output/filter-buffer.js';
import { NoGate, type OutputGate } from '../output/gate.js';
import { QmpClient } from '../qmp/client.js';
import { migrateToFile } from '../qmp/recipes.js';
import { type VmRecord, VmRecords } from '../state/records.js';
import { describeVm, type MemoryBackend, type VmDescription } from '../vm/describe.js';
import { parseMigrationPrefix, xenSaveHeaderBytes } from '../vm/migration-stream.js';
import { assertProtectable } from '../vm/preflight.js';
import type { ProcessIdentity } from '../vm/process.js';
import { CaptureModeChooser } from './capture-mode.js';
import { fixedConvergence, type RoundStats } from './convergence.js';
import { type EpochInProgress, reportOf } from './epoch-in-progress.js';
import { type EpochReport, EpochStatistics, type EpochSummary } from './epoch-report.js';
import { recordOf } from './identity.js';
import {
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

/** QEMU writes 5 KB to a few hundred KB of device state; ROM blocks come on top in the prefix. */
const DEVICE_BYTES_MAX = 64 << 20;
/** A round of this many pages fits into a pause of a few milliseconds. */
const BASE_ROUND_PAGES_SMALL = 4_096;
/** Epochs an iterator may fall behind before the oldest are dropped. */
const ITERATOR_EPOCHS_MAX = 1_024;
/** Reserving the replica's memory takes the backup about a second per 4 GB; then it starts QEMU. */
const SESSION_TIMEOUT_MS = 120_000;

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
  };
  readonly backup: string;
  readonly term: number;
  readonly epoch: number;
  readonly committedEpoch: number;
  readonly outputHeld: boolean;
  readonly baseRounds: number;
  readonly settings: Omit<PrimarySettings, 'runDir' | 'replace' | 'name' | 'backup'>;
  readonly epochs: number;
  readonly distributions: EpochSummary;
}

interface PrimaryEvents {
  epoch: [EpochReport];
  round: [RoundStats];
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
  readonly #records: VmRecords;
  readonly #engine: PrimaryEngine;
  readonly #gate: OutputGate;
  readonly #scratchDir: string;
  readonly #log: Logger;
  readonly #modes: CaptureModeChooser;
  readonly #statistics = new EpochStatistics();
  readonly #ended: { promise: Promise<Outcome>; resolve: (outcome: Outcome) => void };
  readonly #abortConnect = new AbortController();
  #state: PrimaryState;
  #channel: ControlChannel | undefined;
  #liveness: Liveness | undefined;
  #intervalTimer: NodeJS.Timeout | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  #inProgress: EpochInProgress | undefined;
  #lastPauseStartMs: number | undefined;
  #lastResumeMs: number | undefined;
  /** Stops and starts of the VM in this window are ours; others are the operator's. */
  #drivingVm = false;
  #shutdownReason: string | undefined;
  #finishing: Promise<void> | undefined;

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
    scratchDir: string;
    log: Logger;
    leftStopped: boolean;
    operatorPaused: boolean;
  }) {
    super();
    this.#settings = parts.settings;
    this.#key = parts.key;
    this.#qmp = parts.qmp;
    this.#vm = parts.vm;
    this.#ram = parts.ram;
    this.#vmId = parts.record.vmId;
    this.#process = parts.record.process;
    this.#records = parts.records;
    this.#engine = parts.engine;
    this.#gate = parts.gate;
    this.#scratchDir = parts.scratchDir;
    this.#log = parts.log;
    this.#modes = new CaptureModeChooser(parts.settings.captureMode);
    let resolve: (outcome: Outcome) => void = () => {};
    const promise = new Promise<Outcome>((settle) => {
      resolve = settle;
    });
    this.#ended = { promise, resolve };
    this.#drivingVm = parts.leftStopped;
    this.#state = initialState(
      {
        intervalMs: parts.settings.intervalMs,
        onBackupLost: parts.settings.onBackupLost,
        retryMs: parts.settings.retryMs,
        captureFailuresMax: 3,
        convergence: fixedConvergence({
          pagesSmall: BASE_ROUND_PAGES_SMALL,
          roundsMax: parts.settings.baseRoundsMax,
        }),
      },
      {
        term: parts.record.term,
        gateAdopted: parts.gate.installed,
        operatorPaused: parts.operatorPaused,
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
   * @throws ConfigError, UnsupportedVmError (nothing was touched), InjectError,
   *         RamMappingError, QmpConnectionError
   */
  static async start(options: PrimaryOptions): Promise<Primary> {
    const { key, qmp: qmpPath, signal, logger, ...input } = options;
    const settings = checkPrimarySettings(input);
    signal?.throwIfAborted();
    const log = logger ?? NOTHING_LOGGED;
    const qmp = await QmpClient.connect(qmpPath, { timeoutMs: 5_000, sendWithFd: native.sendWithFd, signal });
    let engine: PrimaryEngine | undefined;
    try {
      const vm = await describeVm({
        qmp,
        pid: native.peerPid(qmp.socketFd),
        findRamMappings: native.findRamMappings,
      });
      assertProtectable(vm);
      // assertProtectable has shown that there is exactly one backend, and that it is mapped.
      const backend = vm.memoryBackends[0] as MappedBackend;
      const records = new VmRecords(settings.runDir);
      const record = await recordOf(records, vm, qmpPath);
      const scratchDir = join(settings.runDir, `primary-${settings.name}`);
      await mkdir(scratchDir, { recursive: true, mode: 0o700 });
      const gate =
        settings.gate === 'none' ? new NoGate() : new FilterBufferGate(vm.netdevs.map((netdev) => netdev.id));
      const adopted = await gate.adopt(qmp);
      const { running } = await qmp.execute('query-status');
      engine = new native.PrimaryEngine({
        pid: vm.process.pid,
        ram: backend.mapping,
        stagingBytesMax: settings.stagingMiB * (1 << 20),
        strategy: settings.sender,
        copyThreads: settings.copyThreads,
      });
      const attached = await engine.attach();
      log.info(
        { pid: vm.process.pid, adopted: attached.adopted, injectMs: attached.injectMs, gateAdopted: adopted },
        'attached to the VM',
      );
      const ours = attached.adopted || adopted; // then a stopped VM is one that our own pause left stopped
      const primary = new Primary({
        settings,
        key,
        qmp,
        vm,
        ram: backend,
        record,
        records,
        engine,
        gate,
        scratchDir,
        log,
        leftStopped: !running && ours,
        operatorPaused: !running && !ours,
      });
      primary.#listen(signal);
      primary.#dispatch({ type: 'start' });
      return primary;
    } catch (error) {
      await engine?.detach().catch(() => {});
      await engine?.close();
      await qmp.close();
      throw toHoldfastError(error);
    }
  }

  /** Settles when protection has ended, with how. Never rejects. */
  get ended(): Promise<Outcome> {
    return this.#ended.promise;
  }

  get vmId(): string {
    return this.#vmId;
  }

  /** Settles when a backup has acknowledged a checkpoint. @throws HoldfastError if protection ends before. */
  async protectedOnce(): Promise<void> {
    if (this.#state.everProtected) return;
    await new Promise<void>((resolve, reject) => {
      const onEpoch = (): void => {
        this.off('ended', onEnded);
        resolve();
      };
      const onEnded = (outcome: Outcome): void => {
        this.off('epoch', onEpoch);
        reject(outcomeError(outcome) ?? new CancelledError(`protection ended: ${outcome.kind}`));
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
        running: !this.#state.vmStopped && !this.#state.operatorPaused,
      },
      backup,
      term: this.#state.term,
      epoch: this.#state.epoch,
      committedEpoch: this.#state.committed,
      outputHeld: this.#gate.installed,
      baseRounds: phase.name === 'syncing' ? phase.rounds.length : 0,
      settings,
      epochs: this.#statistics.epochs,
      distributions: this.#statistics.summary(),
    };
  }

  /**
   * Planned move: the VM continues on the backup, its QEMU here ends. Settles
   * with how protection ended: `switched-over`, or what came in between.
   * @throws CancelledError when there is no backup to move to, or it could not take over.
   */
  async switchover(): Promise<Outcome> {
    if (this.#state.phase.name !== 'protected') {
      throw new CancelledError(`switchover: the VM is not protected now (${this.#state.phase.name})`, {
        cure: 'Wait until `holdfast status` says protected.',
      });
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

  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
  }

  // --- events in -----------------------------------------------------------

  #listen(signal: AbortSignal | undefined): void {
    signal?.addEventListener('abort', () => void this.detach(), { once: true });
    this.#qmp.on('STOP', () => {
      if (!this.#drivingVm) this.#dispatch({ type: 'vm-paused' });
    });
    this.#qmp.on('RESUME', () => {
      if (!this.#drivingVm) this.#dispatch({ type: 'vm-resumed' });
    });
    this.#qmp.on('RESET', () => this.#dispatch({ type: 'vm-reset' }));
    for (const event of ['DEVICE_ADDED', 'DEVICE_DELETED']) {
      this.#qmp.on(event, () => this.#dispatch({ type: 'vm-reset' })); // ROM blocks may have come or gone
    }
    this.#qmp.on('SHUTDOWN', (event) => {
      this.#shutdownReason = String(event.data.reason ?? 'shutdown');
    });
    void this.#qmp.closed.then(() => {
      const ended = this.#shutdownReason !== undefined && this.#shutdownReason !== 'host-error';
      this.#dispatch({
        type: 'vm-gone',
        ended,
        reason: this.#shutdownReason ?? 'QEMU closed its monitor without a shutdown',
      });
    });
  }

  #dispatch(event: PrimaryEvent): void {
    const before = this.#state.phase.name;
    const pendingBefore = this.#state.pending;
    const [next, actions] = step(this.#state, event);
    this.#state = next;
    if (next.phase.name !== before || next.pending !== pendingBefore) {
      this.#log.info({ event: event.type, phase: next.phase.name, epoch: next.epoch }, 'phase');
      this.emit('phase', this.status());
    }
    for (const action of actions) this.#perform(action);
  }

  #perform(action: PrimaryAction): void {
    switch (action.type) {
      case 'connect':
        void this.#connect(action.term, action.outputHeld);
        return;
      case 'base-round':
        void this.#baseRound(action.first, action.resume);
        return;
      case 'arm-interval':
        clearTimeout(this.#intervalTimer);
        this.#intervalTimer = setTimeout(() => this.#dispatch({ type: 'tick' }), action.ms);
        return;
      case 'arm-retry':
        clearTimeout(this.#retryTimer);
        this.#retryTimer = setTimeout(() => this.#dispatch({ type: 'retry' }), action.ms);
        return;
      case 'begin-epoch':
        void this.#beginEpoch(action);
        return;
      case 'resume':
        void this.#resume();
        return;
      case 'resume-after-failed-handover':
        void this.#resume();
        return;
      case 'send':
        void this.#send(action.epoch);
        return;
      case 'release':
        void this.#release(action.epoch);
        return;
      case 'hand-over':
        this.#channel?.send({ type: 'switchover', epoch: action.epoch });
        return;
      case 'enter-loss':
        void this.#enterLoss(action);
        return;
      case 'finish':
        this.#finishing ??= this.#finish(action.outcome, action.release);
        return;
    }
  }

  #fail(error: unknown, context: string): void {
    if (!this.#qmp.open) return; // QEMU is gone, and that is what gets reported
    const failure = toHoldfastError(error, context);
    this.#log.error({ code: failure.code, err: failure.message }, context);
    this.#dispatch({ type: 'failed', failure });
  }

  // --- connection ------------------------------------------------------------

  async #connect(term: number, outputHeld: boolean): Promise<void> {
    const address = parseHostPort(this.#settings.backup);
    let channel: ControlChannel | undefined;
    try {
      channel = await connectControl(address, this.#key, {
        timeoutMs: this.#settings.connectTimeoutMs,
        signal: this.#abortConnect.signal,
      });
      const answer = await this.#openSession(channel, term, outputHeld);
      if (answer.type === 'session-refused') {
        await channel.close();
        if (answer.code === 'HOLDFAST_E_FENCED') {
          this.#dispatch({ type: 'fenced', term: answer.term ?? term, message: answer.message });
        } else {
          this.#dispatch({ type: 'connect-failed', failure: { code: answer.code, message: answer.message } });
        }
        return;
      }
      this.#useChannel(channel); // heartbeats from here on: the backup counts on them
      await this.#engine.connect({
        host: address.host,
        port: answer.bulkPort,
        token: channel.bulkToken,
        timeoutMs: this.#settings.connectTimeoutMs,
      });
      this.#dispatch({ type: 'connected' });
    } catch (error) {
      if (this.#channel === channel) await this.#disconnect();
      await channel?.close();
      const failure = toHoldfastError(error);
      this.#log.warn({ code: failure.code, err: failure.message }, 'backup not reached');
      this.#dispatch({ type: 'connect-failed', failure: { code: failure.code, message: failure.message } });
    }
  }

  #openSession(channel: ControlChannel, term: number, outputHeld: boolean): Promise<SessionAnswer> {
    return new Promise<SessionAnswer>((resolve, reject) => {
      const timer = setTimeout(
        () =>
          reject(new PeerLostError(`the backup did not prepare a standby within ${SESSION_TIMEOUT_MS} ms`)),
        SESSION_TIMEOUT_MS,
      );
      const onMessage = (message: ControlMessage): void => {
        if (message.type !== 'session-ready' && message.type !== 'session-refused') return;
        channel.off('message', onMessage);
        channel.off('closed', reject);
        clearTimeout(timer);
        resolve(message);
      };
      channel.on('message', onMessage);
      channel.on('closed', reject);
      channel.start();
      channel.send({
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
        standby: {
          binary: this.#vm.binary.slice(this.#vm.binary.lastIndexOf('/') + 1),
          qemuVersion: this.#vm.qemuVersion,
          argv: [...this.#vm.argv],
          cwd: this.#vm.cwd,
          machineType: this.#vm.machineType,
          backendId: this.#ram.id,
          replacements: this.#settings.replace,
        },
      });
    });
  }

  #useChannel(channel: ControlChannel): void {
    this.#channel = channel;
    const lost = (reason: string): void => {
      if (this.#channel !== channel) return; // of an earlier connection
      this.#dispatch({ type: 'backup-lost', reason });
    };
    if (channel.isClosed) {
      lost('control connection closed');
      return;
    }
    channel.on('closed', (error) => lost(error.message));
    channel.on('message', (message) => {
      this.#onMessage(message);
    });
    this.#liveness = new Liveness({
      intervalMs: this.#settings.heartbeatIntervalMs,
      timeoutMs: this.#settings.heartbeatTimeoutMs,
      sendHeartbeat: (sequence) => channel.send({ type: 'heartbeat', sequence }),
      idleMs: () => channel.idleMs(),
      onSilent: (idleMs) => lost(`the backup is silent since ${Math.round(idleMs)} ms`),
    });
  }

  #onMessage(message: ControlMessage): void {
    switch (message.type) {
      case 'took-over':
        this.#dispatch({
          type: 'took-over',
          term: message.term,
          epoch: message.epoch,
          resumeMs: message.resumeMs,
        });
        return;
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
    this.#liveness?.stop();
    this.#liveness = undefined;
    const channel = this.#channel;
    this.#channel = undefined;
    await Promise.all([this.#engine.disconnect(), channel?.close()]);
  }

  // --- base sync and epochs ----------------------------------------------------

  async #baseRound(first: boolean, resume: boolean): Promise<void> {
    try {
      if (resume) await this.#cont();
      const round = await this.#engine.baseRound({ first });
      this.#log.info({ ...round, first }, 'base sync round');
      this.emit('round', round);
      this.#dispatch({ type: 'round-done', round });
    } catch (error) {
      this.#lostOnBulk(error, 'base sync');
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

  async #beginEpoch(action: Extract<PrimaryAction, { type: 'begin-epoch' }>): Promise<void> {
    const { epoch } = action;
    const devicePath = join(this.#scratchDir, `device-${epoch % 2}`);
    const pauseStartMs = performance.now();
    this.#drivingVm = true;
    try {
      const xenSave = this.#settings.deviceState === 'xen-save';
      // One write: QEMU's monitor runs them in order, without a round trip in between.
      const [stopAnswer, ...restAnswers] = this.#qmp.pipeline([
        { execute: 'stop' },
        ...(xenSave
          ? [
              {
                execute: 'xen-save-devices-state',
                // live:false, always: true inactivates the disks (DESIGN part 4).
                arguments: { filename: devicePath, live: false },
              } as const,
            ]
          : []),
        ...this.#gate.boundaryCommands(),
      ]);
      const marks: number[] = [];
      const timed = restAnswers.map(async (answer, index) => {
        await answer;
        marks[index] = performance.now();
      });
      await stopAnswer;
      const stoppedMs = performance.now();
      const capture = this.#engine.capture({ epoch, mode: this.#modes.next() });
      const outcomes = await Promise.allSettled([capture, ...timed]);
      const failed = outcomes.find((outcome) => outcome.status === 'rejected');
      if (failed !== undefined) throw failed.reason;
      if (!xenSave) {
        await migrateToFile(this.#qmp, devicePath);
        marks[0] = performance.now();
      }
      const prefix = xenSave && action.takePrefix ? await this.#takePrefix() : undefined;
      if (action.installGate) await this.#gate.install(this.#qmp);
      const captured = await capture;
      const gateDoneMs = marks.at(-1) ?? stoppedMs;
      this.#inProgress = {
        epoch,
        mode: captured.mode,
        dirtyPages: captured.dirtyPages,
        pauseStartMs,
        beganMs: this.#lastResumeMs ?? pauseStartMs,
        intervalMs: this.#lastPauseStartMs === undefined ? 0 : pauseStartMs - this.#lastPauseStartMs,
        stopMs: stoppedMs - pauseStartMs,
        deviceMs: (marks[0] ?? stoppedMs) - stoppedMs,
        gateMs: Math.max(0, gateDoneMs - (marks[0] ?? stoppedMs)),
        scanMs: captured.scanMs,
        copyMs: captured.copyMs,
        devicePath,
        prefix,
        contMs: 0,
        pauseMs: 0,
        sent: undefined,
      };
      this.#lastPauseStartMs = pauseStartMs;
      this.#dispatch({ type: 'captured', epoch, mode: captured.mode });
    } catch (error) {
      await this.#captureFailed(epoch, error);
    }
  }

  /** The pages go back to the tracker's account, the VM runs on. */
  async #captureFailed(epoch: number, error: unknown): Promise<void> {
    const failure = toHoldfastError(error, `capture of epoch ${epoch}`);
    this.#log.warn({ epoch, code: failure.code, err: failure.message }, 'capture failed');
    if (!this.#qmp.open) return;
    try {
      await this.#engine.abort(epoch);
      await this.#cont();
    } catch (second) {
      this.#log.error({ err: toHoldfastError(second).message }, 'the VM could not be resumed');
    }
    this.#dispatch({ type: 'capture-failed', epoch, failure });
  }

  /** One ordinary migration without RAM, of which the part before the first device is kept. */
  async #takePrefix(): Promise<{ path: string; bytes: number }> {
    const path = join(this.#scratchDir, 'prefix');
    await migrateToFile(this.#qmp, path);
    const { bytes } = parseMigrationPrefix(await readFile(path));
    return { path, bytes };
  }

  async #cont(): Promise<void> {
    this.#drivingVm = true;
    await this.#qmp.execute('cont');
    this.#drivingVm = false;
    this.#lastResumeMs = performance.now();
  }

  async #resume(): Promise<void> {
    const startMs = performance.now();
    try {
      await this.#cont();
    } catch (error) {
      return this.#fail(error, 'resuming the VM');
    }
    const inProgress = this.#inProgress;
    if (inProgress !== undefined) {
      const nowMs = performance.now();
      inProgress.contMs = nowMs - startMs;
      inProgress.pauseMs = nowMs - inProgress.pauseStartMs;
    }
    this.#dispatch({ type: 'resumed' });
  }

  async #send(epoch: number): Promise<void> {
    const inProgress = this.#inProgress;
    if (inProgress === undefined || inProgress.epoch !== epoch) return;
    try {
      const sent = await this.#engine.send({
        epoch,
        device: {
          path: inProgress.devicePath,
          skipBytes: this.#settings.deviceState === 'xen-save' ? xenSaveHeaderBytes : 0,
        },
        prefix:
          inProgress.prefix === undefined
            ? undefined
            : { path: inProgress.prefix.path, skipBytes: 0, maxBytes: inProgress.prefix.bytes },
      });
      inProgress.sent = sent;
      this.#modes.observe({
        dirtyBytes: inProgress.dirtyPages * this.#ram.mapping.pageSize,
        copyMs: inProgress.copyMs,
        ackMs: sent.ackMs,
      });
      this.#dispatch({ type: 'acked', epoch });
    } catch (error) {
      this.#lostOnBulk(error, `sending epoch ${epoch}`);
    }
  }

  async #release(epoch: number): Promise<void> {
    try {
      await this.#gate.release(this.#qmp);
    } catch (error) {
      return this.#fail(error, `releasing the output of epoch ${epoch}`);
    }
    const releasedMs = performance.now();
    const inProgress = this.#inProgress;
    if (inProgress?.sent !== undefined && inProgress.epoch === epoch) {
      const report = reportOf(inProgress, inProgress.sent, releasedMs);
      this.#statistics.add(report);
      this.emit('epoch', report);
    }
    this.#dispatch({ type: 'released', epoch });
  }

  // --- ends --------------------------------------------------------------------

  async #enterLoss(action: Extract<PrimaryAction, { type: 'enter-loss' }>): Promise<void> {
    clearTimeout(this.#intervalTimer);
    const reason = this.#state.phase.name === 'waiting' ? this.#state.phase.reason : '';
    this.#log.warn({ reason, vm: action.vm, openGate: action.openGate }, 'backup lost');
    try {
      // If the backup can still hear us: released output voids its checkpoint; held output doesn't.
      this.#channel?.send({ type: action.openGate ? 'detach' : 'reconnecting' });
      await this.#disconnect();
      if (action.abortEpoch !== undefined) await this.#engine.abort(action.abortEpoch);
      if (action.vm === 'stop') {
        this.#drivingVm = true;
        await this.#qmp.execute('stop');
      } else if (!this.#state.operatorPaused) {
        await this.#cont();
      }
      if (action.openGate) {
        await this.#gate.open(this.#qmp);
        await this.#writeRecord('active');
      }
      this.#dispatch({ type: 'loss-entered' });
    } catch (error) {
      this.#fail(error, 'after losing the backup');
    }
  }

  async #finish(outcome: Outcome, release: boolean): Promise<void> {
    clearTimeout(this.#intervalTimer);
    clearTimeout(this.#retryTimer);
    this.#abortConnect.abort();
    this.#log.info({ outcome: outcome.kind, release }, 'ending');
    try {
      if (outcome.kind === 'detached') this.#channel?.send({ type: 'detach' });
      if (outcome.kind === 'vm-ended') this.#channel?.send({ type: 'vm-ended', reason: outcome.reason });
      if (outcome.kind === 'vm-lost') this.#channel?.send({ type: 'vm-lost', reason: outcome.reason });
      await this.#disconnect();
      if (this.#qmp.open) await this.#leaveVm(outcome, release);
    } catch (error) {
      this.#log.error({ err: toHoldfastError(error).message }, 'while ending');
    }
    await this.#engine.detach().catch((error: unknown) => {
      this.#log.error({ err: toHoldfastError(error).message }, 'detaching from QEMU');
    });
    await this.#engine.close();
    await this.#qmp.close();
    await rm(this.#scratchDir, { recursive: true, force: true }).catch(() => {});
    this.emit('ended', outcome);
    this.#ended.resolve(outcome);
  }

  /** Leaves the VM in the state that the outcome defines (DESIGN part 3: the guest is never harmed by us). */
  async #leaveVm(outcome: Outcome, release: boolean): Promise<void> {
    this.#drivingVm = true;
    switch (outcome.kind) {
      case 'switched-over':
        // Its twin runs on the backup: this one must never run again.
        await this.#qmp.execute('quit').catch(() => {});
        await this.#qmp.closed;
        await this.#records.remove(this.#vmId);
        return;
      case 'fenced':
        await this.#qmp.execute('stop');
        await this.#writeRecord('superseded');
        return;
      case 'detached':
      case 'failed':
        if (!release) {
          await this.#qmp.execute('stop');
          return;
        }
        if (!this.#state.operatorPaused) await this.#qmp.execute('cont');
        await this.#gate.open(this.#qmp);
        if (outcome.kind === 'detached') await this.#records.remove(this.#vmId);
        return;
      case 'vm-ended':
      case 'vm-lost':
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

type SessionAnswer = Extract<ControlMessage, { type: 'session-ready' | 'session-refused' }>;
