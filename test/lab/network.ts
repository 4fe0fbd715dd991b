/**
 * What the lab's network consists of, as `ip -batch` commands.
 *
 *     client (c) 10.77.0.3 ── lan (bridge) ─┬─ lan0 a: br0 10.77.0.1 ── tap0 (the guest, 10.77.0.10)
 *                                           ├─ lan0 b: br0 10.77.0.2 ── tap0
 *                                           └─ lan0 d: br0 10.77.0.4 ── tap0       (only with `third`)
 *     replication:  a repl0 10.78.0.1 ── 10.78.0.2 repl0 b repl1 10.79.0.1 ── 10.79.0.2 repl0 d
 */

import { execToEnd } from './process.js';
import { waitFor } from './wait.js';

export type HostName = 'a' | 'b' | 'c' | 'd';

export const lanAddresses = { a: '10.77.0.1', b: '10.77.0.2', c: '10.77.0.3', d: '10.77.0.4' } as const;
export const guestAddress = '10.77.0.10';
export const guestMac = '52:54:00:77:00:10';

/** The dedicated links, each named after the primary it is meant for and its backup. */
export const replicationLinks = {
  aToB: {
    from: { host: 'a', link: 'repl0', address: '10.78.0.1' },
    to: { host: 'b', link: 'repl0', address: '10.78.0.2' },
  },
  bToD: {
    from: { host: 'b', link: 'repl1', address: '10.79.0.1' },
    to: { host: 'd', link: 'repl0', address: '10.79.0.2' },
  },
} as const;

export type Namespaces = ReadonlyMap<HostName, string>;

/** No IPv6 (its neighbour discovery is noise to the output tests), and no netfilter on the bridges. */
const quietNetwork = `
  for file in /proc/sys/net/ipv6/conf/all/disable_ipv6 /proc/sys/net/ipv6/conf/default/disable_ipv6; do
    [ ! -e $file ] || echo 1 > $file
  done
  for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $file ] || echo 0 > $file; done`;

const ipBatch = async (commands: readonly string[], namespace?: string): Promise<void> => {
  const inside = namespace === undefined ? [] : ['-n', namespace];
  try {
    await execToEnd('ip', [...inside, '-batch', '-'], { input: commands.join('\n') });
  } catch (error) {
    // ip names only the number of the line that failed.
    const line = /Command failed -:(\d+)/.exec((error as Error).message)?.[1];
    throw new Error(`${(error as Error).message} (ip ${commands[Number(line) - 1] ?? ''})`);
  }
};

/** Both ends of each wire are born inside their namespaces: nothing appears on the machine's own network. */
const wires = (namespaces: Namespaces): string[] => {
  const client = namespaces.get('c');
  const commands: string[] = [];
  for (const [name, namespace] of namespaces) {
    if (name === 'c') continue;
    commands.push(`link add name to-${name} netns ${client} type veth peer name lan0 netns ${namespace}`);
  }
  for (const { from, to } of Object.values(replicationLinks)) {
    const [near, far] = [namespaces.get(from.host), namespaces.get(to.host)];
    if (near === undefined || far === undefined) continue;
    commands.push(`link add name ${from.link} netns ${near} type veth peer name ${to.link} netns ${far}`);
  }
  return commands;
};

/** A bridge that forwards at once: no spanning tree, no learning delay, no multicast filter. */
const bridge = (name: string, ports: readonly string[], address: string): string[] => [
  'link set dev lo up',
  `link add name ${name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0`,
  ...ports.flatMap((port) => [`link set dev ${port} master ${name}`, `link set dev ${port} up`]),
  `address add ${address}/24 dev ${name}`,
  `link set dev ${name} up`,
];

const inside = (name: HostName, namespaces: Namespaces): string[] => {
  if (name === 'c') {
    const ports = [...namespaces.keys()].filter((host) => host !== 'c').map((host) => `to-${host}`);
    return bridge('lan', ports, lanAddresses.c);
  }
  const replication = Object.values(replicationLinks)
    .filter(({ from, to }) => namespaces.has(from.host) && namespaces.has(to.host))
    .flatMap(({ from, to }) => [from, to])
    .filter(({ host }) => host === name)
    .flatMap(({ link, address }) => [`address add ${address}/24 dev ${link}`, `link set dev ${link} up`]);
  return [
    'tuntap add dev tap0 mode tap',
    ...bridge('br0', ['lan0', 'tap0'], lanAddresses[name]),
    ...replication,
  ];
};

/**
 * Waits until the links (all but lo and the taps, which wait for their QEMU) carry packets: the kernel tells
 * a bridge of a new carrier up to a second late, and until then it drops what comes.
 */
export const linksUp = async (namespace: string): Promise<void> => {
  await waitFor(
    `the links of ${namespace} to come up`,
    async () => {
      const { stdout } = await execToEnd('ip', ['-n', namespace, '-json', 'link', 'show', 'up']);
      const links = JSON.parse(stdout) as readonly { ifname: string; operstate: string }[];
      return links.every(({ ifname, operstate }) => ['lo', 'tap0'].includes(ifname) || operstate === 'UP');
    },
    { timeoutMs: 10_000, intervalMs: 50 },
  );
};

/** Creates the namespaces and everything in them. On failure some may exist already. */
export const createNetwork = async (namespaces: Namespaces): Promise<void> => {
  await ipBatch([
    ...[...namespaces.values()].map((namespace) => `netns add ${namespace}`),
    ...wires(namespaces),
  ]);
  await Promise.all(
    [...namespaces].map(async ([name, namespace]) => {
      await execToEnd('ip', ['netns', 'exec', namespace, 'sh', '-c', quietNetwork]);
      await ipBatch(inside(name, namespaces), namespace);
    }),
  );
  await Promise.all([...namespaces.values()].map(linksUp));
};
