/** The region that is sent: a file on tmpfs, as guest RAM is, none of its pages zero. */
import { randomFillSync } from 'node:crypto';
import { open } from 'node:fs/promises';

export const pageBytes = 4096;

/** The unit of every "per MB" and "GB/s" of the suite is decimal; sizes are whole pages. */
export const megabyte = 1e6;

const chunkPages = 4096;

/** Random bytes, each page led by its number: no page is zero, and none is like another. */
export const fillRegion = async (path: string, regionBytes: number): Promise<void> => {
  const file = await open(path, 'wx', 0o600);
  try {
    const chunk = randomFillSync(Buffer.alloc(chunkPages * pageBytes));
    for (let first = 0; first * pageBytes < regionBytes; first += chunkPages) {
      for (let page = 0; page < chunkPages; page += 1) {
        chunk.writeUInt32LE(first + page + 1, page * pageBytes);
      }
      const bytes = Math.min(chunk.length, regionBytes - first * pageBytes);
      await file.write(chunk, 0, bytes, first * pageBytes);
    }
  } finally {
    await file.close();
  }
};
