/** A captured epoch as the sender sees it. Pure. */
import type { CaptureResult } from '../native.js';
import type { SendLoad } from '../send/sender-choice.js';

export const sendLoadOf = (captured: CaptureResult, pageSize: number): SendLoad => ({
  pages: captured.dirtyPages,
  runs: captured.mode === 'direct' ? captured.runs : stagedRuns(captured),
  pageSize,
  source: captured.mode,
});

/**
 * What is copied in one go lies side by side in staging. Prestaged pages and those
 * of the pause are two such stretches, and travel merged by page number: no page
 * of the smaller one makes more than two fragments of the larger.
 */
const stagedRuns = ({ dirtyPages, prestagedPages, supersededPages, runs }: CaptureResult): number => {
  if (runs === 0) return 0;
  const early = prestagedPages - supersededPages;
  return Math.min(runs, 2 * Math.min(early, dirtyPages - early) + 1);
};
