/** From a VM to its plug gate: which taps it has, and whether this host can hold them. */
import { readdir, readFile } from 'node:fs/promises';
import { ConfigError, UnsupportedHostError } from '../errors.js';
import type { Logger } from '../log.js';
import type { VmDescription } from '../vm/describe.js';
import type { PlugBinding, PlugProbe } from './plug-binding.js';
import { PlugGate } from './plug-gate.js';

type VmWithTaps = Pick<VmDescription, 'netdevs' | 'process'>;

const OTHER_GATES = 'choose --gate filter-buffer, or --gate relay for a VM that Holdfast launches';

/** What to do where `probePlug` says that something is missing. */
export const plugCures: Readonly<Record<NonNullable<PlugProbe['lacks']>, string>> = {
  libnl: `Install it (Debian: apt-get install libnl-route-3-200); or ${OTHER_GATES}.`,
  namespace: `Run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN); or ${OTHER_GATES}.`,
  ifb: `Boot a kernel with CONFIG_IFB; or ${OTHER_GATES}.`,
  redirect: `Boot a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED; or ${OTHER_GATES}.`,
  qdisc: `Boot a kernel with CONFIG_NET_SCH_PLUG (module sch_plug); or ${OTHER_GATES}.`,
};

/**
 * The gate, with what an earlier run left in place adopted: `installed` says whether it holds.
 *
 * @throws ConfigError if a network backend is not a tap, or a tap is not to be had;
 *         UnsupportedHostError if the kernel or libnl lacks something. Nothing was changed.
 */
export const openPlugGate = async ({
  vm,
  native,
  log,
}: {
  readonly vm: VmWithTaps;
  readonly native: PlugBinding;
  readonly log: Pick<Logger, 'warn'>;
}): Promise<PlugGate> => {
  const taps = await tapsOf(vm);
  const probe = await native.probePlug();
  if (!probe.ok) {
    throw new UnsupportedHostError(`gate: plug: ${probe.reason ?? 'not supported here'}`, {
      cure: plugCures[probe.lacks ?? 'qdisc'],
      details: { lacks: probe.lacks },
    });
  }
  const gate = new PlugGate({ native, taps, log });
  try {
    await gate.adopt();
    return gate;
  } catch (error) {
    await gate.close();
    if (!(error instanceof UnsupportedHostError)) throw error;
    throw new ConfigError(error.message, {
      cause: error,
      cure: `Run Holdfast in the network namespace of ${taps.join(', ')}, and leave its ingress side to it (tc qdisc show dev ${taps[0]} ingress); or ${OTHER_GATES}.`,
      details: { taps },
    });
  }
};

/**
 * Whether a plug gate of an earlier run holds this VM's output: then another gate would wait for
 * releases that only that one is told of. Where it can't be known, there is none: it needs what is missing.
 */
export const isPlugged = async (vm: VmWithTaps, native: Pick<PlugBinding, 'Plug'>): Promise<boolean> => {
  if (!vm.netdevs.some(({ type }) => type === 'tap')) return false;
  const taps = await openTaps(vm.process.pid);
  if (taps.length === 0) return false;
  try {
    const gate = new PlugGate({ native, taps, log: { warn: () => {} } });
    try {
      return await gate.adopt();
    } finally {
      await gate.close();
    }
  } catch (error) {
    if (error instanceof UnsupportedHostError) return false;
    throw error;
  }
};

const tapsOf = async (vm: VmWithTaps): Promise<readonly string[]> => {
  const others = vm.netdevs.filter(({ type }) => type !== 'tap');
  const named = (list: VmWithTaps['netdevs']): string =>
    list.map(({ id, type }) => `${id} (${type})`).join(', ');
  if (others.length > 0) {
    throw new ConfigError(`gate: plug works on tap devices only, and this VM has netdev ${named(others)}`, {
      cure: `Use -netdev tap; or ${OTHER_GATES}.`,
    });
  }
  const taps = await openTaps(vm.process.pid);
  if (vm.netdevs.length === 0 || taps.length !== vm.netdevs.length) {
    const found = taps.length === 0 ? 'no tap device' : taps.join(', ');
    throw new ConfigError(
      `gate: plug: QEMU has ${found} open, for ${vm.netdevs.length === 0 ? 'no netdev' : `netdev ${named(vm.netdevs)}`}`,
      {
        cure: `Give each netdev a tap device of its own; or ${OTHER_GATES}, or --gate none without a network.`,
      },
    );
  }
  return taps;
};

/** Names of the tap devices that a process has open: the proof, whoever named or opened them. */
const openTaps = async (pid: number): Promise<string[]> => {
  const fds = await readdir(`/proc/${pid}/fdinfo`);
  const names = fds.map(async (fd) => {
    const text = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8').catch(() => ''); // closed meanwhile
    return /^iff:\s*(\S+)$/m.exec(text)?.[1] ?? []; // drivers/net/tun.c, tun_chr_show_fdinfo
  });
  return [...new Set((await Promise.all(names)).flat())].sort();
};
