import { describe, expect, it } from 'vitest';
import { checkPlugQdisc } from '../../lib/doctor/plug-check.js';
import { openPlugGate } from '../../lib/output/open-plug-gate.js';
import type { PlugProbe } from '../../lib/output/plug-binding.js';

const checked = (probe: PlugProbe) => checkPlugQdisc({ probePlug: async () => probe });

describe('doctor: plug qdisc', () => {
  it('has nothing to say where all works', async () => {
    const check = await checked({ ok: true });
    expect(check).toMatchObject({ id: 'sch-plug', status: 'ok' });
    expect(check.cure).toBeUndefined();
  });

  it.each([
    ['qdisc', 'CONFIG_NET_SCH_PLUG'],
    ['libnl', 'apt-get install libnl-route-3-200'],
    ['ifb', 'CONFIG_IFB'],
    ['redirect', 'CONFIG_NET_ACT_MIRRED'],
    ['namespace', 'CAP_NET_ADMIN'],
  ] as const)('names the cure for a lack of %s, and what does without: a warning', async (lacks, cure) => {
    const check = await checked({ ok: false, lacks, reason: 'because' });
    expect(check).toMatchObject({ status: 'warn', found: 'because' });
    expect(check.cure).toContain(cure);
    expect(check.cure).toContain('Needed by --gate plug alone');
    expect(check.cure).toContain('--gate filter-buffer');
  });

  it('reports a probe that fails', async () => {
    const check = await checkPlugQdisc({
      probePlug: async () => {
        throw new Error('no such function');
      },
    });
    expect(check).toMatchObject({ status: 'warn', found: 'no such function' });
  });
});

describe('opening a plug gate', () => {
  const native = {
    probePlug: () => {
      throw new Error('looked at the kernel before the VM');
    },
    Plug: class {
      constructor() {
        throw new Error('touched the host');
      }
    } as never,
  };
  const open = (...types: string[]) =>
    openPlugGate({
      vm: {
        process: { pid: process.pid } as never,
        netdevs: types.map((type, index) => ({ id: `net${index}`, type, queues: 1, vhost: false })),
      },
      native,
      log: { warn: () => {} },
    });

  it('refuses network backends that are not taps', async () => {
    await expect(open('tap', 'user')).rejects.toMatchObject({
      code: 'HOLDFAST_E_CONFIG',
      message: expect.stringContaining('net1 (user)'),
      cure: expect.stringContaining('-netdev tap'),
    });
  });

  it('refuses a tap that QEMU does not have open, and a VM without a network', async () => {
    await expect(open('tap')).rejects.toMatchObject({
      code: 'HOLDFAST_E_CONFIG',
      message: expect.stringContaining('no tap device open, for netdev net0 (tap)'),
    });
    await expect(open()).rejects.toMatchObject({
      code: 'HOLDFAST_E_CONFIG',
      cure: expect.stringContaining('--gate none'),
    });
  });
});
