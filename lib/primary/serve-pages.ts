/**
 * Brings a VM that runs on the destination already what it lacks, over one connection after the other: a
 * link that is cut is waited for, as long as the settings say, from the moment that nothing came through.
 *
 *   servePages ─ all there ─► settles
 *       ▲  └── connection lost ─► again, until it is too long ago that one came about ─► PeerLostError
 *       └──────────────┘
 */
import { setTimeout as delay } from 'node:timers/promises';
import { PeerLostError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { type FallBackPoint, pointText } from '../migrate/fall-back-point.js';
import { timeText } from '../migrate/words.js';
import type { PrimaryEngine } from '../native.js';
import type { FaultCost, ServePagesOptions } from '../native-early.js';

/** The guest waits meanwhile. */
const RETRY_MS = 100;
/** Of one attempt: a link that is back answers sooner. */
const CONNECT_MS = 1_000;

export interface ServeOptions {
  readonly engine: Pick<PrimaryEngine, 'servePages' | 'serveProgress'>;
  readonly peer: Omit<ServePagesOptions, 'timeoutMs'>;
  /** How long a cut link is waited for. */
  readonly waitMs: number;
  /** From where the VM there goes on when the pages have not come. */
  readonly fallback?: FallBackPoint | undefined;
  readonly log: Logger;
}

/** @throws PeerLostError; CancelledError when the engine was disconnected */
export const servePages = async ({
  engine,
  peer,
  waitMs,
  fallback,
  log,
}: ServeOptions): Promise<FaultCost> => {
  let connections = 0;
  let lostSinceMs = performance.now();
  for (;;) {
    const startMs = performance.now();
    try {
      return await engine.servePages({ ...peer, timeoutMs: CONNECT_MS });
    } catch (error) {
      const failure = toHoldfastError(error);
      if (failure.code === 'HOLDFAST_E_CANCELLED') throw failure;
      const progress = engine.serveProgress();
      const cameAbout = progress.connections > connections;
      connections = progress.connections;
      if (cameAbout) lostSinceMs = performance.now();
      const { pagesLeft } = progress;
      if (performance.now() - lostSinceMs > waitMs) throw lostForGood(waitMs, failure, pagesLeft, fallback);
      log.warn({ pagesLeft, code: failure.code, err: failure.message }, 'the page stream is lost; again');
      await delay(Math.max(0, RETRY_MS - (performance.now() - startMs)));
    }
  }
};

/**
 * Whether the VM's daemon or QEMU there has ended, or the link, cannot be told from here.
 * @param pagesLeft not sent yet: with none left the VM there may lack nothing, and run for good
 */
const lostForGood = (
  waitMs: number,
  cause: Error,
  pagesLeft: number,
  fallback: FallBackPoint | undefined,
): PeerLostError =>
  pagesLeft > 0
    ? new PeerLostError(
        `the destination was not reached for ${timeText(waitMs)} before all pages were there: ${cause.message}`,
        {
          cause,
          cure:
            fallback === undefined
              ? 'The VM there has ended, or will. The one here is as it was when it was stopped: QMP cont goes back to that moment.'
              : `If its daemon and its QEMU there lived, the VM goes on there from ${pointText(fallback)}: the QEMU here must not be continued beside it. Look at \`holdfast status\` there first; only if the VM does not run there, and will not, QMP cont here goes back to the moment when it was stopped.`,
        },
      )
    : new PeerLostError(
        `all pages were sent, but whether they are there was not heard for ${timeText(waitMs)}: ${cause.message}`,
        {
          cause,
          cure: `The VM may run there for good${fallback === undefined ? '' : `, or from ${pointText(fallback)} if something was lost on the way`}: look at \`holdfast status\` on that host first. Only if it does not${fallback === undefined ? '' : ', and will not'}: QMP cont here goes back to the moment when it was stopped.`,
        },
      );
