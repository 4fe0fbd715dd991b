import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../lib/errors.js';
import { moveSockets, overRelays, streamServers } from '../../lib/vm/netdevs.js';

const TAP = 'tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off';
const STREAM = 'stream,id=net0,server=on,addr.type=unix,addr.path=/run/vm/net0.sock';
const NIC = ['-device', 'virtio-net-pci,netdev=net0'];

const socketOf = (netdev: string): string => `/run/vm/${netdev}.sock`;

const refusalOf = (...argv: string[]): string => {
  const relayed = overRelays(argv, socketOf);
  if (!('refused' in relayed)) throw new Error(`accepted: ${relayed.argv.join(' ')}`);
  return relayed.refused.map(({ netdev, reason }) => `${netdev}: ${reason}`).join('; ');
};

describe('taps over relays', () => {
  it('puts a stream socket in the place of a tap, and leaves the rest as it is', () => {
    expect(overRelays(['-m', '1G', '-netdev', TAP, ...NIC], socketOf)).toEqual({
      argv: ['-m', '1G', '-netdev', STREAM, ...NIC],
      taps: [{ netdev: 'net0', tap: 'tap0', socket: '/run/vm/net0.sock' }],
    });
  });

  it('does so for each netdev, in JSON too, and for tuning keys that the relay does not need', () => {
    const json = JSON.stringify({
      ...{ type: 'tap', id: 'lan', ifname: 'tap,1', script: 'no', downscript: 'no', vhost: false },
    });
    expect(
      overRelays(['-netdev', `${TAP},vnet_hdr=off,sndbuf=0,queues=1`, '-netdev', json], socketOf),
    ).toEqual({
      argv: ['-netdev', STREAM, '-netdev', STREAM.replaceAll('net0', 'lan')],
      taps: [
        { netdev: 'net0', tap: 'tap0', socket: '/run/vm/net0.sock' },
        { netdev: 'lan', tap: 'tap,1', socket: '/run/vm/lan.sock' },
      ],
    });
  });

  it('escapes commas in the path', () => {
    const relayed = overRelays(['-netdev', TAP], () => '/run/a,b/net0.sock');
    expect(relayed).toMatchObject({
      argv: ['-netdev', expect.stringContaining('addr.path=/run/a,,b/net0.sock')],
    });
  });

  it('has nothing to do for a VM without a network', () => {
    expect(overRelays(['-m', '1G', '-nic', 'none'], socketOf)).toEqual({
      argv: ['-m', '1G', '-nic', 'none'],
      taps: [],
    });
  });

  it.each([
    ['user,id=net0', /net0: its type is user, not tap/],
    ['bridge,id=net0,br=br0', /type is bridge/],
    [STREAM, /type is stream/],
    ['tap,id=net0,script=no,downscript=no', /names no tap device/],
    ['tap,ifname=tap0,script=no,downscript=no', /has no id/],
    ['tap,id=net0,ifname=tap0,downscript=no', /without script=no/],
    ['tap,id=net0,ifname=tap0,script=no', /without downscript=no/],
    ['tap,id=net0,ifname=tap0,script=/etc/up,downscript=no', /would run a script/],
    [TAP.replace('vhost=off', 'vhost=on'), /vhost=on/],
    [`${TAP},queues=4`, /several queues/],
    [`${TAP},helper=/usr/libexec/qemu-bridge-helper`, /nothing like its helper=/],
    [`${TAP},fd=3`, /nothing like its fd=/],
  ])('refuses %s', (netdev, reason) => {
    expect(refusalOf('-netdev', netdev)).toMatch(reason);
  });

  it('refuses -nic and -net, and a path that no socket can have', () => {
    expect(refusalOf('-nic', 'tap,ifname=tap0')).toMatch(/only -netdev/);
    const long = overRelays(['-netdev', TAP], () => `/${'x'.repeat(103)}`);
    expect(long).toMatchObject({ refused: [{ netdev: 'net0', reason: expect.stringMatching(/103 bytes/) }] });
  });

  it('changes nothing if one cannot be changed', () => {
    expect(refusalOf('-netdev', TAP, '-netdev', 'user,id=net1')).toBe('net1: its type is user, not tap');
  });
});

describe('stream sockets', () => {
  it('finds those that QEMU listens on', () => {
    const json = {
      type: 'stream',
      id: 'lan',
      server: true,
      addr: { type: 'unix', path: 'lan.sock' },
    };
    const argv = [
      ...['-netdev', STREAM, '-netdev', JSON.stringify(json)],
      ...['-netdev', 'stream,id=c,server=off,addr.type=unix,addr.path=/c'],
      ...['-netdev', 'stream,id=i,server=on,addr.type=inet,addr.host=::1,addr.port=1'],
      ...['-netdev', TAP.replace('net0', 'net9')],
    ];
    expect(streamServers(argv)).toEqual([
      { netdev: 'net0', socket: '/run/vm/net0.sock' },
      { netdev: 'lan', socket: 'lan.sock' },
    ]);
  });

  it('moves them for a standby', () => {
    const sockets = new Map([['net0', '/run/standby/net0.sock']]);
    expect(moveSockets(['-netdev', STREAM, ...NIC], sockets)).toEqual([
      '-netdev',
      STREAM.replace('/run/vm', '/run/standby'),
      ...NIC,
    ]);
    expect(() => moveSockets(['-netdev', TAP], sockets)).toThrow(ConfigError);
  });
});
