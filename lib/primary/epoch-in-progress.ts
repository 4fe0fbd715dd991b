/** What is known of an epoch while it is under way, and the report made of it at its release. */
import type { SenderStrategy, SendResult } from '../native.js';
import type { EpochReport } from './epoch-report.js';
import type { Paused } from './vm-driver.js';

/** The strategy that was asked for; `copiedBytes` says what became of it. */
export type SentEpoch = SendResult & { readonly strategy: SenderStrategy };

export interface EpochInProgress {
  readonly epoch: number;
  readonly paused: Paused;
  readonly prestageMs: number;
  /** When the VM began to run this epoch, and since when the pause before it. */
  readonly beganMs: number;
  readonly intervalMs: number;
  contMs: number;
  pauseMs: number;
  sent: SentEpoch | undefined;
}

export const reportOf = (epoch: EpochInProgress, sent: SentEpoch, releasedMs: number): EpochReport => ({
  epoch: epoch.epoch,
  mode: epoch.paused.captured.mode,
  dirtyPages: epoch.paused.captured.dirtyPages,
  prestagedPages: epoch.paused.captured.prestagedPages,
  supersededPages: epoch.paused.captured.supersededPages,
  prestageMs: epoch.prestageMs,
  zeroPages: sent.zeroPages,
  bytes: sent.bytes,
  deviceBytes: sent.deviceBytes,
  pauseMs: epoch.pauseMs,
  stopMs: epoch.paused.stopMs,
  deviceMs: epoch.paused.deviceMs,
  gateMs: epoch.paused.gateMs,
  scanMs: epoch.paused.captured.scanMs,
  copyMs: epoch.paused.captured.copyMs,
  contMs: epoch.contMs,
  sendMs: sent.sendMs,
  ackMs: sent.ackMs,
  previousApplyMs: sent.previousApplyMs < 0 ? undefined : sent.previousApplyMs,
  releaseDelayMs: releasedMs - epoch.paused.pauseStartMs,
  outputDelayMs: releasedMs - epoch.beganMs,
  intervalMs: epoch.intervalMs,
  sender: sent.strategy,
  sendCpuMs: sent.cpuMs,
  syscalls: sent.syscalls,
  copiedBytes: sent.copiedBytes,
  referenceBytes: sent.referenceBytes,
});
