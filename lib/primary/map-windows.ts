/**
 * When the maps of the disks may forget. A map marks in two windows; rotating
 * forgets the older one, and the newer becomes the older. The marks of a window
 * may go when the backup has acknowledged an epoch whose pause came after the
 * window's end: then it has all that was written in it. Pure.
 *
 *   rotation ──── writes ──── rotation ──── writes ──── rotation …
 *              (newer)     now the older │ pause … ACK │ forgotten
 */

/** Two writes of a second apart then cost one mark more, at most; rotating costs the servers a walk over the map. */
const EVERY_MS = 1_000;

export class MapWindows {
  /** When the older window ended; undefined until this session's first rotation. */
  #rotatedMs: number | undefined;

  /**
   * @param pauseStartMs of the epoch that was acknowledged
   * @returns true if a rotation is due, and right
   */
  isDue(pauseStartMs: number, nowMs: number): boolean {
    // A session's first acknowledgement covers all that was ever marked: it was copied, or logged since.
    if (this.#rotatedMs === undefined) return true;
    return pauseStartMs > this.#rotatedMs && nowMs - this.#rotatedMs >= EVERY_MS;
  }

  /** All maps have answered. */
  rotated(nowMs: number): void {
    this.#rotatedMs = nowMs;
  }
}
