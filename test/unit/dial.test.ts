/** A session over a connection that was made before it: its peer may have gone meanwhile, which nobody has read. */
import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type ControlChannel, ControlServer } from '../../lib/control/channel.js';
import type { ControlMessage, SessionMessage } from '../../lib/control/messages.js';
import { PeerLostError } from '../../lib/errors.js';
import { BackupLink } from '../../lib/primary/backup-link.js';
import { Dial } from '../../lib/primary/dial.js';

const KEY = Buffer.from('a key of at least sixteen bytes');
const HOST = '127.0.0.1';

const session: SessionMessage = {
  ...{ type: 'session', vmId: '11111111-2222-4333-8444-555555555555', vmName: 'redis', term: 1 },
  ...{ outputHeld: false, ramBytes: 1 << 20, pageSize: 4096, deviceBytesMax: 1 << 20 },
  ...{ heartbeatIntervalMs: 100, heartbeatTimeoutMs: 10_000 },
  standby: {
    ...{ binary: 'qemu-system-x86_64', qemuVersion: '7.2.0', argv: [], cwd: '/' },
    ...{ machineType: 'pc-q35-7.2', backendId: 'ram0', replacements: [] },
  },
};

describe('a session over a connection that was made ahead', () => {
  let backup: ControlServer;
  let channels: ControlChannel[];
  beforeEach(async () => {
    backup = await ControlServer.listen({ host: HOST, port: 0 }, KEY);
    channels = [];
    backup.on('channel', (channel) => channels.push(channel));
  });
  afterEach(async () => {
    await Promise.all(channels.map((channel) => channel.close()));
    await backup.close();
  });

  const accepted = async (): Promise<ControlChannel> =>
    ((await once(backup, 'channel')) as [ControlChannel])[0];

  const dial = async (): Promise<{ readonly dialled: Dial; readonly there: ControlChannel }> => {
    const accepting = accepted();
    const dialled = new Dial({ host: HOST, port: backup.port }, KEY, 5_000);
    expect(await dialled.reached).toBe(true);
    return { dialled, there: await accepting };
  };

  const open = (dialled?: Dial, asked: Partial<SessionMessage> = {}): Promise<BackupLink> =>
    BackupLink.open({
      ...{ address: { host: HOST, port: backup.port }, key: KEY, dial: dialled },
      session: { ...session, ...asked },
      ...{ connectTimeoutMs: 5_000, signal: AbortSignal.timeout(30_000) },
      ...{ onMessage: () => {}, onLost: () => {} },
    });

  const heardBy = async (channel: ControlChannel): Promise<ControlMessage> => {
    const heard = once(channel, 'message') as Promise<[ControlMessage]>;
    channel.start();
    return (await heard)[0];
  };

  it('goes over that one', async () => {
    const { dialled, there } = await dial();
    const opening = open(dialled);
    expect(await heardBy(there)).toEqual(session);
    there.send({ type: 'session-ready', bulkPort: 7_790 });
    const link = await opening;
    expect(link.bulkPort).toBe(7_790);
    expect(channels).toHaveLength(1);
    await link.close();
  });

  it('goes over another one if its peer has gone', async () => {
    const { dialled, there } = await dial();
    await there.close(); // as a backup that is started anew
    const accepting = accepted();
    const opening = open(dialled);
    const anew = await accepting;
    expect(await heardBy(anew)).toEqual(session);
    anew.send({ type: 'session-ready', bulkPort: 7_791 });
    const link = await opening;
    expect(link.bulkPort).toBe(7_791);
    await link.close();
  });

  it('goes over no third one', async () => {
    const { dialled, there } = await dial();
    await there.close();
    backup.once('channel', (channel: ControlChannel) => void channel.close());
    await expect(open(dialled)).rejects.toThrow(PeerLostError);
    expect(channels).toHaveLength(2);
  });

  it('that asks for a fallback, and is not answered: the peer may know nothing of it', async () => {
    backup.on('channel', (channel: ControlChannel) => void channel.close());
    const fallback = { dir: '/ckpt' };
    await expect(open(undefined, { fallback })).rejects.toMatchObject({
      code: 'HOLDFAST_E_PEER_LOST',
      message: expect.stringMatching(/^control connection: .*, without an answer to --fallback$/),
      cure: expect.stringContaining('upgrade it there, or migrate without --fallback'),
    });
    await expect(open()).rejects.toMatchObject({ message: expect.not.stringContaining('--fallback') });
  });

  it('that is refused says what the refusal says, with a fallback, too', async () => {
    const accepting = accepted();
    const opening = open(undefined, { fallback: { dir: '/ckpt' } });
    const there = await accepting;
    await heardBy(there);
    there.send({
      type: 'session-refused',
      code: 'HOLDFAST_E_UNSUPPORTED',
      message: 'no',
      cure: 'Take another.',
    });
    void there.close();
    await expect(opening).rejects.toMatchObject({ code: 'HOLDFAST_E_UNSUPPORTED', cure: 'Take another.' });
  });

  it('is over when its peer goes after it was heard', async () => {
    const { dialled, there } = await dial();
    const opening = open(dialled);
    expect(await heardBy(there)).toEqual(session);
    there.send({ type: 'heartbeat', sequence: 1 });
    void there.close();
    await expect(opening).rejects.toThrow(PeerLostError);
    expect(channels).toHaveLength(1);
  });
});
