import { describe, expect, it } from 'vitest';
import { type FoundServer, finishTakeover } from '../../lib/backup/finish-takeover.js';
import type { TakenDisks } from '../../lib/backup/replica-disks.js';

const setUp = (active: readonly boolean[], failing?: 'take' | 'retire') => {
  const did: string[] = [];
  const ask = (what: 'take' | 'retire'): void => {
    did.push(what);
    if (failing === what) throw new Error('EIO');
  };
  const disks = { letGo: async () => void did.push('let go') } as TakenDisks;
  const servers = active.map(
    (isActive, index): FoundServer => ({
      id: `vd${index}`,
      imagePath: `/srv/${index}`,
      imageBytes: 1,
      isActive,
      activate: async () => void did.push(`activate vd${index}`),
    }),
  );
  const take = async (): Promise<TakenDisks> => {
    ask('take');
    return disks;
  };
  return { did, finish: () => finishTakeover({ servers, take, retire: async () => ask('retire') }) };
};

describe('a takeover whose daemon was killed', () => {
  it('before any disk took writes: journals are closed first', async () => {
    const { did, finish } = setUp([false, false]);
    expect(await finish()).toBe(true);
    expect(did).toEqual(['take', 'retire', 'let go', 'activate vd0', 'activate vd1']);
  });

  it('between two disks: the journals are closed, and the images the VM’s', async () => {
    const { did, finish } = setUp([true, false]);
    expect(await finish()).toBe(true);
    expect(did).toEqual(['activate vd1']);
  });

  it('after all of them: nothing is touched', async () => {
    const { did, finish } = setUp([true, true]);
    expect(await finish()).toBe(false);
    expect(did).toEqual([]);
  });

  it.each(['take', 'retire'] as const)('no write is let through where %s fails', async (failing) => {
    const { did, finish } = setUp([false, false], failing);
    await expect(finish()).rejects.toThrow('EIO');
    expect(did.filter((what) => what.startsWith('activate'))).toEqual([]);
    expect(did.at(-1)).toBe(failing === 'take' ? 'take' : 'let go');
  });
});
