// Run by exit.test.ts in a process of its own: sets up live engines, then ends
// in the way its first argument names.
//
//   exit-child.mjs SCENARIO main|worker PID HOST_ADDRESS SIZE DIRECTORY

import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import { isMainThread, Worker, workerData } from 'node:worker_threads';

const [scenario, where, pid, address, size, directory] = workerData ?? process.argv.slice(2);
const native = createRequire(import.meta.url)('node-gyp-build')(
  fileURLToPath(new URL('../..', import.meta.url)),
);

const engineFor = () =>
  new native.PrimaryEngine({
    pid: Number(pid),
    ram: { hostAddress: BigInt(address), sizeBytes: Number(size), fileOffset: 0 },
    stagingBytesMax: 16 * 2 ** 20,
    strategy: 'splice',
    copyThreads: 2,
  });

const receiverFor = (onEvent = () => {}) => new native.Receiver({ host: '127.0.0.1', port: 0, onEvent });

const storeFor = () => {
  const metaDir = `${directory}/disk`;
  mkdirSync(metaDir, { recursive: true });
  return new native.DiskStore({
    disks: [{ id: 'a', imagePath: `${metaDir}/image`, metaDir, imageBytes: 2 ** 20, journalBytes: 2 ** 23 }],
    onEvent: () => {},
  });
};

const openSession = async (receiver, token, disks) =>
  await receiver.openSession({
    token,
    disks,
    ramPath: `${directory}/replica`,
    ramBytes: Number(size),
    pageSize: 4096,
    epochBytesMax: Number(size),
    deviceBytesMax: 2 ** 20,
  });

/** Epochs without end; every promise on the way may stay unsettled. */
const runEpochs = async (onEvent) => {
  const token = new Uint8Array(32).fill(7);
  const receiver = receiverFor(onEvent);
  await openSession(receiver, token);
  const engine = engineFor();
  await engine.attach();
  await engine.connect({ host: '127.0.0.1', port: receiver.port, token, timeoutMs: 5000 });
  await engine.baseRound({ first: true });
  writeFileSync(`${directory}/device`, 'device state');
  process.stdout.write('running\n');
  for (let epoch = 1; ; epoch++) {
    // The guest runs all the while, so nothing but staged will do.
    await engine.capture({ epoch, mode: 'staged' });
    await engine.send({ epoch, device: { path: `${directory}/device`, skipBytes: 0 } });
  }
};

/** A peer that accepts and then says nothing. */
const silentPort = async () => {
  const server = createServer(() => {}).listen(0, '127.0.0.1');
  await once(server, 'listening');
  server.unref();
  return server.address().port;
};

const scenarios = {
  // Idle engine and receiver hold nothing back: node ends by itself.
  idle: async () => {
    globalThis.kept = [engineFor(), receiverFor()];
    await globalThis.kept[0].attach();
  },
  // An unsettled connect keeps node alive, until process.exit().
  pending: async () => {
    const engine = engineFor();
    await engine.attach();
    engine.connect({
      host: '127.0.0.1',
      port: await silentPort(),
      token: new Uint8Array(32),
      timeoutMs: 60_000,
    });
    setTimeout(() => process.exit(0), 200);
  },
  // process.exit() somewhere inside an epoch.
  epoch: async () => {
    setTimeout(() => process.exit(0), 300 + Math.random() * 100).unref();
    await runEpochs();
  },
  // The listener throws while epochs run: an ordinary uncaught exception.
  throwing: async () => {
    const expected = new Error('from the listener');
    process.on('uncaughtException', (error) => process.exit(error === expected ? 0 : 9));
    await runEpochs((event) => {
      if (event.type === 'committed' && event.epoch === 5) throw expected;
    });
  },
  // The worker is terminated from outside, in the middle of an epoch.
  terminate: async () => await runEpochs(),
  // A long background call is cut short.
  background: async () => {
    native.compareFiles('/dev/zero', '/dev/zero', 2 ** 45, 4096, 1).catch(() => {});
    setTimeout(() => process.exit(0), 100);
  },
  // An open store and a session that has it: node ends by itself once the session is closed.
  disks: async () => {
    const store = storeFor();
    await store.open();
    const receiver = receiverFor();
    await openSession(receiver, new Uint8Array(32), store);
    globalThis.kept = [store, receiver];
    await receiver.closeSession();
  },
  // Closed in order, everything is back at its start and node ends by itself.
  closed: async () => {
    const engine = engineFor();
    const receiver = receiverFor();
    await engine.attach();
    await openSession(receiver, new Uint8Array(32));
    await receiver.close();
    await engine.detach();
    await engine.close();
    const { threads, engines, descriptors } = native.debugCounters();
    if (threads + engines + descriptors !== 0) process.exit(8);
  },
};

if (where === 'worker' && isMainThread) {
  const worker = new Worker(new URL(import.meta.url), { workerData: process.argv.slice(2), stdout: true });
  if (scenario === 'terminate') {
    await once(worker.stdout, 'data');
    setTimeout(() => void worker.terminate(), 100 + Math.random() * 50);
  }
  const [code] = await once(worker, 'exit');
  const { threads, descriptors } = native.debugCounters();
  if (threads !== 0) process.exit(7);
  if (descriptors !== 0) process.exit(6);
  process.exitCode = scenario === 'terminate' ? 0 : code;
} else {
  await scenarios[scenario]();
}
