/**
 * Ends with transfers under way, in the way its first argument names:
 *
 *   transfer-exit-child.js SCENARIO main|worker DIRECTORY
 */
import { once } from 'node:events';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { native } from '../../lib/native.js';
import { openReceiver, type PageReceiver } from '../../lib/transfer/receiver.js';
import { openSender, type PageSender } from '../../lib/transfer/sender.js';

const [scenario, where, directory] = (workerData ?? process.argv.slice(2)) as [string, string, string];
const regionBytes = 8 << 20;

const open = async (): Promise<{ receiver: PageReceiver; sender: PageSender }> => {
  const receiver = await openReceiver({
    listen: { host: '127.0.0.1' },
    file: `${directory}/replica`,
    regionBytes,
  });
  const { port, token } = receiver;
  const to = { host: '127.0.0.1', port, token };
  return { receiver, sender: await openSender({ to, file: `${directory}/region`, regionBytes, streams: 2 }) };
};

/** Transfers without end; every promise on the way may stay unsettled. */
const run = async (onReceived: (id: number) => void): Promise<void> => {
  const { receiver, sender } = await open();
  void (async () => {
    for await (const { id } of receiver) onReceived(id);
  })();
  process.stdout.write('running\n');
  for (;;) await sender.send([{ firstPage: 0, pages: regionBytes / 4096 }]);
};

const scenarios: Readonly<Record<string, () => Promise<void>>> = {
  // Somewhere inside a transfer.
  exit: async () => {
    setTimeout(() => process.exit(0), 100 + Math.random() * 50).unref();
    await run(() => {});
  },
  // The worker is terminated from outside, in the middle of a transfer.
  terminate: async () => await run(() => {}),
  // The consumer's own mistake is an ordinary uncaught exception.
  throwing: async () => {
    const expected = new Error('from the consumer');
    process.on('uncaughtException', (error) => process.exit(error === expected ? 0 : 9));
    await run((id) => {
      if (id === 5) throw expected;
    });
  },
  // A sender that nobody closes does not keep node alive.
  idle: async () => {
    const { receiver, sender } = await open();
    (globalThis as { kept?: unknown }).kept = sender;
    await receiver.close();
  },
};

if (where === 'worker' && isMainThread) {
  const worker = new Worker(new URL(import.meta.url), { workerData: process.argv.slice(2), stdout: true });
  if (scenario === 'terminate') {
    await once(worker.stdout, 'data');
    setTimeout(() => void worker.terminate(), 50 + Math.random() * 50);
  }
  const [code] = await once(worker, 'exit');
  const { threads, descriptors } = native.debugCounters();
  if (threads !== 0) process.exit(7);
  if (descriptors !== 0) process.exit(6);
  process.exitCode = scenario === 'terminate' ? 0 : code;
} else {
  await scenarios[scenario]!();
}
