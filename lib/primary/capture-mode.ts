/**
 * `auto`: which capture mode the next epoch uses. Pure, over measured rates.
 *
 *   staged   pause = copy:      pages × page size / copy rate
 *   direct   pause = transfer:  round trip + pages × page size / link rate
 *
 * Direct spares the copy but keeps the VM stopped until the acknowledgement, so
 * it wins only where the link outruns memory, or nearly nothing is dirty.
 */
import type { CaptureMode, EpochMode } from './machine.js';

/** What slices had copied or sent before the pause is in none of these. */
export interface EpochRates {
  readonly copiedBytes: number;
  readonly copyMs: number;
  readonly sentBytes: number;
  readonly ackMs: number;
}

/** Weight of the newest epoch in the moving averages. */
const NEWEST_WEIGHT = 0.2;

export class CaptureModeChooser {
  readonly #mode: CaptureMode;
  #copyMsPerByte: number | undefined;
  #ackMsPerByte: number | undefined;

  constructor(mode: CaptureMode) {
    this.#mode = mode;
  }

  observe({ copiedBytes, copyMs, sentBytes, ackMs }: EpochRates): void {
    const blend = (old: number | undefined, now: number): number =>
      old === undefined ? now : old + NEWEST_WEIGHT * (now - old);
    if (sentBytes > 0) this.#ackMsPerByte = blend(this.#ackMsPerByte, ackMs / sentBytes);
    if (copiedBytes > 0 && copyMs > 0) this.#copyMsPerByte = blend(this.#copyMsPerByte, copyMs / copiedBytes);
  }

  next(): EpochMode {
    if (this.#mode !== 'auto') return this.#mode;
    if (this.#copyMsPerByte === undefined || this.#ackMsPerByte === undefined) return 'staged';
    return this.#ackMsPerByte < this.#copyMsPerByte ? 'direct' : 'staged';
  }
}
