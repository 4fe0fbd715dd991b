/**
 * The one who writes in a directory of checkpoints.
 *
 *   claim ─ what is left of whoever was killed there goes ─► checkpoints ─► release
 */
import { mkdir } from 'node:fs/promises';
import { type Claim, claimWriting } from './claims.js';
import { removeUnfinished } from './directory.js';
import { tidy } from './upkeep.js';

/**
 * Makes the directory if it is not there.
 * @throws ConfigError if another process writes there
 */
export const enterAsWriter = async (root: string): Promise<Claim> => {
  await mkdir(root, { recursive: true, mode: 0o700 });
  const claim = await claimWriting(root);
  try {
    await removeUnfinished(root);
    await tidy(root);
    return claim;
  } catch (error) {
    await claim.release();
    throw error;
  }
};
