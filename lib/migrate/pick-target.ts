/** Which of several destinations a VM goes to: asked, measured, chosen (choose-target.ts), and told why. */

import { ConnectError, type HoldfastError, NoSpaceError, toHoldfastError } from '../errors.js';
import { parseHostPort } from '../primary/options.js';
import { chooseTarget, type TargetCandidate, type TargetNeeds } from './choose-target.js';
import { type AskedTarget, askTargets } from './enquire.js';

export interface PickedTarget {
  /** `HOST:PORT`, one of those that were named. */
  readonly to: string;
  readonly reason: string;
  readonly candidates: readonly TargetCandidate[];
}

/**
 * @param to `HOST:PORT` each
 * @throws ConnectError, NoSpaceError, … none will do: the message names the cause of each
 */
export const pickTarget = async (options: {
  readonly to: readonly string[];
  readonly key: Uint8Array;
  readonly needs: TargetNeeds;
  /** Who takes longer is left out (default 3 s). */
  readonly answerMsMax?: number;
  readonly signal?: AbortSignal;
}): Promise<PickedTarget> => {
  const { to, key, needs, ...limits } = options;
  const asked = await askTargets(
    to.map((name) => ({ name, address: parseHostPort(name) })),
    key,
    limits,
  );
  const candidates = asked.map(({ candidate }) => candidate);
  const { best, reason } = chooseTarget(candidates, needs);
  if (best === undefined) throw noneWillDo(asked, reason);
  return { to: best.name, reason, candidates };
};

/** What all of them have in common, if anything: then the exit code says it, too. Pure. */
export const noneWillDo = (asked: readonly AskedTarget[], reason: string): HoldfastError => {
  const details = { candidates: asked.map(({ candidate }) => candidate) };
  const failures = asked.flatMap(({ failure }) => (failure === undefined ? [] : [failure]));
  const codes = new Set(failures.map(({ code }) => code));
  if (failures.length === asked.length && codes.size === 1) {
    const { code, cure } = failures[0]!;
    return toHoldfastError(Object.assign(new Error(reason), { code, cure }));
  }
  if (failures.length < asked.length) {
    return new NoSpaceError(reason, { cure: 'Make room on one of them, or name others.', details });
  }
  return new ConnectError(reason, { cure: 'Is `holdfast backup` running there?', details });
};
