/** A VM that runs before its memory is there: how long either side waits for the other, and what it says then. */
import { describe, expect, it } from 'vitest';
import { EarlyResume, type EarlyResumeOptions } from '../../lib/backup/early-resume.js';
import { CancelledError, PeerLostError } from '../../lib/errors.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { afterRound } from '../../lib/migrate/after-round.js';
import { checkMigrationSettings } from '../../lib/migrate/options.js';
import type { EarlyGuestEvent, EarlyGuestOptions, FaultCost } from '../../lib/native-early.js';
import { servePages } from '../../lib/primary/serve-pages.js';

const cost: FaultCost = { faults: 3, faultP50Us: 200, faultP99Us: 900, faultMaxUs: 1_200 };
const peer = { host: '10.0.0.2', port: 7790, token: new Uint8Array(32) };
const lost = (): Error => Object.assign(new Error('peer closed it'), { code: 'HOLDFAST_E_PEER_LOST' });

/** Each attempt is one of these: it fails before or after pages were asked for, or ends it. */
type Attempt = 'refused' | 'cut' | 'served' | 'cancelled';

const engineOf = (attempts: readonly Attempt[], last: Attempt = 'refused', pagesLeft = 5) => {
  let made = 0;
  let connections = 0;
  return {
    made: () => made,
    serveProgress: () => ({
      ...{ pages: 10, pagesLeft, demandedPages: 0, backgroundPages: 5, zeroPages: 0, bytes: 0 },
      connections,
    }),
    servePages: async (): Promise<FaultCost> => {
      const attempt = attempts[made] ?? last;
      made += 1;
      if (attempt === 'served') return cost;
      if (attempt === 'cut') connections += 1;
      throw attempt === 'cancelled' ? new CancelledError('disconnected') : lost();
    },
  };
};

describe('the source', () => {
  const serve = (engine: ReturnType<typeof engineOf>, waitMs: number) =>
    servePages({ engine, peer, waitMs, log: NOTHING_LOGGED });

  it('connects again until all pages are there', async () => {
    const engine = engineOf(['refused', 'cut', 'refused', 'served']);
    expect(await serve(engine, 10_000)).toEqual(cost);
    expect(engine.made()).toBe(4);
  });

  it('gives up when nothing came about for so long, and says what is left of the VM', async () => {
    const engine = engineOf(['refused']);
    const ended = serve(engine, 250);
    await expect(ended).rejects.toThrow(PeerLostError);
    await expect(ended).rejects.toThrow('not reached for 250 ms before all pages were there: peer closed it');
    await expect(ended).rejects.toMatchObject({ cure: expect.stringContaining('QMP cont') });
    expect(engine.made()).toBeGreaterThan(2);
  });

  const fallback = { dir: '/ckpt', epoch: 3, takenAt: '2026-11-22T01:00:00.000Z' };
  const cureOf = async (pagesLeft: number, point: typeof fallback | undefined): Promise<unknown> => {
    const engine = engineOf([], 'refused', pagesLeft);
    const ended = servePages({ engine, peer, waitMs: 0, fallback: point, log: NOTHING_LOGGED });
    return await ended.catch(({ cure }: PeerLostError) => cure);
  };

  it('says so where the destination goes on from a checkpoint, if enough of it lived', async () => {
    expect(await cureOf(5, fallback)).toMatch(
      /^If its daemon and its QEMU there lived, the VM goes on there from checkpoint 3 of \/ckpt: the QEMU here must not be continued beside it\. Look at `holdfast status` there first/,
    );
  });

  it('says that it may run there, one way or the other, where all was sent', async () => {
    expect(await cureOf(0, undefined)).toMatch(/^The VM may run there for good: look at .* first/);
    expect(await cureOf(0, fallback)).toMatch(
      /^The VM may run there for good, or from checkpoint 3 of \/ckpt .*: look at `holdfast status`/,
    );
  });

  it('counts from the last connection that came about', async () => {
    const engine = engineOf(['cut', 'refused', 'cut', 'refused', 'cut', 'served']);
    expect(await serve(engine, 250)).toEqual(cost);
  });

  it('ends at once when it is called off', async () => {
    await expect(serve(engineOf(['cut', 'cancelled']), 60_000)).rejects.toThrow(CancelledError);
  });
});

/** A data plane whose events the test tells. */
const fakeGuest = () => {
  const calls: string[] = [];
  let pagesLeft = 4;
  let tell: (event: EarlyGuestEvent) => void = () => {};
  class EarlyGuest {
    constructor(options: EarlyGuestOptions) {
      tell = options.onEvent;
      calls.push(`new pid=${options.pid} emptyAll=${options.emptyAll} bytes=${options.ram.sizeBytes}`);
    }
    start = async () => {
      calls.push('start');
      return { injectMs: 0.2 };
    };
    stats = () => ({
      ...{ listed: true, pages: 9, pagesLeft, demandedPages: 0, backgroundPages: 5, zeroPages: 0 },
      ...{ faults: 0, waitingFaults: 0, faultP50Us: 0, faultP99Us: 0, faultMaxUs: 0 },
    });
    stop = async () => void calls.push('stop');
    release = async () => void calls.push('release');
    close = async () => void calls.push('close');
  }
  const findRamMappings = async () => [
    {
      ...{ hostAddress: 4096n, sizeBytes: 8192, fileOffset: 0, path: '/dev/shm/replica' },
      ...{ deleted: false, shared: true, pageSize: 4096 },
    },
  ];
  return {
    calls,
    tell: (event: EarlyGuestEvent) => tell(event),
    left: (pages: number) => {
      pagesLeft = pages;
    },
    binding: { EarlyGuest, findRamMappings },
  };
};

describe('the destination', () => {
  const begin = async (waitMs: number, options: Partial<EarlyResumeOptions> = {}) => {
    const fake = fakeGuest();
    const beginning = EarlyResume.begin({
      ...{ pid: 77, ramPath: '/dev/shm/replica', ramBytes: 8192, emptyAll: true, waitMs },
      ...{ origin: { layers: [] }, log: NOTHING_LOGGED, binding: fake.binding },
      ...options,
    });
    beginning.catch(() => {});
    await expect.poll(() => fake.calls.length === 2 || options.ramPath !== undefined).toBe(true);
    return { ...fake, beginning };
  };
  const begun = async (waitMs: number) => {
    const { beginning, ...fake } = await begin(waitMs);
    fake.tell({ type: 'listed', pages: 9 });
    return { ...fake, resume: await beginning };
  };
  const gone = { type: 'lost', code: 'HOLDFAST_E_PEER_LOST', message: 'peer closed it' } as const;

  it('lets the VM run when it is known what it lacks', async () => {
    const { calls, resume } = await begun(1_000);
    expect(calls).toEqual(['new pid=77 emptyAll=true bytes=8192', 'start']);
    expect(resume.stats().pagesLeft).toBe(4);
    await resume.close();
  });

  it('does not where that failed, or where the standby has other memory', async () => {
    const { calls, tell, beginning } = await begin(1_000);
    tell({ type: 'failed', code: 'HOLDFAST_E_SYSCALL', message: 'no room' });
    await expect(beginning).rejects.toMatchObject({ code: 'HOLDFAST_E_SYSCALL', message: 'no room' });
    expect(calls.at(-1)).toBe('close');
    const other = await begin(1_000, { ramPath: '/dev/shm/other' });
    await expect(other.beginning).rejects.toThrow('has not mapped /dev/shm/other');
    expect(other.calls).toEqual([]);
  });

  it('leaves QEMU as any other once the source knows that nothing is lacking', async () => {
    const { calls, tell, resume } = await begun(60_000);
    tell({ type: 'complete' });
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(calls).not.toContain('release');
    tell(gone);
    await resume.ended;
    expect(calls.at(-1)).toBe('release');
    await resume.close();
  });

  it('does not wait for ever for a source that need not know', async () => {
    const { tell, resume } = await begun(30);
    tell({ type: 'complete' });
    await resume.ended;
    await resume.close();
  });

  it('waits for a lost source, and goes on when it is back', async () => {
    const { tell, resume } = await begun(200);
    tell(gone);
    tell({ type: 'found' });
    await new Promise((resolve) => setTimeout(resolve, 300));
    tell({ type: 'complete' });
    tell(gone);
    await resume.ended;
    await resume.close();
  });

  it('ends no VM that got its last page when its source was about to be given up', async () => {
    const { calls, tell, left, resume } = await begun(30);
    tell(gone);
    left(0);
    await resume.ended;
    expect(calls.slice(-2)).toEqual(['stop', 'release']);
    await resume.close();
  });

  it('is over for whoever waits when it is closed', async () => {
    const { tell, resume } = await begun(30);
    tell(gone);
    await resume.close();
    await expect(resume.ended).rejects.toThrow(CancelledError);
  });

  it('says what is missing when the source does not come back, and has nothing come any more', async () => {
    const { calls, tell, resume } = await begun(30);
    tell(gone);
    await expect(resume.ended).rejects.toMatchObject({
      code: 'HOLDFAST_E_PEER_LOST',
      message:
        'the source of the VM was lost, and not back within 30 ms (peer closed it): 4 of its pages are missing',
    });
    expect(calls.at(-1)).toBe('stop');
    await resume.close();
  });
});

describe('the step', () => {
  const limits = { downtimeMs: 300, pageBytes: 4_096, overheadMs: 10 };
  const limit = { roundsMax: 100, totalMsMax: 60_000 };
  const policy = () => ({ step: 'post-copy', expectedDowntimeMs: 900, reason: '' }) as const;

  it('is post-copy only where that was allowed', () => {
    expect(afterRound({ policy, limits, limit, postCopy: true })([])).toBe('post-copy');
    expect(afterRound({ policy, limits, limit })([])).toBe('stop-and-copy');
  });

  it('is not allowed by default', () => {
    expect(checkMigrationSettings({ to: '10.0.0.2:7788' })).toMatchObject({
      resumeEarly: 'never',
      earlyWaitMs: 30_000,
    });
  });
});
