/**
 * Speculative staging: whether the next epoch's dirty pages are staged while
 * the VM still runs, so that the pause copies only what is written after that.
 * Pure, over what the last epochs found.
 *
 * It costs one more scan, and every page that is written again is copied twice:
 * it is left out where few pages are dirty, and for a while after an epoch in
 * which most of the copying was for nothing.
 */

export interface PrestageOutcome {
  readonly dirtyPages: number;
  readonly prestagedPages: number;
  /** Of these, written again before the pause. */
  readonly supersededPages: number;
}

/** From about here on a pause was shorter with it, in spite of the second scan (bench epoch, 2 cores). */
export const PRESTAGE_PAGES_MIN = 256;
/** More than this share in vain: not worth the guest's cache and memory bandwidth. */
const SUPERSEDED_SHARE_MAX = 0.5;
/** Epochs to leave out after that; doubled each time it happens again. */
const BACKOFF_EPOCHS_FIRST = 16;
const BACKOFF_EPOCHS_MAX = 1_024;

export class PrestageChooser {
  readonly #enabled: boolean;
  #wanted = false;
  #leaveOut = 0;
  #backoffEpochs = BACKOFF_EPOCHS_FIRST;

  constructor(enabled: boolean) {
    this.#enabled = enabled;
  }

  /** After each capture. */
  observe({ dirtyPages, prestagedPages, supersededPages }: PrestageOutcome): void {
    if (!this.#enabled) return;
    if (prestagedPages > 0) {
      if (supersededPages > SUPERSEDED_SHARE_MAX * prestagedPages) {
        this.#leaveOut = this.#backoffEpochs;
        this.#backoffEpochs = Math.min(2 * this.#backoffEpochs, BACKOFF_EPOCHS_MAX);
      } else {
        this.#backoffEpochs = BACKOFF_EPOCHS_FIRST;
      }
    } else if (this.#leaveOut > 0) {
      this.#leaveOut -= 1;
    }
    this.#wanted = this.#leaveOut === 0 && dirtyPages >= PRESTAGE_PAGES_MIN;
  }

  next(): boolean {
    return this.#wanted;
  }
}
