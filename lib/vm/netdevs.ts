/**
 * Network backends on QEMU's command line, for the packet relay. Pure.
 *
 *   -netdev tap,id=net0,ifname=tap0,script=no,downscript=no
 *     └─overRelays──► -netdev stream,id=net0,server=on,addr.type=unix,addr.path=…/net0.sock
 *                     and a relay between that socket and tap0
 */

import { ConfigError } from '../errors.js';
import {
  type CommandOption,
  isOn,
  listValue,
  parseArguments,
  parseList,
  renderArguments,
  renderList,
} from './command-line.js';

/** A tap of the command line that a relay has in QEMU's place. */
export interface RelayedTap {
  readonly netdev: string;
  readonly tap: string;
  /** Where QEMU listens for the relay. */
  readonly socket: string;
}

export interface NetdevRefusal {
  /** Id, or the option as it stands where there is none. */
  readonly netdev: string;
  readonly reason: string;
}

export type Relayed =
  | { readonly argv: readonly string[]; readonly taps: readonly RelayedTap[] }
  | { readonly refused: readonly NetdevRefusal[] };

/** Keys of a tap that mean nothing once the relay has it. */
const DROPPED_KEYS = new Set(['sndbuf', 'vnet_hdr', 'poll-us']);
/** sockaddr_un.sun_path without its NUL, and without the ending of the relay's control socket beside it. */
export const SOCKET_PATH_BYTES_MAX = 107 - '.ctl'.length;

/**
 * Puts a stream socket in the place of every tap. All or none: one gate holds the output of the whole VM.
 * @param socketOf where QEMU is to listen for the relay of a netdev
 */
export const overRelays = (argv: readonly string[], socketOf: (netdev: string) => string): Relayed => {
  const taps: RelayedTap[] = [];
  const refused: NetdevRefusal[] = [];
  const options = parseArguments(argv).map((option) => {
    if (!isNetwork(option)) return option;
    const found = tapOf(option);
    if ('reason' in found) {
      refused.push(found);
      return option;
    }
    const socket = socketOf(found.netdev);
    if (Buffer.byteLength(socket) > SOCKET_PATH_BYTES_MAX) {
      refused.push({
        netdev: found.netdev,
        reason: `its socket's path ${socket} would be longer than ${SOCKET_PATH_BYTES_MAX} bytes`,
      });
    }
    taps.push({ ...found, socket });
    return { name: 'netdev', value: streamNetdev(found.netdev, socket) };
  });
  return refused.length > 0 ? { refused } : { argv: renderArguments(options), taps };
};

const isNetwork = ({ name, value }: CommandOption): boolean =>
  name === 'netdev' || ((name === 'nic' || name === 'net') && value !== 'none');

const streamNetdev = (id: string, socket: string): string =>
  renderList([
    { value: 'stream' },
    { key: 'id', value: id },
    { key: 'server', value: 'on' },
    { key: 'addr.type', value: 'unix' },
    { key: 'addr.path', value: socket },
  ]);

const tapOf = ({ name, value = '' }: CommandOption): { netdev: string; tap: string } | NetdevRefusal => {
  const netdev = listValue(value, 'id') ?? `-${name} ${value}`;
  const refuse = (reason: string): NetdevRefusal => ({ netdev, reason });
  if (name !== 'netdev') return refuse(`only -netdev with a -device can go over a relay, not -${name}`);
  const type = listValue(value, 'type', 'type');
  if (type !== 'tap') return refuse(`its type is ${type ?? 'unknown'}, not tap`);
  const tap = listValue(value, 'ifname');
  if (listValue(value, 'id') === undefined) return refuse('it has no id');
  if (tap === undefined) return refuse('it names no tap device (ifname=)');
  for (const key of ['script', 'downscript']) {
    if (listValue(value, key) !== 'no') {
      return refuse(
        `QEMU would run a script for the tap (without ${key}=no); a relay opens one that is set up`,
      );
    }
  }
  if (isOn(listValue(value, 'vhost'))) return refuse('vhost=on moves packets in the kernel');
  if (Number(listValue(value, 'queues') ?? 1) > 1) return refuse('it has several queues');
  const known = new Set(['type', 'id', 'ifname', 'script', 'downscript', 'vhost', 'queues', ...DROPPED_KEYS]);
  const strange = keysOf(value).find((key) => !known.has(key));
  return strange === undefined ? { netdev, tap } : refuse(`a relay has nothing like its ${strange}=`);
};

const keysOf = (value: string): string[] =>
  value.startsWith('{')
    ? Object.keys(JSON.parse(value) as object)
    : parseList(value).flatMap(({ key }) => key ?? []);

export interface StreamServer {
  readonly netdev: string;
  /** As on the command line: relative to QEMU's working directory if it is relative. */
  readonly socket: string;
}

/** Netdevs that listen on a Unix socket: those that a relay may serve. */
export const streamServers = (argv: readonly string[]): readonly StreamServer[] =>
  parseArguments(argv).flatMap((option) => streamServer(option) ?? []);

const streamServer = ({ name, value }: CommandOption): StreamServer | undefined => {
  if (name !== 'netdev' || listValue(value, 'type', 'type') !== 'stream') return undefined;
  const netdev = listValue(value, 'id');
  const address = unixAddressOf(value);
  if (netdev === undefined || address === undefined || !isOn(listValue(value, 'server'))) return undefined;
  return { netdev, socket: address };
};

/** Path of the Unix socket of a -netdev stream's value. */
export const unixAddressOf = (value = ''): string | undefined => {
  if (!value.startsWith('{')) {
    return listValue(value, 'addr.type') === 'unix' ? listValue(value, 'addr.path') : undefined;
  }
  const { addr } = JSON.parse(value) as { addr?: { type?: string; path?: string } };
  return addr?.type === 'unix' ? addr.path : undefined;
};

/**
 * The same command line with the relays' sockets elsewhere: a standby listens in its own directory.
 * @throws ConfigError if it has no such netdev
 */
export const moveSockets = (argv: readonly string[], sockets: ReadonlyMap<string, string>): string[] => {
  const moved = new Set<string>();
  const options = parseArguments(argv).map((option) => {
    const server = streamServer(option);
    const socket = server === undefined ? undefined : sockets.get(server.netdev);
    if (server === undefined || socket === undefined) return option;
    moved.add(server.netdev);
    return { name: 'netdev', value: streamNetdev(server.netdev, socket) };
  });
  const missing = [...sockets.keys()].filter((netdev) => !moved.has(netdev));
  if (missing.length > 0) {
    throw new ConfigError(`the command line has no stream netdev ${missing.join(', ')} for a relay`);
  }
  return renderArguments(options);
};
