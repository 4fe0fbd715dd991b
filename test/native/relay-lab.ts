/** A relay between a QEMU and a network that are sockets of the test. */

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { native, type Relay, type RelayEvent, type RelayOptions } from '../../lib/native.js';
import { RelayControl } from '../../lib/output/relay-control.js';
import { until } from './primary-qemu.js';

/** Behind QEMU's length. */
export const packet = (frame: Uint8Array): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(frame.length);
  return Buffer.concat([length, frame]);
};

/** A frame that says its number in its first four bytes. */
export const numbered = (number: number, bytes: number): Buffer => {
  const frame = Buffer.alloc(Math.max(4, bytes), number & 0xff);
  frame.writeUInt32LE(number);
  return packet(frame);
};

/** Listens at a path; the newest connection is the peer, what it sends is kept. */
export class Peer {
  received: Buffer = Buffer.alloc(0);
  connections = 0;
  socket: Socket | undefined;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket) => {
      this.socket = socket;
      this.connections += 1;
      socket.on('error', () => {});
      socket.on('data', (chunk: Buffer) => {
        this.received = Buffer.concat([this.received, chunk]);
      });
    });
  }

  static async listen(path: string): Promise<Peer> {
    const server = createServer();
    const peer = new Peer(server);
    server.listen(path);
    await once(server, 'listening');
    return peer;
  }

  write(bytes: Buffer): void {
    this.socket!.write(bytes);
  }

  async receives(bytes: number): Promise<void> {
    await until(
      `${bytes} bytes, of which ${this.received.length} have come`,
      () => this.received.length >= bytes,
    );
  }

  async close(): Promise<void> {
    this.socket?.destroy();
    if (!this.#server.listening) return;
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export class RelayLab implements AsyncDisposable {
  readonly directory = mkdtempSync('/tmp/holdfast-relay-');
  readonly events: RelayEvent[] = [];
  qemu!: Peer;
  target!: Peer;
  relay!: Relay;

  static async start(options: Partial<RelayOptions> = {}): Promise<RelayLab> {
    const lab = new RelayLab();
    lab.qemu = await Peer.listen(lab.path('qemu'));
    lab.target = await Peer.listen(lab.path('target'));
    lab.relay = new native.Relay({
      qemuSocket: lab.path('qemu'),
      target: { unix: lab.path('target') },
      controlSocket: lab.path('control'),
      heldBytesMax: 1 << 20,
      qemuSocketBytes: 0,
      hold: true,
      onEvent: (event) => lab.events.push(event),
      ...options,
    });
    await until('the relay to connect', () => lab.qemu.connections > 0 && lab.target.connections > 0);
    return lab;
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  async control(): Promise<RelayControl> {
    return await RelayControl.connect(this.path('control'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.relay.close();
    await this.qemu.close();
    await this.target.close();
    rmSync(this.directory, { recursive: true });
  }
}
