/** What stands against a sender before anything is sent: the host, and where the peer is. */
import { lookup } from 'node:dns/promises';
import { BlockList, isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { UnsupportedHostError } from '../errors.js';
import type { SenderProbe } from '../native.js';
import type { SenderSetting, UnavailableSenders } from './sender-choice.js';

/** Strategies that this kernel does not let this process use, each with why. */
export const unavailableSenders = (probe: SenderProbe): UnavailableSenders =>
  new Map([
    ...(probe.zerocopy ? [] : ([['zerocopy', probe.zerocopyReason ?? 'no MSG_ZEROCOPY']] as const)),
    ...(probe.uring ? [] : ([['uring', probe.uringReason ?? 'no io_uring SEND_ZC']] as const)),
  ]);

/**
 * The same, for a sender that was asked for.
 * @throws UnsupportedHostError if it is among them
 */
export const usableSenders = (sender: SenderSetting, probe: SenderProbe): UnavailableSenders => {
  const unavailable = unavailableSenders(probe);
  const lacking = sender === 'auto' ? undefined : unavailable.get(sender);
  if (lacking === undefined) return unavailable;
  throw new UnsupportedHostError(`sender: '${sender}' does not work on this host: ${lacking}`, {
    cure: "Use 'auto', which leaves out what does not work; `holdfast doctor` says what is missing.",
  });
};

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** True if `address` (no name) is one of this host's own: what is sent there never meets a network card. */
export const isOwnAddress = (
  address: string,
  own: readonly string[] = Object.values(networkInterfaces()).flatMap((each) =>
    (each ?? []).map((info) => info.address),
  ),
): boolean => {
  const plain = address.replace(/^::ffff:(?=\d+\.)/, '').replace(/%.*$/, '');
  const family = isIP(plain);
  if (family === 0) return false;
  return loopback.check(plain, family === 4 ? 'ipv4' : 'ipv6') || own.includes(plain);
};

/** Whether the peer behind a host name or address is this host. A name that does not resolve counts as elsewhere. */
export const isLocalPeer = async (host: string): Promise<boolean> => {
  if (isIP(host) !== 0) return isOwnAddress(host);
  const addresses = await lookup(host, { all: true }).catch(() => []);
  return addresses.length > 0 && addresses.every(({ address }) => isOwnAddress(address));
};
