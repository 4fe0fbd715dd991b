import { describe, expect, it } from 'vitest';
import { checkSenders } from '../../lib/doctor/sender-checks.js';
import type { SenderProbe } from '../../lib/native.js';

const able: SenderProbe = {
  zerocopy: true,
  uring: true,
  uringUsageReports: true,
  uringFixedBuffers: true,
  optmemBytesMax: 131_072,
  memlockBytesMax: -1,
};
const checked = async (probe: Partial<SenderProbe>) => {
  const checks = await checkSenders({ probeSenders: () => ({ ...able, ...probe }) });
  return Object.fromEntries(checks.map((each) => [each.id, each]));
};

describe('doctor: senders', () => {
  it('has nothing to say where all work', async () => {
    const checks = Object.values(await checked({}));
    expect(checks.map(({ status }) => status)).toEqual(['ok', 'ok', 'ok']);
    expect(checks.every(({ cure }) => cure === undefined)).toBe(true);
  });

  it('warns with a cure, and never fails: the others do without', async () => {
    const {
      zerocopy,
      optmem,
      'io-uring': uring,
    } = await checked({
      zerocopy: false,
      zerocopyReason: 'setsockopt: EPERM',
      optmemBytesMax: 20_480,
      uring: false,
      uringReason: 'io_uring_setup: ENOSYS',
    });
    expect(zerocopy).toMatchObject({ status: 'warn', found: 'setsockopt: EPERM' });
    expect(optmem).toMatchObject({ status: 'warn', found: 'net.core.optmem_max = 20480' });
    expect(optmem?.cure).toContain('sysctl -w net.core.optmem_max=131072');
    expect(uring).toMatchObject({ status: 'warn', found: 'io_uring_setup: ENOSYS' });
    expect(uring?.cure).toContain('--sender auto');
  });

  it('takes what cannot be read for enough, and names what an old kernel lacks', async () => {
    const { optmem, 'io-uring': uring } = await checked({ optmemBytesMax: -1, uringUsageReports: false });
    expect(optmem?.status).toBe('ok');
    expect(uring).toMatchObject({ status: 'ok' });
    expect(uring?.found).toMatch(/^works, without reports/);
  });

  it('reports a probe that fails', async () => {
    const probeSenders = (): SenderProbe => {
      throw new Error('socket: EMFILE');
    };
    expect(await checkSenders({ probeSenders })).toMatchObject([{ status: 'warn', found: 'socket: EMFILE' }]);
  });
});
