/** Contents for a guest's RAM, the same for every contender. */
import { randomFillSync } from 'node:crypto';
import { open } from 'node:fs/promises';

const BLOCK_BYTES = 4 << 20;
/** One block in so many is all zero, as part of a real guest's memory is. */
const ZERO_BLOCK_EVERY = 8;

/**
 * Writes a RAM file: random bytes, an eighth of it zeros. The zeros are written
 * too: what was never touched Holdfast does not even look at, and QEMU would.
 */
export const writeRam = async (path: string, ramMb: number): Promise<void> => {
  const random = randomFillSync(Buffer.alloc(BLOCK_BYTES));
  const zeros = Buffer.alloc(BLOCK_BYTES);
  const file = await open(path, 'wx', 0o600);
  try {
    const blocks = (ramMb << 20) / BLOCK_BYTES;
    for (let block = 0; block < blocks; block++) {
      const zero = block % ZERO_BLOCK_EVERY === ZERO_BLOCK_EVERY - 1;
      await file.write(zero ? zeros : random, 0, BLOCK_BYTES);
    }
  } finally {
    await file.close();
  }
};
