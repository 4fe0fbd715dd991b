/** What is known of an epoch while it is under way, and the report made of it at its release. */
import type { SenderStrategy, SendResult } from '../native.js';
import type { EpochReport } from './epoch-report.js';
import type { EpochTrigger } from './machine.js';
import type { SliceTotals } from './slices.js';
import type { Paused } from './vm-driver.js';

/** The strategy that was asked for; `copiedBytes` says what became of it. */
export type SentEpoch = SendResult & { readonly strategy: SenderStrategy };

export interface EpochInProgress {
  readonly epoch: number;
  readonly trigger: EpochTrigger;
  readonly paused: Paused;
  readonly slices: SliceTotals;
  /** Since when its first output was held; undefined if none was, or nobody saw it. */
  readonly outputSinceMs: number | undefined;
  readonly heldFrames: number | undefined;
  /** The boundary was set beside the saving of device state, not after it. */
  readonly gateIsBeside: boolean;
  /** When the VM began to run this epoch, and since when the pause before it. */
  readonly beganMs: number;
  readonly intervalMs: number;
  contMs: number;
  pauseMs: number;
  sent: SentEpoch | undefined;
}

/** What of the pause no other part accounts for: turns of this process's event loop, messages on their way. */
const restMs = ({ pauseMs, contMs, paused, gateIsBeside }: EpochInProgress): number => {
  const { stopMs, deviceMs, gateMs, captured } = paused;
  const qemuMs = gateIsBeside ? Math.max(deviceMs, gateMs) : deviceMs + gateMs;
  return Math.max(0, pauseMs - stopMs - Math.max(qemuMs, captured.scanMs + captured.copyMs) - contMs);
};

export const reportOf = (epoch: EpochInProgress, sent: SentEpoch, releasedMs: number): EpochReport => ({
  epoch: epoch.epoch,
  trigger: epoch.trigger,
  mode: epoch.paused.captured.mode,
  dirtyPages: epoch.paused.captured.dirtyPages,
  prestagedPages: epoch.paused.captured.prestagedPages,
  supersededPages: epoch.paused.captured.supersededPages,
  aheadPages: epoch.paused.captured.aheadPages,
  heldBackPages: epoch.paused.captured.heldBackPages,
  slices: epoch.slices.slices,
  prestageMs: epoch.slices.scanMs + epoch.slices.copyMs,
  aheadSendMs: epoch.slices.sendMs,
  supersededSentBytes: sent.supersededBytes,
  zeroPages: sent.zeroPages,
  bytes: sent.bytes,
  diskBytes: epoch.paused.captured.diskBytes,
  deviceBytes: sent.deviceBytes,
  deviceSentBytes: sent.deviceSentBytes,
  pausedAtMs: epoch.paused.pauseStartMs,
  pauseMs: epoch.pauseMs,
  stopMs: epoch.paused.stopMs,
  deviceMs: epoch.paused.deviceMs,
  gateMs: epoch.paused.gateMs,
  scanMs: epoch.paused.captured.scanMs,
  copyMs: epoch.paused.captured.copyMs,
  contMs: epoch.contMs,
  restMs: restMs(epoch),
  sendMs: sent.sendMs,
  ackMs: sent.ackMs,
  previousApplyMs: sent.previousApplyMs < 0 ? undefined : sent.previousApplyMs,
  releaseDelayMs: releasedMs - epoch.paused.pauseStartMs,
  outputDelayMs: releasedMs - epoch.beganMs,
  outputWaitMs: epoch.outputSinceMs === undefined ? undefined : releasedMs - epoch.outputSinceMs,
  heldFrames: epoch.heldFrames,
  intervalMs: epoch.intervalMs,
  sender: sent.strategy,
  sendCpuMs: sent.cpuMs,
  syscalls: sent.syscalls,
  copiedBytes: sent.copiedBytes,
  referenceBytes: sent.referenceBytes,
});
