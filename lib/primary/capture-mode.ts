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

export interface EpochRates {
  readonly dirtyBytes: number;
  readonly copyMs: number;
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

  observe(rates: EpochRates): void {
    if (rates.dirtyBytes === 0) return;
    const blend = (old: number | undefined, now: number): number =>
      old === undefined ? now : old + NEWEST_WEIGHT * (now - old);
    this.#ackMsPerByte = blend(this.#ackMsPerByte, rates.ackMs / rates.dirtyBytes);
    if (rates.copyMs > 0) this.#copyMsPerByte = blend(this.#copyMsPerByte, rates.copyMs / rates.dirtyBytes);
  }

  next(): EpochMode {
    if (this.#mode !== 'auto') return this.#mode;
    if (this.#copyMsPerByte === undefined || this.#ackMsPerByte === undefined) return 'staged';
    return this.#ackMsPerByte < this.#copyMsPerByte ? 'direct' : 'staged';
  }
}
