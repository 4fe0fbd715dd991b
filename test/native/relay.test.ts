/** The relay as JavaScript sees it: between sockets, before a real QEMU, on a real tap, and at its end. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import { RelayControl } from '../../lib/output/relay-control.js';
import { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { SmallQemu, until } from './primary-qemu.js';
import { numbered, Peer, packet, RelayLab } from './relay-lab.js';

const nothing = { threads: 0, engines: 0, descriptors: 0 };
const child = fileURLToPath(new URL('./relay-child.mjs', import.meta.url));

test('01 holds, releases, opens; tells what happens; leaves nothing', async () => {
  {
    await using lab = await RelayLab.start();
    await using control = await lab.control();
    expect(control.holding).toBe(true);
    const output = new Promise<void>((resolve) => control.onOutput(resolve));
    lab.qemu.write(Buffer.concat([numbered(1, 60), numbered(2, 1514)]));
    await output;
    expect(await control.boundary()).toBe(2);
    lab.target.write(numbered(9, 100));
    await lab.qemu.receives(104);
    expect(lab.target.received).toHaveLength(0);
    expect(await control.release()).toBe(2);
    await lab.target.receives(64 + 1518);
    const stats = {
      outFrames: 2,
      outBytes: 1574,
      inFrames: 1,
      inBytes: 100,
      heldFrames: 0,
      heldBytesPeak: 1582,
    };
    expect(await control.stats()).toMatchObject(stats);
    expect(lab.relay.stats()).toMatchObject({
      ...stats,
      holding: true,
      qemuConnected: true,
      targetConnected: true,
    });
    expect(await control.open()).toBe(0);
    lab.qemu.write(numbered(3, 60));
    await lab.target.receives(64 + 1518 + 64);
    lab.qemu.socket!.destroy();
    await until('the relay to connect again', () => lab.qemu.connections === 2);
    await lab.relay.close();
    await lab.relay.close();
    expect(lab.relay.stats()).toMatchObject({ outFrames: 3 });
    expect((await control.closed).code).toBe('HOLDFAST_E_PEER_LOST');
    expect(lab.events).toEqual([
      { type: 'target-found' },
      { type: 'connected' },
      { type: 'controller', connected: true },
      { type: 'disconnected', discardedFrames: 0 },
      { type: 'connected' },
      { type: 'ended' },
    ]);
    expect(existsSync(lab.path('control'))).toBe(false);
  }
  expect(native.debugCounters()).toEqual(nothing);
});

test('02 refuses what cannot work, and says why', async () => {
  await using lab = await RelayLab.start();
  const options = {
    qemuSocket: lab.path('none'),
    target: { unix: lab.path('target') },
    controlSocket: lab.path('other'),
    heldBytesMax: 1 << 20,
    hold: false,
    onEvent: () => {},
  };
  const start = (changed: object) => () => new native.Relay({ ...options, ...changed });
  expect(start({ heldBytesMax: 1000 })).toThrow(expect.objectContaining({ code: 'HOLDFAST_E_LIMIT' }));
  expect(start({ controlSocket: lab.path('control') })).toThrow(
    expect.objectContaining({ errno: constants.errno.EADDRINUSE }),
  );
  expect(start({ controlSocket: lab.path('x'.repeat(200)) })).toThrow(
    expect.objectContaining({ errno: constants.errno.ENAMETOOLONG }),
  );
  expect(start({ target: { tap: 'hf-no-such' } })).toThrow(
    expect.objectContaining({
      errno: constants.errno.ENODEV,
      message: expect.stringContaining('hf-no-such'),
    }),
  );
  expect(start({ target: { tap: 'lo' } })).toThrow(
    expect.objectContaining({ errno: constants.errno.EINVAL }),
  );
  for (const bad of [{ target: {} }, { hold: 1 }, { qemuSocket: undefined }, { heldBytesMax: -1 }]) {
    expect(start(bad)).toThrow(TypeError);
  }
});

test('03 a real QEMU: its frames are held, the relay may come and go, and so may QEMU', async () => {
  const directory = mkdtempSync('/tmp/holdfast-relay-');
  const socket = join(directory, 'qemu');
  const netdev = [
    ...['-netdev', `stream,id=net0,server=on,addr.type=unix,addr.path=${socket}`],
    ...['-device', 'virtio-net-pci,netdev=net0,mac=52:54:00:11:22:33,romfile='],
  ];
  const target = await Peer.listen(join(directory, 'target'));
  const controlSocket = join(directory, 'control');
  const start = async (): Promise<{ relay: InstanceType<typeof native.Relay>; control: RelayControl }> => {
    const relay = new native.Relay({
      qemuSocket: socket,
      target: { unix: join(directory, 'target') },
      controlSocket,
      heldBytesMax: 1 << 20,
      hold: true,
      onEvent: () => {},
    });
    return { relay, control: await RelayControl.connect(controlSocket) };
  };
  // Reverse ARP requests, as after a migration: frames of a guest that has no system.
  const announce = async (qemu: SmallQemu): Promise<void> => {
    await qemu.qmp('announce-self', { initial: 1, max: 1, rounds: 1, step: 1 });
  };
  let { relay, control } = await start();
  let qemu = await SmallQemu.start(32, netdev);
  // The relay is connected before QEMU knows, and QEMU 7.2 does not survive a frame before that.
  const announceUntilHeld = async (): Promise<void> => {
    await waitFor('QEMU to have accepted the relay', async () => {
      const shown = await qemu.qmp('human-monitor-command', { 'command-line': 'info network' });
      return `${shown}`.includes(`type=stream,unix:${socket}`);
    });
    await announce(qemu);
    await until('a frame to be held', () => relay.stats().heldFrames > 0);
  };
  try {
    await announceUntilHeld();
    expect(relay.stats()).toMatchObject({ socketWide: true, outFrames: 0 });
    await control.prepare();
    await qemu.qmp('stop');
    const frames = await control.boundary();
    expect(frames).toBeGreaterThan(0);
    await qemu.qmp('cont');
    expect(target.received).toHaveLength(0);
    expect(await control.release()).toBe(frames);
    await target.receives(64);
    // Broadcast, from the guest's address, type RARP.
    expect(target.received.subarray(4, 18).toString('hex')).toBe('ffffffffffff5254001122338035');

    // Another relay; then another QEMU for it.
    await relay.close();
    await announce(qemu); // dropped by QEMU: its link is down
    ({ relay, control } = await start());
    await announceUntilHeld();
    await qemu.kill();
    await until('QEMU to be gone', () => !relay.stats().qemuConnected);
    expect(relay.stats()).toMatchObject({ heldFrames: 0, discardedFrames: 1 });
    qemu = await SmallQemu.start(32, netdev);
    await announceUntilHeld();
  } finally {
    await control.close();
    await relay.close();
    await qemu.kill();
    await target.close();
    rmSync(directory, { recursive: true });
  }
  expect(native.debugCounters()).toEqual(nothing);
});

test('04 a tap: both directions, a link that is down, a device that is removed and comes back', async () => {
  await using lab = await Lab.create({ tag: 'tap' });
  const host = lab.host('a');
  const qemu = await Peer.listen(lab.path('qemu'));
  const options = {
    qemuSocket: lab.path('qemu'),
    target: { tap: 'tap0' },
    controlSocket: lab.path('control'),
    heldBytesMax: 1 << 20,
    qemuSocketBytes: 0,
    hold: true,
  };
  const relay = await host.spawn(process.execPath, [child, JSON.stringify(options)]);
  const said = async (event: object): Promise<void> => {
    await waitFor(`the relay to say ${JSON.stringify(event)}`, () =>
      relay.stdout.includes(JSON.stringify(event)),
    );
  };
  await said({ type: 'connected' });
  await using control = await RelayControl.connect(options.controlSocket);

  // Who has 10.77.0.1? The bridge that the tap is a port of answers to whoever asks, by address.
  const guest = '525400770010';
  const address = (last: number): string => `0a4d00${last.toString(16).padStart(2, '0')}`;
  const ask = (last: number): void => {
    const frame = `ffffffffffff${guest}08060001080006040001${guest}${address(last)}000000000000${address(1)}`;
    qemu.write(packet(Buffer.from(frame, 'hex')));
  };
  const answered = (last: number): boolean => qemu.received.toString('hex').includes(guest + address(last));
  /** The kernel tells a bridge of a new carrier a moment late. */
  const untilAnswered = async (last: number): Promise<void> => {
    await waitFor(`an answer to ${last}`, async () => {
      ask(last);
      await control.boundary();
      await control.release();
      return answered(last);
    });
  };
  await untilAnswered(20);
  ask(21);
  expect(await control.boundary()).toBe(1);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(answered(21)).toBe(false);
  await control.release();
  await waitFor('the answer after the release', () => answered(21));
  expect((await control.stats()).droppedFrames).toBe(0);

  await host.setLink('tap0', 'down');
  ask(22);
  await control.boundary();
  await control.release();
  await waitFor('the drop', async () => (await control.stats()).droppedFrames === 1);
  expect((await control.stats()).lastDropErrno).toBe(constants.errno.EIO);

  await host.exec('ip', ['link', 'delete', 'tap0']);
  await waitFor('the loss', () => relay.stdout.includes('"target-lost"'));
  ask(23);
  await control.boundary();
  await control.release();
  await waitFor('the drop', async () => (await control.stats()).droppedFrames === 2);
  await host.exec('ip', ['tuntap', 'add', 'dev', 'tap0', 'mode', 'tap']);
  await host.exec('ip', ['link', 'set', 'dev', 'tap0', 'up', 'master', 'br0']);
  await waitFor('the tap to be found', () => relay.stdout.split('"target-found"').length === 3);
  await untilAnswered(24);

  relay.child.stdin.end();
  expect(await relay.exited).toEqual({ code: 0, signal: null });
  expect(relay.stdout).toContain('{"type":"ended"}');
  expect(relay.stderr).toBe('');
  await qemu.close();
});

test.each(['SIGKILL', 'SIGTERM'] as const)(
  '05 a relay ended by %s leaves a path that the next one takes',
  async (signal) => {
    const directory = mkdtempSync('/tmp/holdfast-relay-');
    const options = {
      qemuSocket: join(directory, 'qemu'),
      target: { unix: join(directory, 'target') },
      controlSocket: join(directory, 'control'),
      heldBytesMax: 1 << 20,
      hold: true,
    };
    try {
      for (let round = 0; round < 2; round += 1) {
        const relay = spawn(process.execPath, [child, JSON.stringify(options)], {
          stdio: ['pipe', 'pipe', 'inherit'],
        });
        const exited = once(relay, 'exit');
        await once(relay.stdout, 'data'); // the target's absence, told
        const control = await RelayControl.connect(options.controlSocket);
        relay.kill(signal);
        expect(await exited).toEqual([null, signal]);
        expect((await control.closed).code).toBe('HOLDFAST_E_PEER_LOST');
        await expect(RelayControl.connect(options.controlSocket)).rejects.toMatchObject({
          code: 'HOLDFAST_E_CONNECT',
        });
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
  },
);

test('06 paused, what comes for the guest waits; switched, it goes to the QEMU that has the name now', async () => {
  await using lab = await RelayLab.start({ hold: false });
  await using control = await lab.control();
  await control.pause();
  lab.qemu.write(numbered(1, 60)); // the other way nothing waits
  lab.target.write(Buffer.concat([numbered(2, 60), numbered(3, 60)]));
  await lab.target.receives(64);
  const next = await Peer.listen(lab.path('qemu.new'));
  try {
    renameSync(lab.path('qemu.new'), lab.path('qemu'));
    lab.qemu.write(numbered(4, 60));
    expect(await control.switchQemu()).toBe(true);
    await lab.target.receives(128); // it was emptied
    await until('both frames at the new one', () => next.received.length === 128);
    expect(lab.qemu.received).toHaveLength(0);
    expect(lab.relay.stats()).toMatchObject({ outFrames: 2, inFrames: 2, qemuConnected: true });
    // A pause that nobody ends is over by itself.
    await control.pause();
    lab.target.write(numbered(5, 60));
    await until('the pause to end', () => next.received.length === 192);
    await next.close();
    expect(await control.switchQemu()).toBe(false);
  } finally {
    await next.close();
  }
});
