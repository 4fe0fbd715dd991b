/** How the first copy of a VM's disks is told, for whoever has it made. */
import type { CopyProgress } from '../primary/copy-progress.js';
import type { DiskPlan } from '../primary/disk-plan.js';
import type { DisksCopied } from '../primary/disks.js';
import type { CommandConsole } from './console.js';
import { copyText } from './render-disks.js';
import { sizeText } from './values.js';

/** Where there is no live line, how far the copy is gets told this often. */
const COPY_TOLD_EVERY_MS = 10_000;

export class DiskNarration {
  readonly #console: CommandConsole;
  #copy: CopyProgress | undefined;
  #toldMs = 0;

  constructor(console: CommandConsole) {
    this.#console = console;
  }

  /** The copy under way, for a live line. */
  live(): string | undefined {
    return this.#copy && `copying disks: ${copyText(this.#copy)}`;
  }

  reset(): void {
    this.#copy = undefined;
  }

  readonly onPlan = (plans: readonly DiskPlan[]): void => {
    for (const { id, what, reason, changedBytesMax } of plans) {
      const text =
        changedBytesMax === undefined
          ? `all of it, for ${reason}`
          : `what has changed, at most ${sizeText(changedBytesMax)}`;
      this.#console.tell(`  disk ${id}: ${text}`, {
        event: 'disk-plan',
        disk: id,
        what,
        reason,
        changedBytesMax,
      });
    }
  };

  readonly onCopy = (progress: CopyProgress): void => {
    const nowMs = performance.now();
    if (this.#copy === undefined) this.#toldMs = nowMs;
    this.#copy = progress;
    if (this.#console.isLive || nowMs - this.#toldMs < COPY_TOLD_EVERY_MS) return;
    this.#toldMs = nowMs;
    this.#console.tell(`  disks: ${copyText(progress)}`, { event: 'disk-copy', ...progress });
  };

  readonly onCopied = (copied: DisksCopied): void => {
    this.reset();
    this.#console.live('');
    const holes = copied.holeBytes === 0 ? '' : `, ${sizeText(copied.holeBytes)} of holes`;
    this.#console.tell(`  disks: ${sizeText(copied.bytes)} sent${holes}, ${copied.millis.toFixed(0)} ms`, {
      event: 'disks-copied',
      ...copied,
    });
  };
}
