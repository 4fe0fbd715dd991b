/**
 * How one epoch after the other is carried out: what machine.ts asks for between
 * `begin-epoch` and `release`, and the choices that are made anew for each.
 *
 *   begin ─ prestage? ─ pause, capture ─► 'captured' ─► resume ─► 'resumed'
 *                                                   └─► send ─► 'acked' ─► release ─► 'released'
 */
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { PrimaryEngine } from '../native.js';
import { SenderChooser, type SenderExplanation, type UnavailableSenders } from '../send/sender-choice.js';
import { CaptureModeChooser } from './capture-mode.js';
import { type EpochInProgress, reportOf } from './epoch-in-progress.js';
import { type EpochReport, EpochStatistics, type EpochSummary } from './epoch-report.js';
import type { PrimaryAction, PrimaryEvent, PrimaryState } from './machine.js';
import type { PrimarySettings } from './options.js';
import { PrestageChooser } from './prestage.js';
import { sendLoadOf } from './send-load.js';
import type { VmDriver } from './vm-driver.js';

export interface EpochEffectsOptions {
  readonly settings: Pick<PrimarySettings, 'captureMode' | 'prestage' | 'sender' | 'ackTimeoutMs'>;
  readonly engine: Pick<PrimaryEngine, 'prestage' | 'capture' | 'send' | 'abort'>;
  readonly driver: Pick<VmDriver, 'lastResumeMs' | 'pause' | 'resume' | 'release' | 'idle'>;
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
}

export class EpochEffects {
  readonly #options: EpochEffectsOptions;
  readonly #engine: EpochEffectsOptions['engine'];
  readonly #driver: EpochEffectsOptions['driver'];
  readonly #modes: CaptureModeChooser;
  readonly #prestage: PrestageChooser;
  readonly #senders: SenderChooser;
  readonly #statistics = new EpochStatistics();
  #inProgress: EpochInProgress | undefined;
  #lastPauseStartMs: number | undefined;

  constructor(options: EpochEffectsOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#driver = options.driver;
    this.#modes = new CaptureModeChooser(options.settings.captureMode);
    this.#prestage = new PrestageChooser(options.settings.prestage === 'auto');
    this.#senders = new SenderChooser({
      sender: options.settings.sender,
      unavailable: options.unavailable,
    });
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

  /** There is a new bulk connection, perhaps to another host. */
  relink(peerIsLocal: boolean): void {
    this.#senders.relink(peerIsLocal);
  }

  async begin(action: Extract<PrimaryAction, { type: 'begin-epoch' }>): Promise<void> {
    const { epoch } = action;
    const beganMs = this.#driver.lastResumeMs;
    try {
      const mode = this.#modes.next();
      const prestaged =
        mode === 'staged' && this.#prestage.next()
          ? await this.#engine.prestage({ epoch, send: false })
          : undefined;
      const prestageMs = prestaged === undefined ? 0 : prestaged.scanMs + prestaged.copyMs;
      const paused = await this.#driver.pause({
        epoch,
        installGate: action.installGate,
        takePrefix: action.takePrefix,
        capture: () => this.#engine.capture({ epoch, mode }),
      });
      this.#prestage.observe(paused.captured);
      this.#inProgress = {
        epoch,
        paused,
        prestageMs,
        beganMs: beganMs ?? paused.pauseStartMs,
        intervalMs: this.#lastPauseStartMs === undefined ? 0 : paused.pauseStartMs - this.#lastPauseStartMs,
        contMs: 0,
        pauseMs: 0,
        sent: undefined,
      };
      this.#lastPauseStartMs = paused.pauseStartMs;
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
        prefix:
          paused.prefix === undefined
            ? undefined
            : { path: paused.prefix.path, skipBytes: 0, maxBytes: paused.prefix.bytes },
      });
      inProgress.sent = { ...sent, strategy };
      this.#senders.observe(inProgress.sent);
      this.#modes.observe({
        dirtyBytes: captured.dirtyPages * this.#options.pageSize,
        copyMs: captured.copyMs,
        ackMs: sent.ackMs,
      });
      this.#options.dispatch({ type: 'acked', epoch });
    } catch (error) {
      this.#options.lostOnBulk(error, `sending epoch ${epoch}`);
    } finally {
      clearTimeout(overdue);
    }
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
    this.#options.dispatch({ type: 'released', epoch });
    if (inProgress?.sent !== undefined && inProgress.epoch === epoch) {
      const report = reportOf(inProgress, inProgress.sent, releasedMs);
      this.#statistics.add(report);
      this.#options.onReport(report);
    }
  }

  /** The pages go back to the tracker's account, the VM runs on. */
  async #captureFailed(epoch: number, error: unknown): Promise<void> {
    const { log, state, qmpIsOpen, dispatch } = this.#options;
    const failure = toHoldfastError(error, `capture of epoch ${epoch}`);
    log.warn({ epoch, code: failure.code, err: failure.message }, 'capture failed');
    if (!qmpIsOpen() || state().phase.name === 'ended') return;
    try {
      await this.#engine.abort(epoch);
      await this.#driver.resume();
    } catch (second) {
      log.error({ err: toHoldfastError(second).message }, 'the VM could not be resumed');
    }
    dispatch({ type: 'capture-failed', epoch, failure });
  }
}
