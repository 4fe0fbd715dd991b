/** Who has the replicas open, and for how long: against a store that writes down what it is asked for. */
import { describe, expect, it } from 'vitest';
import { type DiskFault, ReplicaKeeper } from '../../lib/backup/replica-disks.js';
import { NOTHING_LOGGED } from '../../lib/log.js';

const vda = { id: 'vda', imagePath: '/srv/a.raw', imageBytes: 1 << 20 };
const fault: DiskFault = { id: 'vda', code: 'HOLDFAST_E_NO_SPACE', errno: 28, message: 'no space' };

const opened = {
  ...{ fresh: true, trusted: true, recovered: false },
  ...{ syncId: '0'.repeat(32), markedBytes: 0, committedEpoch: 0 },
};

const setUp = () => {
  const did: string[] = [];
  const told: string[] = [];
  const world = { did, told, failing: new Set<string>(), fail: (_fault: DiskFault) => {} };
  const ask = async (what: string): Promise<void> => {
    did.push(what);
    if (world.failing.has(what)) throw Object.assign(new Error('no space'), { code: 'HOLDFAST_E_NO_SPACE' });
  };
  const keeper = new ReplicaKeeper({
    metaDirOf: async (image) => `/meta${image}`,
    openStore: ({ disks, onFault }) => {
      world.fail = onFault;
      did.push(`new ${disks.map(({ imagePath, metaDir }) => `${imagePath} ${metaDir}`).join(' ')}`);
      return {
        open: async () => {
          await ask('open');
          return [{ ...opened, id: 'vda' }];
        },
        stats: () => [
          {
            id: 'vda',
            ...{ journalUsedBytes: 1, journalBytes: 2, receivedBytes: 3, appliedBytes: 4, durableEpoch: 5 },
            ...{ baseBytes: 6, committedEpoch: 5, merging: false },
          },
        ],
        retire: () => ask('retire'),
        close: () => ask('close'),
      };
    },
    journalBytes: 2,
    adopt: false,
    log: NOTHING_LOGGED,
    onFault: ({ message }, image) => told.push(`${image}: ${message}`),
  });
  return { world, keeper };
};

describe('replicas', () => {
  it('lie where the replacements say, and stay open until the last generation lets go', async () => {
    const { world, keeper } = setUp();
    const replacements = [{ from: '/srv', to: '/mnt' }];
    const first = await keeper.take([vda], replacements);
    const second = await keeper.take([vda], replacements);
    expect(second.store).toBe(first.store);
    await first.letGo();
    await first.letGo(); // once is enough, however often
    expect(world.did).toEqual(['new /mnt/a.raw /meta/mnt/a.raw', 'open']);
    expect(keeper.status()).toMatchObject([{ id: 'vda', image: '/mnt/a.raw', durableEpoch: 5 }]);
    await second.letGo();
    expect(world.did.at(-1)).toBe('close');
    expect(keeper.status()).toEqual([]);
  });

  it('are opened anew for the next VM', async () => {
    const { world, keeper } = setUp();
    await (await keeper.take([vda], [])).letGo();
    await keeper.take([{ ...vda, imagePath: '/srv/b.raw' }], []);
    expect(world.did.filter((line) => line.startsWith('new'))).toHaveLength(2);
  });

  it('do not change beneath a checkpoint', async () => {
    const { keeper } = setUp();
    await keeper.take([vda], []);
    await expect(keeper.take([{ ...vda, imageBytes: 5 }], [])).rejects.toThrow(/other disks/);
  });

  it('that cannot be opened are not kept', async () => {
    const { world, keeper } = setUp();
    world.failing.add('open');
    await expect(keeper.take([vda], [])).rejects.toMatchObject({ code: 'HOLDFAST_E_NO_SPACE' });
    expect(world.did.at(-1)).toBe('close');
    world.failing.clear();
    await expect(keeper.take([vda], [])).resolves.toBeDefined();
  });

  it('that fail are told of, refused while they do, and recovered then', async () => {
    const { world, keeper } = setUp();
    await keeper.take([vda], []);
    world.fail(fault);
    expect(world.told).toEqual(['/srv/a.raw: no space']);
    expect(keeper.status()).toMatchObject([{ fault: 'no space' }]);
    world.failing.add('open');
    await expect(keeper.take([vda], [])).rejects.toThrow('no space');
    await expect(keeper.recover()).rejects.toThrow('no space');
    expect(keeper.status()).toMatchObject([{ fault: 'no space' }]);
    world.failing.clear();
    await keeper.recover();
    expect(keeper.status()[0]).not.toHaveProperty('fault');
    const opened = world.did.length;
    await keeper.recover(); // nothing is wrong
    expect(world.did).toHaveLength(opened);
  });

  it('that fail say so after they were closed, until they are opened again', async () => {
    const { world, keeper } = setUp();
    const taken = await keeper.take([vda], []);
    world.fail(fault);
    await taken.letGo();
    expect(keeper.status()).toMatchObject([{ id: 'vda', durableEpoch: 5, fault: 'no space', closed: true }]);
    world.failing.add('open');
    await expect(keeper.take([vda], [])).rejects.toThrow('no space');
    expect(keeper.status()).toMatchObject([{ image: '/srv/a.raw', fault: 'no space', closed: true }]);
    world.failing.clear();
    const again = await keeper.take([vda], []);
    expect(keeper.status()[0]).not.toHaveProperty('fault');
    expect(keeper.status()[0]).not.toHaveProperty('closed');
    await again.letGo();
    expect(keeper.status()).toEqual([]);
  });

  it('say nothing of a failure once they are the disks of a VM that runs', async () => {
    const { world, keeper } = setUp();
    const taken = await keeper.take([vda], []);
    await keeper.retire(taken);
    world.fail(fault);
    await taken.letGo();
    expect(keeper.status()).toEqual([]);
  });

  it('are retired once', async () => {
    const { world, keeper } = setUp();
    const taken = await keeper.take([vda], []);
    world.failing.add('retire');
    await expect(keeper.retire(taken)).rejects.toThrow();
    world.failing.clear();
    await keeper.retire(taken);
    await keeper.retire(taken);
    expect(world.did.filter((line) => line === 'retire')).toHaveLength(2); // one failed
  });

  it('are closed by the daemon that ends, whoever holds them', async () => {
    const { world, keeper } = setUp();
    const taken = await keeper.take([vda], []);
    await keeper.close();
    await taken.letGo();
    expect(world.did.filter((line) => line === 'close')).toHaveLength(1);
  });
});
