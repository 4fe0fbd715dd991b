/** The bulk connection that is not framed by us, over loopback. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { connectWithToken, descriptorOf, listenForToken } from '../../lib/control/token-stream.js';
import { ConnectError, ProtocolError } from '../../lib/errors.js';

const HOST = '127.0.0.1';
const TOKEN = Buffer.alloc(32, 7);
const TIMEOUT = { timeoutMs: 5_000 };

const cleanUps: (() => unknown)[] = [];
afterEach(() => {
  for (const cleanUp of cleanUps.splice(0).reverse()) cleanUp();
});

const listen = async () => {
  const listener = await listenForToken({ host: HOST, port: 0 }, TOKEN);
  cleanUps.push(() => listener.close());
  return listener;
};

const raw = (port: number): Socket => {
  const socket = connect({ host: HOST, port });
  socket.on('error', () => {});
  cleanUps.push(() => socket.destroy());
  return socket;
};

test('01 whoever shows the token is accepted, and what came with it is not lost', async () => {
  const listener = await listen();
  const far = raw(listener.port);
  // In pieces, and with something behind it.
  far.write(TOKEN.subarray(0, 5));
  await once(far, 'connect');
  far.write(Buffer.concat([TOKEN.subarray(5), Buffer.from('hello')]));
  const near = await listener.accepted;
  cleanUps.push(() => near.destroy());
  expect(descriptorOf(near)).toBeGreaterThan(2);
  near.resume();
  expect(String((await once(near, 'data'))[0])).toBe('hello');
  await expect(connectWithToken({ host: HOST, port: listener.port }, TOKEN, TIMEOUT)).rejects.toThrow(
    ConnectError,
  );
  expect(far.destroyed).toBe(false);
});

test('02 a stranger is closed, and keeps nobody out', async () => {
  const listener = await listen();
  const stranger = raw(listener.port);
  stranger.write(Buffer.alloc(32, 8));
  stranger.resume();
  await once(stranger, 'close');
  const far = await connectWithToken({ host: HOST, port: listener.port }, TOKEN, TIMEOUT);
  cleanUps.push(() => far.destroy());
  const near = await listener.accepted;
  near.destroy();
  expect(() => descriptorOf(near)).toThrow(ProtocolError);
});

test('03 closing ends the wait, and those that have shown nothing', async () => {
  const listener = await listen();
  const silent = raw(listener.port);
  await once(silent, 'connect');
  listener.close();
  listener.close();
  await expect(listener.accepted).rejects.toThrow('the bulk port was closed');
  silent.resume();
  await once(silent, 'close');
});

test('04 a port that is taken is said to be', async () => {
  const { port } = await listen();
  await expect(listenForToken({ host: HOST, port }, TOKEN)).rejects.toThrow(
    `cannot listen on ${HOST}:${port}`,
  );
});
