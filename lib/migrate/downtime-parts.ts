/**
 * What the downtime of a migration was made of. The parts follow one another, and are all of it. Pure.
 *
 *   stop ─ capture ─ transfer ─┬─ hand-over ─┬─ resume ─┬─ hand-over
 *   here                       └─────────────► over there ──────────► heard here
 */
import type { FinalEpoch } from '../primary/epoch-report.js';

export interface DowntimeParts {
  /** QMP stop. */
  readonly stopMs: number;
  /** Device state saved, what is still dirty found. */
  readonly captureMs: number;
  /** From the first byte of that until the destination has acknowledged all of it. */
  readonly transferMs: number;
  /** The messages between the hosts, to and fro, and what the destination does before it decides. */
  readonly handOverMs: number;
  /** Over there, from the decision until the VM runs: mostly the loading of the device state. */
  readonly resumeMs: number;
}

export const downtimeParts = (
  { stopMs, ackMs, ackedAfterMs }: Pick<FinalEpoch, 'stopMs' | 'ackMs' | 'ackedAfterMs'>,
  { downtimeMs, resumeMs }: { readonly downtimeMs: number; readonly resumeMs: number },
): DowntimeParts => ({
  stopMs,
  captureMs: Math.max(0, ackedAfterMs - stopMs - ackMs),
  transferMs: ackMs,
  handOverMs: Math.max(0, downtimeMs - ackedAfterMs - resumeMs),
  resumeMs,
});
