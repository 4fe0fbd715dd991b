/** A captured epoch as the sender sees it. Pure. */
import type { CaptureResult } from '../native.js';
import type { SendLoad } from '../send/sender-choice.js';

export const sendLoadOf = (captured: CaptureResult, pageSize: number): SendLoad => ({
  pages: captured.dirtyPages - captured.aheadPages,
  runs: captured.mode === 'direct' ? captured.runs : stagedRuns(captured),
  pageSize,
  source: captured.mode,
});

/**
 * What is copied in one go lies side by side in staging. Pages that were only prestaged
 * and those of the pause are two such stretches, and travel merged by page number: no
 * page of the smaller one makes more than two fragments of the larger.
 */
const stagedRuns = (captured: CaptureResult): number => {
  const { dirtyPages, prestagedPages, supersededPages, aheadPages, runs } = captured;
  if (runs === 0) return 0;
  const early = prestagedPages - supersededPages - aheadPages;
  return Math.min(runs, 2 * Math.min(early, dirtyPages - aheadPages - early) + 1);
};
