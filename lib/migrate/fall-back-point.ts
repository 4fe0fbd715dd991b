/**
 * From where a VM that is resumed early goes on at its destination, should its source be lost before all of its
 * memory has come. Agreed on before the VM is stopped to be handed over. Pure.
 */
import { UnsupportedHostError } from '../errors.js';

export interface FallBackPoint {
  /** Of the checkpoints, as the destination sees it. */
  readonly dir: string;
  readonly epoch: number;
  /** By the clock of the host that took it, ISO 8601. */
  readonly takenAt: string;
}

export const pointText = ({ epoch, dir }: Pick<FallBackPoint, 'epoch' | 'dir'>): string =>
  `checkpoint ${epoch} of ${dir}`;

/** 0 where the clocks of two hosts say that it is still to be taken. */
export const ageMs = ({ takenAt }: Pick<FallBackPoint, 'takenAt'>, nowMs: number): number =>
  Math.max(0, nowMs - Date.parse(takenAt));

/**
 * What the destination has answered, of what was asked.
 * @throws UnsupportedHostError it knows nothing of it, and would lose the VM
 */
export const agreedPoint = (
  dir: string | undefined,
  answer: Pick<FallBackPoint, 'epoch' | 'takenAt'> | undefined,
): FallBackPoint | undefined => {
  if (dir === undefined) return undefined;
  if (answer !== undefined) return { dir, ...answer };
  throw new UnsupportedHostError('the destination would not go on from a checkpoint (--fallback)', {
    cure: 'Upgrade Holdfast there, or migrate without --fallback.',
  });
};
