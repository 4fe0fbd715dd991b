import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { flatGuestArgs, flatReadyText } from './lab/guest.js';
import { Lab } from './lab/lab.js';
import { readText, waitFor, waitForText } from './lab/wait.js';

let lab: Lab | undefined;
afterEach(async () => {
  await lab?.close();
  lab = undefined;
});

const pageBytes = 4096;
const firstPage = (16 << 20) / pageBytes;

/** First words of `pages` of the guest's pages, straight from its RAM. */
const counters = async (ramPath: string, pages: number): Promise<number[]> => {
  const file = await open(ramPath);
  try {
    const { buffer } = await file.read(
      Buffer.alloc(pages * pageBytes),
      0,
      pages * pageBytes,
      firstPage * pageBytes,
    );
    return Array.from({ length: pages }, (_, page) => buffer.readUInt32LE(page * pageBytes));
  } finally {
    await file.close();
  }
};

describe('flat guest', () => {
  describe.each(['tcg', 'kvm'] as const)('%s', (accel) => {
    test.skipIf(accel === 'kvm' && !existsSync('/dev/kvm')).each(['pc', 'q35'] as const)(
      'writes every page, for ever, on %s',
      async (machine) => {
        lab = await Lab.create({ tag: 'flat' });
        const [serialPath, ramPath] = [lab.path('serial.log'), lab.sharedMemoryPath('ram')];
        const pages = 512;
        const qemu = await lab
          .host('a')
          .spawn('qemu-system-x86_64', flatGuestArgs({ accel, machine, pages, serialPath, ramPath }));
        await waitForText(serialPath, flatReadyText, { timeoutMs: 50_000 });
        await waitFor('two dots', () => readText(serialPath).includes('..'));
        const before = await counters(ramPath, pages);
        expect(before.every((counter) => counter > 0)).toBe(true);
        await waitFor('every counter to have grown', async () =>
          (await counters(ramPath, pages)).every((counter, page) => counter > before[page]!),
        );
        expect(qemu.running).toBe(true);
      },
    );
  });
});
