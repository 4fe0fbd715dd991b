/** What is known of an epoch while it is under way, and the report made of it at its release. */
import type { SendResult } from '../native.js';
import type { EpochReport } from './epoch-report.js';
import type { EpochMode } from './machine.js';

export interface EpochInProgress {
  readonly epoch: number;
  readonly mode: EpochMode;
  readonly dirtyPages: number;
  readonly pauseStartMs: number;
  readonly beganMs: number;
  readonly intervalMs: number;
  readonly stopMs: number;
  readonly deviceMs: number;
  readonly gateMs: number;
  readonly scanMs: number;
  readonly copyMs: number;
  readonly devicePath: string;
  readonly prefix: { readonly path: string; readonly bytes: number } | undefined;
  contMs: number;
  pauseMs: number;
  sent: SendResult | undefined;
}

export const reportOf = (epoch: EpochInProgress, sent: SendResult, releasedMs: number): EpochReport => ({
  epoch: epoch.epoch,
  mode: epoch.mode,
  dirtyPages: epoch.dirtyPages,
  zeroPages: sent.zeroPages,
  bytes: sent.bytes,
  deviceBytes: sent.deviceBytes,
  pauseMs: epoch.pauseMs,
  stopMs: epoch.stopMs,
  deviceMs: epoch.deviceMs,
  gateMs: epoch.gateMs,
  scanMs: epoch.scanMs,
  copyMs: epoch.copyMs,
  contMs: epoch.contMs,
  sendMs: sent.sendMs,
  ackMs: sent.ackMs,
  previousApplyMs: sent.previousApplyMs < 0 ? undefined : sent.previousApplyMs,
  releaseDelayMs: releasedMs - epoch.pauseStartMs,
  outputDelayMs: releasedMs - epoch.beganMs,
  intervalMs: epoch.intervalMs,
  sendCpuMs: sent.cpuMs,
});
