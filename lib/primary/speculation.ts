/**
 * Speculative capture: when, while the guest runs, what is dirty is staged, and
 * sent, ahead of the pause. Pure, over what the last epochs found.
 *
 *   resume                                                             due
 *     ├────────────┤s├────────────┤s├────────────┤s├─────────┤l├l┤ pause
 *                   ahead: staged and sent                    last: staged only
 *
 * A slice takes a scan, and makes the guest fault once more on each page that it
 * writes again; those pages are copied, and perhaps sent, in vain. So:
 *
 * - the last slices, right before the pause, are for epochs with enough pages
 *   to shorten the pause by;
 * - slices sent ahead are for epochs so large that sending them would delay the
 *   acknowledgement. They leave the link and the cores alone most of the time;
 * - both are left out for a while after they were mostly in vain. What was sent
 *   in vain stays below a share of what was of use.
 *
 * A slice is short, for an epoch that becomes due meanwhile waits for it.
 */
import type { LoadModel } from './load-model.js';

export interface SpeculationSettings {
  readonly enabled: boolean;
  /** Bytes. */
  readonly pageSize: number;
  readonly stagingPages: number;
}

export interface SlicePlan {
  readonly atMs: number;
  /** Also sent, not only staged. */
  readonly send: boolean;
  readonly bytesMax: number;
}

/** The running epoch, as far as it is known. */
export interface SpeculationView {
  /** The epoch's pause. */
  readonly dueMs: number;
  /** The last scan: the resume, or the end of the last slice. */
  readonly scannedMs: number;
  /** Staged in this epoch. */
  readonly stagedPages: number;
  /** Output waits for the pause: not for a slice that hardly shortens it. */
  readonly outputWaits: boolean;
}

export interface SpeculationOutcome {
  readonly dirtyPages: number;
  readonly prestagedPages: number;
  /** Of these, written again before the pause. */
  readonly supersededPages: number;
  /** Page bytes sent ahead in vain. */
  readonly supersededBytes: number;
}

/** From about here on a pause was shorter with it, in spite of the second scan (bench epoch, 2 cores). */
export const SLICE_PAGES_MIN = 256;
/** What is saved must outweigh the scan's weight on the guest's memory and locks, though it runs beside it. */
const SCAN_WORTH = 0.25;
/** An epoch that is due waits for the slice under way, so its replies do, too. */
const SLICE_MS_MAX = 1;
/** Output that waits is delayed by a slice: only for a pause that gets shorter by as much. */
const WAITING_SAVED_MS_MIN = 1;
/** Sending that takes less than this doesn't delay an acknowledgement that anyone would notice. */
export const AHEAD_SEND_MS_MIN = 2;
/** Slices take at most this share of the time in which the guest runs. */
const SLICE_SHARE_MAX = 0.2;
/** What is staged ahead may fill half of the pool: the pause needs the rest. */
const STAGED_SHARE_MAX = 0.5;
/** More than this share of what was staged in vain: not worth the guest's cache and memory bandwidth. */
const SUPERSEDED_SHARE_MAX = 0.5;
/** Bandwidth spent in vain, as a share of what was of use, over about the last twenty epochs. */
export const VAIN_SHARE_MAX = 0.25;
const VAIN_DECAY = 0.95;
/** Epochs to leave out after that; doubled each time it happens again. */
const BACKOFF_EPOCHS_FIRST = 16;
const BACKOFF_EPOCHS_MAX = 1_024;

export class SpeculationChooser {
  readonly #settings: SpeculationSettings;
  readonly #load: LoadModel;
  readonly #staging = new Backoff();
  readonly #ahead = new Backoff();
  /** Decaying sums of the bytes sent. */
  #vainBytes = 0;
  #usefulBytes = 0;

  constructor(settings: SpeculationSettings, load: LoadModel) {
    this.#settings = settings;
    this.#load = load;
  }

  /** After each acknowledgement. */
  observe({ dirtyPages, prestagedPages, supersededPages, supersededBytes }: SpeculationOutcome): void {
    this.#staging.observe(
      prestagedPages > 0 ? supersededPages > SUPERSEDED_SHARE_MAX * prestagedPages : undefined,
    );
    this.#vainBytes = VAIN_DECAY * this.#vainBytes + supersededBytes;
    this.#usefulBytes = VAIN_DECAY * this.#usefulBytes + dirtyPages * this.#settings.pageSize;
    // Judged by epochs that sent something in vain: the sum outlasts the epoch that caused it.
    this.#ahead.observe(supersededBytes > 0 ? this.vainShare > VAIN_SHARE_MAX : undefined);
  }

  /** Bytes sent ahead in vain lately, as a share of those that were of use. */
  get vainShare(): number {
    return this.#vainBytes === 0 ? 0 : this.#vainBytes / Math.max(1, this.#usefulBytes);
  }

  /** The running epoch's next slice; undefined if it needs none. */
  next(view: SpeculationView): SlicePlan | undefined {
    const { enabled, stagingPages } = this.#settings;
    const load = this.#load;
    if (!enabled || this.#staging.leavesOut) return undefined;
    const roomPages = Math.floor(STAGED_SHARE_MAX * stagingPages - view.stagedPages);
    if (roomPages < SLICE_PAGES_MIN) return undefined;
    const leftPages = load.pagesPerMs * (view.dueMs - view.scannedMs);
    if (!this.#isWorth(leftPages, view.outputWaits)) return undefined;

    const last = this.#plan(leftPages, roomPages, false);
    const lastAtMs = Math.max(view.scannedMs, view.dueMs - this.#allMs(leftPages, last.pages));
    const isLarge = leftPages * load.ackMsPerPage >= AHEAD_SEND_MS_MIN || view.stagedPages > 0;
    if (isLarge && !view.outputWaits && !this.#ahead.leavesOut) {
      const ahead = this.#plan(leftPages, roomPages, true);
      const aheadAtMs =
        view.scannedMs + Math.max(ahead.pages / load.pagesPerMs, ahead.takesMs / SLICE_SHARE_MAX);
      // Not so shortly before the last one that it would find nothing.
      if (aheadAtMs + 2 * ahead.takesMs < lastAtMs) return this.#slice(aheadAtMs, ahead.pages, true);
    }
    return this.#slice(lastAtMs, last.pages, false);
  }

  #slice(atMs: number, pages: number, send: boolean): SlicePlan {
    return { atMs, send, bytesMax: pages * this.#settings.pageSize };
  }

  #isWorth(pages: number, outputWaits: boolean): boolean {
    const savedMs = pages * this.#load.copyMsPerPage;
    if (outputWaits) return savedMs >= WAITING_SAVED_MS_MIN;
    return pages >= SLICE_PAGES_MIN && savedMs >= SCAN_WORTH * this.#load.scanMs;
  }

  /** A slice of as many pages as its time allows. */
  #plan(leftPages: number, roomPages: number, send: boolean): { pages: number; takesMs: number } {
    const { scanMs, copyMsPerPage, sendMsPerPage } = this.#load;
    const msPerPage = copyMsPerPage + (send ? sendMsPerPage : 0);
    const timely = Math.floor(Math.max(0, SLICE_MS_MAX - scanMs) / Math.max(msPerPage, Number.MIN_VALUE));
    const pages = Math.min(Math.max(SLICE_PAGES_MIN, timely), roomPages);
    return { pages, takesMs: scanMs + Math.min(pages, leftPages) * msPerPage };
  }

  /** All of the last slices together. */
  #allMs(leftPages: number, pagesPerSlice: number): number {
    const { scanMs, copyMsPerPage } = this.#load;
    return Math.ceil(leftPages / pagesPerSlice) * scanMs + leftPages * copyMsPerPage;
  }
}

/** Leaves something out for a while after it was in vain; longer each time that it is so again. */
class Backoff {
  #epochsLeft = 0;
  #nextEpochs = BACKOFF_EPOCHS_FIRST;

  get leavesOut(): boolean {
    return this.#epochsLeft > 0;
  }

  /** undefined: the epoch tried nothing. */
  observe(wasInVain: boolean | undefined): void {
    if (wasInVain === undefined) {
      this.#epochsLeft = Math.max(0, this.#epochsLeft - 1);
    } else if (wasInVain) {
      this.#epochsLeft = this.#nextEpochs;
      this.#nextEpochs = Math.min(2 * this.#nextEpochs, BACKOFF_EPOCHS_MAX);
    } else {
      this.#nextEpochs = BACKOFF_EPOCHS_FIRST;
    }
  }
}
