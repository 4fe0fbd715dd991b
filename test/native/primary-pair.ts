/** A PrimaryEngine and a Receiver in one process, over loopback. */

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { rmSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type CaptureResult,
  type DiskStore,
  type NativeCaptureMode,
  native,
  type PrimaryDisk,
  type PrimaryEngine,
  type Receiver,
  type ReceiverEvent,
  type SenderStrategy,
  type SendResult,
} from '../../lib/native.js';
import { pageBytes, type SmallQemu, until } from './primary-qemu.js';

let serial = 0;

export interface PairOptions {
  readonly strategy?: SenderStrategy;
  readonly stagingBytesMax?: number;
  readonly streams?: number;
  readonly verify?: boolean;
  readonly disks?: readonly PrimaryDisk[];
  readonly store?: DiskStore;
  /** What the connections go through: given the receiver's port, the port to connect to. */
  readonly through?: (port: number) => Promise<number>;
}

export class Pair {
  readonly qemu: SmallQemu;
  readonly engine: PrimaryEngine;
  readonly receiver: Receiver;
  readonly events: ReceiverEvent[] = [];
  readonly replicaPath: string;
  readonly devicePath: string;
  readonly #options: PairOptions;

  constructor(qemu: SmallQemu, options: PairOptions = {}) {
    const name = `holdfast-pair-${process.pid}-${++serial}`;
    this.qemu = qemu;
    this.#options = options;
    this.replicaPath = `/dev/shm/${name}-replica`;
    this.devicePath = join(tmpdir(), `${name}-device`);
    this.engine = new native.PrimaryEngine({
      pid: qemu.pid,
      ram: qemu.ram,
      stagingBytesMax: options.stagingBytesMax ?? 64 * 2 ** 20,
      strategy: options.strategy ?? 'copy',
      copyThreads: 2,
      disks: options.disks,
    });
    this.receiver = new native.Receiver({
      host: '127.0.0.1',
      port: 0,
      onEvent: (event) => this.events.push(event),
    });
    writeFileSync(this.devicePath, 'skipped.device state');
  }

  /** Opens a session, connects, and sends the base until nothing is left. The VM must be stopped. */
  async connect(): Promise<void> {
    await this.dial();
    await this.engine.baseRound({ first: true });
    await this.engine.baseRound({ first: false });
  }

  /** Opens a session and connects. */
  async dial(): Promise<void> {
    const token = randomBytes(32);
    await this.receiver.openSession({
      token,
      ramPath: this.replicaPath,
      ramBytes: this.qemu.ram.sizeBytes,
      pageSize: pageBytes,
      epochBytesMax: this.qemu.ram.sizeBytes,
      deviceBytesMax: 2 ** 20,
      disks: this.#options.store,
    });
    const { streams, verify, through } = this.#options;
    const { port } = this.receiver;
    await this.engine.connect({
      host: '127.0.0.1',
      port: through === undefined ? port : await through(port),
      token,
      timeoutMs: 5000,
      streams,
      verify,
    });
  }

  async send(epoch: number, strategy?: SenderStrategy): Promise<SendResult> {
    return await this.engine.send({ epoch, device: { path: this.devicePath, skipBytes: 8 }, strategy });
  }

  async epoch(
    epoch: number,
    mode: NativeCaptureMode,
    strategy?: SenderStrategy,
  ): Promise<CaptureResult & SendResult> {
    const captured = await this.engine.capture({ epoch, mode });
    return { ...captured, ...(await this.send(epoch, strategy)) };
  }

  async applied(epoch: number): Promise<void> {
    await until(`epoch ${epoch} in the replica`, () =>
      this.events.some((event) => event.type === 'applied' && event.epoch === epoch),
    );
  }

  /** What the standby would be given; after the fence. */
  async writtenState(): Promise<Buffer> {
    const path = `${this.devicePath}-standby`;
    const parts: Buffer[] = [];
    const server = createServer((socket) => socket.on('data', (part) => parts.push(part))).listen(path);
    const [[socket]] = await Promise.all([once(server, 'connection'), this.receiver.writeState(path)]);
    if (!(socket as Socket).closed) await once(socket as Socket, 'close');
    server.close();
    return Buffer.concat(parts);
  }

  /** Pages in which guest RAM and replica differ. */
  async differences(): Promise<readonly number[]> {
    const { ramPath, ram } = this.qemu;
    return await native.compareFiles(ramPath, this.replicaPath, ram.sizeBytes, pageBytes, 10);
  }

  async close(): Promise<void> {
    // One that was closed by the test: QEMU will end as it is.
    await this.engine.detach().catch(() => {});
    await this.engine.close();
    await this.receiver.close();
    rmSync(this.replicaPath, { force: true });
    rmSync(this.devicePath, { force: true });
  }
}
