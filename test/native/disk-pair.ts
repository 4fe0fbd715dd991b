/**
 * A PrimaryEngine and a Receiver in one process, over loopback, with two disks: real disk servers, which
 * NBD clients write to, and the backup's store.
 */

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type CaptureResult,
  type DiskStore,
  type DiskStoreEvent,
  native,
  type PrimaryEngine,
  type Receiver,
  type ReceiverEvent,
  type SendResult,
} from '../../lib/native.js';
import { repositoryRoot } from '../lab/guest.js';
import { pageBytes, type SmallQemu, until } from './primary-qemu.js';

export const diskBytes = 8 * 2 ** 20;
const RING_BYTES = 4 * 2 ** 20;
const JOURNAL_BYTES = 64 * 2 ** 20;
const PLUGIN = join(repositoryRoot(), 'build/Release/holdfast_disk.so');
/** A request of the disk server's control protocol (native/nbdkit/disk_control.h). */
const LOG_START = 1;
const MESSAGE_BYTES = 16;

/** One disk server over an image of its own. */
export class DiskServerProcess {
  readonly id: string;
  readonly imagePath: string;
  readonly ringPath: string;
  readonly metaDir: string;
  readonly socketPath: string;
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #control: Socket;
  #stderr = '';

  private constructor(id: string, dir: string, process: ChildProcessWithoutNullStreams, control: Socket) {
    this.id = id;
    this.imagePath = join(dir, `${id}.img`);
    this.ringPath = join(dir, `${id}.ring`);
    this.metaDir = join(dir, `${id}.meta`);
    this.socketPath = join(dir, `${id}.sock`);
    this.#process = process;
    this.#control = control;
    process.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
  }

  static async start(dir: string, id: string): Promise<DiskServerProcess> {
    const path = (suffix: string): string => join(dir, `${id}.${suffix}`);
    writeFileSync(path('img'), '');
    truncateSync(path('img'), diskBytes);
    mkdirSync(path('meta'));
    const child = spawn('nbdkit', [
      ...['--foreground', '--unix', path('sock'), PLUGIN],
      ...[`image=${path('img')}`, `meta=${path('meta')}`, `ring=${path('ring')}`],
      ...[`control=${path('control')}`, `ring-bytes=${RING_BYTES}`],
    ]);
    // nbdkit makes its own socket last.
    await until(`disk server ${id}`, () => existsSync(path('sock')) || child.exitCode !== null);
    const control = connect(path('control'));
    await once(control, 'data'); // HELLO
    return new DiskServerProcess(id, dir, child, control);
  }

  async startLog(): Promise<void> {
    const request = Buffer.alloc(MESSAGE_BYTES);
    request.writeUInt32LE(LOG_START, 0);
    this.#control.write(request);
    const [answer] = (await once(this.#control, 'data')) as [Buffer];
    if (answer.length !== MESSAGE_BYTES || answer.readUInt32LE(4) !== 0) {
      throw new Error(`disk server ${this.id} refused to log: ${this.#stderr}`);
    }
  }

  async end(): Promise<void> {
    const exited = once(this.#process, 'exit');
    this.#control.destroy();
    this.#process.kill('SIGTERM');
    await exited;
  }
}

const PROMPT = 'qemu-io> ';
const ANSWER_MS_MAX = 20_000;

/** An NBD client, qemu-io, of its own process, with many requests under way. */
export class NbdWriter {
  readonly #process: ChildProcessWithoutNullStreams;
  #said = '';
  #onSaid: () => void = () => {};

  constructor(server: DiskServerProcess) {
    // What the disk is asked to do must be what it gets: no cache, no detection of zeros.
    const image = `driver=nbd,server.type=unix,server.path=${server.socketPath},discard=unmap,detect-zeroes=off`;
    const qemuIo = ['qemu-io', '--cache=none', '--discard=unmap', '--image-opts', image];
    // Into a pipe it would keep its answers to itself.
    this.#process = spawn('stdbuf', ['-oL', ...qemuIo]);
    const listen = (text: string): void => {
      this.#said += text;
      this.#onSaid();
    };
    this.#process.stdout.setEncoding('utf8').on('data', listen);
    this.#process.stderr.setEncoding('utf8').on('data', listen);
    this.#process.on('exit', () => listen(' (it ended)'));
  }

  /** Begins these commands of qemu-io's; settles when all of them are done. */
  async run(commands: readonly string[]): Promise<void> {
    // One line at a time: of several that come at once it takes the first, and the others with the next.
    for (const command of [...commands, 'aio_flush']) {
      await this.#prompt();
      this.#said = '';
      this.#process.stdin.write(`${command}\n`);
    }
    await this.#prompt();
  }

  /** qemu-io is ready for a command, and had nothing to complain of: quiet commands say nothing else. */
  async #prompt(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no answer from qemu-io; it said: ${this.#said}`)),
        ANSWER_MS_MAX,
      );
      this.#onSaid = () => {
        if (PROMPT.startsWith(this.#said) && this.#said !== PROMPT) return;
        clearTimeout(timer);
        if (this.#said === PROMPT) resolve();
        else reject(new Error(`qemu-io: ${this.#said}`));
      };
      this.#onSaid();
    });
  }

  async end(): Promise<void> {
    const exited = once(this.#process, 'exit');
    this.#onSaid = () => {};
    this.#process.stdin.end('quit\n');
    await exited;
  }
}

export class DiskPair {
  readonly engine: PrimaryEngine;
  readonly receiver: Receiver;
  readonly servers: readonly DiskServerProcess[];
  readonly store: DiskStore;
  readonly #qemu: SmallQemu;
  readonly #dir: string;
  readonly #events: ReceiverEvent[] = [];
  readonly #diskEvents: DiskStoreEvent[] = [];

  private constructor(qemu: SmallQemu, dir: string, servers: readonly DiskServerProcess[]) {
    this.#qemu = qemu;
    this.#dir = dir;
    this.servers = servers;
    this.engine = new native.PrimaryEngine({
      pid: qemu.pid,
      ram: qemu.ram,
      stagingBytesMax: 64 * 2 ** 20,
      strategy: 'copy',
      copyThreads: 1,
      disks: servers.map(({ id, ringPath, metaDir, imagePath }) => ({
        ...{ id, ringPath, imagePath },
        mapPath: join(metaDir, 'map'),
        imageBytes: diskBytes,
      })),
    });
    this.receiver = new native.Receiver({
      host: '127.0.0.1',
      port: 0,
      onEvent: (event) => this.#events.push(event),
    });
    this.store = new native.DiskStore({
      disks: servers.map(({ id }) => ({
        id,
        imagePath: this.replicaPath(id),
        metaDir: join(dir, `${id}.replica-meta`),
        imageBytes: diskBytes,
        journalBytes: JOURNAL_BYTES,
      })),
      onEvent: (event) => this.#diskEvents.push(event),
    });
    for (const { id } of servers) mkdirSync(join(dir, `${id}.replica-meta`));
    writeFileSync(this.#devicePath, 'skipped.device state');
  }

  /** Two disks. The VM must be stopped. */
  static async start(qemu: SmallQemu): Promise<DiskPair> {
    const dir = mkdtempSync(join(tmpdir(), 'holdfast-disk-pair-'));
    const servers = await Promise.all(['disk0', 'disk1'].map((id) => DiskServerProcess.start(dir, id)));
    return new DiskPair(qemu, dir, servers);
  }

  /** Opens a session, switches the logs on, and copies the disks and RAM. */
  async connect(): Promise<void> {
    const token = randomBytes(32);
    await this.store.open();
    await this.receiver.openSession({
      token,
      ramPath: join(this.#dir, 'ram'),
      ramBytes: this.#qemu.ram.sizeBytes,
      pageSize: pageBytes,
      epochBytesMax: this.#qemu.ram.sizeBytes,
      deviceBytesMax: 2 ** 20,
      disks: this.store,
    });
    await this.engine.attach();
    await this.engine.connect({ host: '127.0.0.1', port: this.receiver.port, token, timeoutMs: 5000 });
    await this.engine.connectDisks();
    for (const server of this.servers) await server.startLog();
    await this.engine.syncDisks({
      plans: this.servers.map(({ id }) => ({ id, what: 'all' })),
      syncId: randomBytes(16).toString('hex'),
    });
    await this.engine.baseRound({ first: true });
    await this.engine.baseRound({ first: false });
  }

  /** The boundary: what has been logged so far belongs to the epoch. Writers must be quiet. */
  async capture(epoch: number): Promise<CaptureResult> {
    return await this.engine.capture({ epoch, mode: 'staged' });
  }

  /** Settles when the backup has acknowledged it. */
  async send(epoch: number): Promise<SendResult> {
    return await this.engine.send({ epoch, device: { path: this.#devicePath, skipBytes: 8 } });
  }

  /** Copies the primary's images, as they are now. */
  snapshot(): void {
    for (const { id, imagePath } of this.servers) copyFileSync(imagePath, this.#snapshotPath(id));
  }

  async applied(epoch: number): Promise<void> {
    await until(`epoch ${epoch} in the images`, () =>
      this.#diskEvents.some((event) => event.type === 'applied' && event.epoch >= epoch),
    );
  }

  /** 4 KiB blocks in which a replica differs from the snapshot of its disk: `disk0:17`. */
  async differences(): Promise<readonly string[]> {
    const found = await Promise.all(
      this.servers.map(async ({ id }) => {
        const paths = [this.#snapshotPath(id), this.replicaPath(id)] as const;
        const blocks = await native.compareFiles(...paths, diskBytes, pageBytes, 10);
        return blocks.map((block) => `${id}:${block}`);
      }),
    );
    return found.flat();
  }

  replicaPath(id: string): string {
    return join(this.#dir, `${id}.replica`);
  }

  async close(): Promise<void> {
    await this.engine.detach();
    await this.engine.close();
    await this.receiver.close();
    await this.store.close();
    for (const server of this.servers) await server.end();
    rmSync(this.#dir, { recursive: true, force: true });
  }

  #snapshotPath(id: string): string {
    return join(this.#dir, `${id}.snapshot`);
  }

  get #devicePath(): string {
    return join(this.#dir, 'device');
  }
}
