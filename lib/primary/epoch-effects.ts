/**
 * How one epoch after the other is carried out: what machine.ts asks for between
 * `begin-epoch` and `release`, and the choices that are made anew for each.
 *
 *   begin ─ last slices? ─ pause, capture ─► 'captured' ─► resume ─► 'resumed'
 *     ▲                                              └─► send ─► 'acked' ─► release ─► 'released'
 *     └── 'tick' ◄── EpochTimer (pace.ts) ◄── output, slices (speculation.ts) ◄───────────────┘
 */
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { CaptureResult, PrimaryEngine } from '../native.js';
import { isInQemu, type OutputGate } from '../output/gate.js';
import { SenderChooser, type SenderExplanation, type UnavailableSenders } from '../send/sender-choice.js';
import { CaptureModeChooser } from './capture-mode.js';
import type { PrimaryDisks } from './disks.js';
import { type EpochInProgress, reportOf, type SentEpoch } from './epoch-in-progress.js';
import { type EpochReport, EpochStatistics, type EpochSummary, type FinalEpoch } from './epoch-report.js';
import { EpochTimer } from './epoch-timer.js';
import { LoadModel } from './load-model.js';
import type { PrimaryAction, PrimaryEvent, PrimaryState } from './machine.js';
import type { PrimarySettings } from './options.js';
import { Pace } from './pace.js';
import { explainPacing, type PacingExplanation } from './pacing-report.js';
import { diskPagesOf } from './page-disks.js';
import { sendLoadOf } from './send-load.js';
import { Slices } from './slices.js';
import { SpeculationChooser } from './speculation.js';
import { pausedByOther, prefixFile, type VmDriver } from './vm-driver.js';

export interface EpochEffectsOptions {
  readonly settings: Pick<
    PrimarySettings,
    | 'captureMode'
    | 'speculate'
    | 'sender'
    | 'ackTimeoutMs'
    | 'intervalMs'
    | 'minIntervalMs'
    | 'maxIntervalMs'
    | 'pauseBudgetMs'
    | 'delayBudgetMs'
    | 'stagingMiB'
  >;
  readonly engine: Pick<PrimaryEngine, 'prestage' | 'capture' | 'send' | 'abort'>;
  readonly driver: Pick<VmDriver, 'lastResumeMs' | 'isStoppedByUs' | 'pause' | 'resume' | 'release' | 'idle'>;
  readonly gate: Pick<OutputGate, 'kind' | 'seesOutput' | 'onOutput' | 'stats'>;
  readonly disks?: Pick<PrimaryDisks, 'captured' | 'acknowledged'> | undefined;
  /** Bytes. */
  readonly pageSize: number;
  readonly unavailable: UnavailableSenders;
  readonly log: Logger;
  readonly state: () => PrimaryState;
  readonly qmpIsOpen: () => boolean;
  readonly dispatch: (event: PrimaryEvent) => void;
  /** The VM cannot be driven any more: ends protection. */
  readonly fail: (error: unknown, context: string) => void;
  /** The bulk connection failed. */
  readonly lostOnBulk: (error: unknown, context: string) => void;
  readonly onReport: (report: EpochReport) => void;
  /** The last epoch before a hand-over was acknowledged. */
  readonly onFinal: (final: FinalEpoch) => void;
}

export class EpochEffects {
  readonly #options: EpochEffectsOptions;
  readonly #engine: EpochEffectsOptions['engine'];
  readonly #driver: EpochEffectsOptions['driver'];
  readonly #modes: CaptureModeChooser;
  readonly #senders: SenderChooser;
  readonly #load = new LoadModel();
  readonly #pace: Pace;
  readonly #timer: EpochTimer;
  readonly #speculation: SpeculationChooser;
  readonly #slices: Slices;
  readonly #statistics = new EpochStatistics();
  #inProgress: EpochInProgress | undefined;
  #lastPauseStartMs: number | undefined;
  #lastReport: EpochReport | undefined;

  constructor(options: EpochEffectsOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#driver = options.driver;
    this.#modes = new CaptureModeChooser(options.settings.captureMode);
    this.#senders = new SenderChooser({
      sender: options.settings.sender,
      unavailable: options.unavailable,
    });
    const { settings, gate, pageSize } = options;
    const stagingPages = Math.floor((settings.stagingMiB * (1 << 20)) / pageSize);
    this.#pace = new Pace({ ...settings, seesOutput: gate.seesOutput, stagingPages }, this.#load);
    this.#timer = new EpochTimer(this.#pace, (trigger) => options.dispatch({ type: 'tick', trigger }));
    this.#speculation = new SpeculationChooser(
      { enabled: settings.speculate === 'auto', pageSize, stagingPages },
      this.#load,
    );
    this.#slices = new Slices({
      engine: options.engine,
      chooser: this.#speculation,
      pace: this.#pace,
      pagesPerMs: () => this.#load.pagesPerMs,
      pageSize,
      strategy: (pages) => this.#senders.best({ pages, runs: 1, pageSize, source: 'staged' }),
      onSlice: () => this.#timer.replan(),
      // The bulk connection failed, or the tracker: as when an epoch is sent.
      onFailure: (error, epoch) => options.lostOnBulk(error, `speculative capture of epoch ${epoch}`),
    });
    gate.onOutput(() => this.#outputWaits());
  }

  /** Since the VM was told to stop, for the last time. */
  stoppedForMs(): number {
    const pauseStartMs = this.#inProgress?.paused.pauseStartMs;
    return pauseStartMs === undefined ? 0 : performance.now() - pauseStartMs;
  }

  /** Epochs released so far. */
  get count(): number {
    return this.#statistics.epochs;
  }

  summary(): EpochSummary {
    return this.#statistics.summary();
  }

  explainSender(): SenderExplanation {
    return this.#senders.explain();
  }

  explainPacing({ outputWaitMs, outputDelayMs, pauseMs, intervalMs }: EpochSummary): PacingExplanation {
    const mode = this.#pace.mode;
    return explainPacing({
      mode,
      settings: this.#options.settings,
      delayBudgetMs: this.#pace.delayBudgetMs,
      trigger: this.#lastReport?.trigger,
      intervalMs: intervalMs?.p50,
      pauseMs: pauseMs?.p50,
      basePauseMs: this.#load.basePauseMs,
      delayMs: (mode === 'load' ? outputWaitMs : outputDelayMs)?.p50,
      releaseDelayMs: this.#load.releaseDelayMs,
    });
  }

  /** The machine's `arm-epoch`: a tick will tell when the next epoch is due. */
  arm(): void {
    this.#timer.arm();
  }

  /** No ticks and no slices any more, until armed again. Settles when the slice under way has ended. */
  async disarm(): Promise<void> {
    this.#timer.disarm();
    await this.#slices.stop();
  }

  /** There is a new bulk connection, perhaps to another host. */
  relink(peerIsLocal: boolean): void {
    this.#senders.relink(peerIsLocal);
  }

  async begin(action: Extract<PrimaryAction, { type: 'begin-epoch' }>): Promise<void> {
    const { epoch, trigger } = action;
    const beganMs = this.#driver.lastResumeMs;
    const { operatorPaused } = this.#options.state();
    try {
      const mode = action.pagesFollow === true ? 'later' : this.#modes.next();
      await this.#slices.stop();
      if (trigger === 'first') this.#slices.reset(performance.now()); // the base sync has just scanned
      if (mode === 'staged') await this.#slices.finish(epoch);
      // Beside the slices the VM ran: the driver knows only who pauses it from here on.
      if (!operatorPaused && this.#options.state().operatorPaused) throw pausedByOther();
      const paused = await this.#driver.pause({
        epoch,
        installGate: action.installGate,
        takePrefix: action.takePrefix,
        capture: () => this.#engine.capture({ epoch, mode }),
      });
      const { gate } = this.#options;
      this.#inProgress = {
        epoch,
        trigger,
        paused,
        slices: this.#slices.totals,
        outputSinceMs: this.#pace.outputSinceMs,
        heldFrames: gate.stats()?.heldFrames,
        gateIsBeside: !isInQemu(gate),
        beganMs: beganMs ?? paused.pauseStartMs,
        intervalMs: this.#lastPauseStartMs === undefined ? 0 : paused.pauseStartMs - this.#lastPauseStartMs,
        contMs: 0,
        pauseMs: 0,
        sent: undefined,
      };
      this.#lastPauseStartMs = paused.pauseStartMs;
      this.#pace.captured(paused.pauseStartMs);
      this.#options.disks?.captured();
      this.#options.dispatch({ type: 'captured', epoch, mode: paused.captured.mode });
    } catch (error) {
      await this.#captureFailed(epoch, error);
    }
  }

  async resume(): Promise<void> {
    try {
      const contMs = await this.#driver.resume();
      const inProgress = this.#inProgress;
      if (inProgress !== undefined && inProgress.pauseMs === 0) {
        inProgress.contMs = contMs;
        inProgress.pauseMs = (this.#driver.lastResumeMs ?? 0) - inProgress.paused.pauseStartMs;
      }
    } catch (error) {
      this.#options.fail(error, 'resuming the VM');
      return;
    }
    this.#runsClean();
    this.#options.dispatch({ type: 'resumed' });
  }

  async send(epoch: number): Promise<void> {
    const inProgress = this.#inProgress;
    if (inProgress === undefined || inProgress.epoch !== epoch) return;
    const { paused } = inProgress;
    // First things first: where cores are few, sending takes them from QEMU's resume.
    await this.#driver.idle();
    const { phase } = this.#options.state();
    // Lost meanwhile: the epoch is aborted, and what comes next may be another session.
    if (phase.name !== 'protected' || phase.cycle.at !== 'sending' || phase.cycle.epoch !== epoch) return;
    const { ackTimeoutMs } = this.#options.settings;
    // Bounded: a backup whose heart beats but that never acknowledges must not hold output for ever.
    const overdue = setTimeout(
      () =>
        this.#options.dispatch({
          type: 'backup-lost',
          reason: `epoch ${epoch} was not acknowledged within ${ackTimeoutMs} ms`,
        }),
      ackTimeoutMs,
    );
    try {
      const { captured } = paused;
      const strategy = this.#senders.next(sendLoadOf(captured, this.#options.pageSize));
      const sent = await this.#engine.send({
        epoch,
        strategy,
        device: paused.device,
        prefix: prefixFile(paused.prefix),
      });
      const ackedMs = performance.now();
      inProgress.sent = { ...sent, strategy };
      // Bytes and CPU of what was sent ahead don't belong to this time to the acknowledgement.
      if (captured.aheadPages === 0) this.#senders.observe(inProgress.sent);
      this.#modes.observe({
        copiedBytes: pausePagesOf(captured) * this.#options.pageSize,
        copyMs: captured.copyMs,
        sentBytes: (captured.dirtyPages - captured.aheadPages) * this.#options.pageSize,
        ackMs: sent.ackMs,
      });
      this.#options.dispatch({ type: 'acked', epoch });
      this.#options.disks?.acknowledged(paused.pauseStartMs);
      if (phase.cycle.final) this.#options.onFinal(this.#finalOf(inProgress, inProgress.sent, ackedMs));
    } catch (error) {
      this.#options.lostOnBulk(error, `sending epoch ${epoch}`);
    } finally {
      clearTimeout(overdue);
    }
  }

  #finalOf(inProgress: EpochInProgress, sent: SentEpoch, ackedMs: number): FinalEpoch {
    const report = {
      ...reportOf(inProgress, sent, ackedMs),
      ackedAfterMs: ackedMs - inProgress.paused!.pauseStartMs,
    };
    if (sent.diskPages === undefined) return report;
    return { ...report, diskPages: diskPagesOf(sent.diskPages, this.#options.pageSize) };
  }

  async release(epoch: number): Promise<void> {
    try {
      await this.#driver.release();
    } catch (error) {
      this.#options.fail(error, `releasing the output of epoch ${epoch}`);
      return;
    }
    const releasedMs = performance.now();
    const inProgress = this.#inProgress;
    const report =
      inProgress?.sent === undefined || inProgress.epoch !== epoch
        ? undefined
        : reportOf(inProgress, inProgress.sent, releasedMs);
    if (report !== undefined) this.#learn(report);
    this.#options.dispatch({ type: 'released', epoch });
    this.#speculate();
    if (report === undefined) return;
    this.#statistics.add(report);
    this.#options.onReport(report);
  }

  #outputWaits(): void {
    this.#pace.outputWaits(performance.now());
    this.#timer.replan();
    this.#slices.replan();
  }

  /** The VM was resumed; all that it wrote is captured. */
  #runsClean(): void {
    const resumedMs = this.#driver.lastResumeMs ?? performance.now();
    this.#slices.reset(resumedMs);
    this.#pace.resumed(resumedMs);
    this.#timer.replan();
  }

  /** Nothing is under way now: the next epoch may be captured ahead, unless it has begun already. */
  #speculate(): void {
    const { phase, operatorPaused, epoch } = this.#options.state();
    if (phase.name !== 'protected' || phase.cycle.at !== 'idle' || operatorPaused) return;
    if (this.#modes.next() === 'staged') this.#slices.start(epoch + 1);
  }

  #learn(report: EpochReport): void {
    const { captured } = this.#inProgress!.paused;
    const isDirect = report.mode === 'direct';
    this.#lastReport = report;
    this.#load.observe({
      pauseMs: report.pauseMs,
      deviceMs: report.deviceMs + (isInQemu(this.#options.gate) ? report.gateMs : 0),
      scanMs: report.scanMs,
      copyMs: isDirect ? report.ackMs : report.copyMs,
      pausePages: pausePagesOf(captured),
      dirtyPages: report.dirtyPages,
      ranMs: report.outputDelayMs - report.releaseDelayMs,
      releaseDelayMs: report.releaseDelayMs,
      sentPages: Math.max(0, report.dirtyPages - report.aheadPages - report.zeroPages),
      sendMs: report.sendMs,
      ackMs: report.ackMs,
      heldFrames: report.heldFrames,
    });
    this.#speculation.observe({ ...captured, supersededBytes: report.supersededSentBytes });
    this.#timer.replan();
  }

  /** The pages go back to the tracker's account, the VM runs on, unless somebody else had stopped it. */
  async #captureFailed(epoch: number, error: unknown): Promise<void> {
    const { log, state, qmpIsOpen, dispatch } = this.#options;
    const failure = toHoldfastError(error, `capture of epoch ${epoch}`);
    log.warn({ epoch, code: failure.code, err: failure.message }, 'capture failed');
    if (!qmpIsOpen() || state().phase.name === 'ended') return;
    try {
      await this.#engine.abort(epoch);
      if (this.#driver.isStoppedByUs) await this.#driver.resume(); // else whoever paused it wants it so
      this.#slices.reset(this.#driver.lastResumeMs ?? performance.now()); // what they staged was given back
    } catch (second) {
      log.error({ err: toHoldfastError(second).message }, 'the VM could not be resumed');
    }
    dispatch({ type: 'capture-failed', epoch, failure });
  }
}

/** Those that the pause had to copy: dirty, and not staged before, or written again since. */
const pausePagesOf = ({ dirtyPages, prestagedPages, supersededPages }: CaptureResult): number =>
  dirtyPages - (prestagedPages - supersededPages);
