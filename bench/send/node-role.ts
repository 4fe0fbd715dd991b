/**
 * What a Node developer would write without Holdfast, as two processes: the
 * client reads the runs from the file into Buffers and gives them to
 * `socket.write`, waiting for 'drain' when told so; the server counts what
 * arrives and answers one byte when it has all. It neither verifies nor keeps
 * the bytes, which spares it work that Holdfast's receiver does.
 *
 *   node node-role.js server HOST
 *   node node-role.js client HOST PORT FILE REGION_PAGES
 */
import { once } from 'node:events';
import { readSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import type { NodeCommand, NodeSentMessage } from './protocol.js';
import { pageBytes } from './region.js';
import { scatter } from './scatter.js';

const LENGTH_BYTES = 8;
/** Small buffers given to one writev(2), in the variant that reads synchronously. */
const CORKED_BYTES_MAX = 512 * 1024;

const say = (value: object): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

const cpuMs = (since: NodeJS.CpuUsage): number => {
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1e3;
};

const serve = (socket: Socket): void => {
  socket.setNoDelay(true);
  let leftBytes = 0;
  let began = process.cpuUsage();
  socket.on('data', (chunk: Buffer) => {
    let bytes = chunk.length;
    if (leftBytes === 0) {
      // The client waits for the answer before it sends the next: a length begins a chunk.
      leftBytes = Number(chunk.readBigUInt64LE());
      bytes -= LENGTH_BYTES;
    }
    leftBytes -= bytes;
    if (leftBytes > 0) return;
    socket.write(Uint8Array.of(1));
    say({ event: 'received', processCpuMs: cpuMs(began) });
    began = process.cpuUsage();
  });
};

const runServer = async (host: string): Promise<void> => {
  const server = createServer(serve).listen(0, host);
  await once(server, 'listening');
  say({ event: 'listening', port: (server.address() as AddressInfo).port });
};

const runClient = async (host: string, port: number, path: string, regionPages: number): Promise<void> => {
  const file = await open(path, 'r');
  const socket = connect({ host, port, noDelay: true });
  await once(socket, 'connect');

  const written = async (bytes: Uint8Array): Promise<void> => {
    if (!socket.write(bytes)) await once(socket, 'drain');
  };

  /** `await fs.read`, then `socket.write`, a run at a time. */
  const writeAwaited = async (runs: Uint32Array): Promise<void> => {
    for (let at = 0; at < runs.length; at += 2) {
      const bytes = runs[at + 1]! * pageBytes;
      const { buffer } = await file.read(Buffer.allocUnsafe(bytes), 0, bytes, runs[at]! * pageBytes);
      await written(buffer);
    }
  };

  /** The same by someone who has measured: synchronous reads, many Buffers to a writev(2). */
  const writeSync = async (runs: Uint32Array): Promise<void> => {
    let at = 0;
    while (at < runs.length) {
      socket.cork();
      let room = true;
      for (let bytes = 0; at < runs.length && bytes < CORKED_BYTES_MAX; at += 2) {
        const buffer = Buffer.allocUnsafe(runs[at + 1]! * pageBytes);
        readSync(file.fd, buffer, 0, buffer.length, runs[at]! * pageBytes);
        room = socket.write(buffer);
        bytes += buffer.length;
      }
      socket.uncork();
      if (!room) await once(socket, 'drain');
    }
  };

  const send = async (command: NodeCommand): Promise<NodeSentMessage> => {
    const runs = scatter(regionPages, command);
    const answered = once(socket, 'data');
    const began = process.cpuUsage();
    const beganMs = performance.now();
    const length = Buffer.alloc(LENGTH_BYTES);
    length.writeBigUInt64LE(BigInt(command.pages * pageBytes));
    await written(length);
    await (command.reads === 'sync' ? writeSync(runs) : writeAwaited(runs));
    // Calls back after what was written before it; 'drain' comes only to a buffer that was full.
    if (socket.writableLength > 0) {
      await new Promise<unknown>((resolve) => socket.write(Buffer.alloc(0), resolve));
    }
    const sendMs = performance.now() - beganMs;
    await answered;
    return { event: 'sent', sendMs, ackMs: performance.now() - beganMs, processCpuMs: cpuMs(began) };
  };

  say({ event: 'connected' });
  for await (const line of createInterface({ input: process.stdin })) {
    say(await send(JSON.parse(line) as NodeCommand));
  }
};

const [role, host = '', port = '', path = '', regionPages = ''] = process.argv.slice(2);
const run = role === 'server' ? runServer(host) : runClient(host, Number(port), path, Number(regionPages));
run.catch((error: Error) => {
  say({ event: 'error', message: error.message });
  process.exit(1);
});
