/** A real nbdkit with the disk server's plugin, and what the tests do to it: clients, control socket, ring. */

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';
import { type ExecResult, execToEnd, LabProcess, type ProcessEnd } from '../lab/process.js';
import { waitFor } from '../lab/wait.js';

export const plugin = join(packageRoot(), 'build/Release/holdfast_disk.so');
export const MiB = 2 ** 20;
export const blockBytes = 64 * 1024;

/** Offsets of native/disk/ring_layout.h and native/disk/disk_map.h. */
const ring = { header: 4096, bytes: 16, head: 64, logging: 76, tail: 128, stopPending: 192 };
const flushesOwed = 200;
const flushesPaid = 208;
const map = { header: 4096, windowBytes: 24, syncId: 40, clean: 76, fault: 80 };
const recordHeaderBytes = 40;
const recordMagic = 0x52444648;

export const flag = { logging: 1, active: 2, fault: 4, stalled: 8, bound: 16 } as const;

export interface RingRecord {
  readonly kind: 'write' | 'zero' | 'trim';
  readonly offset: number;
  readonly length: number;
  readonly data: Buffer;
}

/** What the addon does when it has been told that the log was received up to here: Node has no futex. */
const freePython = `
import ctypes, mmap, struct, sys
with open(sys.argv[1], 'r+b') as file: ring = mmap.mmap(file.fileno(), 4096)
struct.pack_into('<Q', ring, ${ring.tail}, int(sys.argv[2]))
wakes = ctypes.c_uint32.from_buffer(ring, ${ring.tail} + 8)
wakes.value += 1
assert ctypes.CDLL(None).syscall(202, ctypes.byref(wakes), 1, 1 << 30, None, None, 0) >= 0`;

export interface ServerOptions {
  readonly imageMiB?: number;
  readonly ringMiB?: number;
  readonly mode?: 'active' | 'standby';
  /** In place of the sparse file of `imageMiB`. */
  readonly image?: string;
  /** In place of nbdkit: a script that adds filters, as HOLDFAST_NBDKIT is. */
  readonly nbdkit?: string;
  /** A shell's commands before nbdkit, in its mount namespace; then the image is theirs to make. */
  readonly before?: string;
}

export class DiskServerLab implements AsyncDisposable {
  readonly directory = mkdtempSync('/tmp/holdfast-disk-');
  readonly shared = mkdtempSync('/dev/shm/holdfast-disk-');
  readonly image: string;
  readonly ringPath = join(this.shared, 'ring');
  readonly mapPath = join(this.directory, 'meta/map');
  readonly controlPath = join(this.directory, 'control');
  readonly socketPath = join(this.directory, 'socket');
  readonly uri = `nbd+unix:///?socket=${this.socketPath}`;
  readonly #started: { kill(): Promise<unknown> }[] = [];
  #options: ServerOptions = {};
  server!: LabProcess;

  private constructor(image: string | undefined) {
    this.image = image ?? join(this.directory, 'image');
    mkdirSync(join(this.directory, 'meta'));
  }

  static async start(options: ServerOptions = {}): Promise<DiskServerLab> {
    const lab = new DiskServerLab(options.image);
    if (options.image === undefined && options.before === undefined) {
      writeFileSync(lab.image, '');
      truncateSync(lab.image, (options.imageMiB ?? 64) * MiB);
    }
    try {
      await lab.startServer(options);
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
    return lab;
  }

  /** The (next) server over the same files. */
  async startServer(options: ServerOptions = this.#options): Promise<void> {
    this.#options = options;
    rmSync(this.socketPath, { force: true });
    this.server = await this.spawnServer(options);
    await waitFor('the disk server', () => {
      if (!this.server.running) throw new Error(`the disk server ended: ${this.server.stderr}`);
      return existsSync(this.socketPath) && existsSync(this.controlPath);
    });
  }

  /** Without waiting for it. */
  async spawnServer(options: ServerOptions): Promise<LabProcess> {
    const args = [
      ...['--foreground', '--unix', this.socketPath, plugin],
      ...[`image=${this.image}`, `meta=${join(this.directory, 'meta')}`],
      ...[`ring=${this.ringPath}`, `control=${this.controlPath}`],
      ...[`ring-bytes=${options.ringMiB ?? 4}M`, `mode=${options.mode ?? 'active'}`],
    ];
    const server =
      options.before === undefined
        ? await LabProcess.start(options.nbdkit ?? 'nbdkit', args)
        : await LabProcess.start('unshare', [
            ...['--mount', 'sh', '-ec', `${options.before}\nexec nbdkit "$@"`, 'sh', ...args],
          ]);
    this.#started.push(server);
    return server;
  }

  /** qemu-io with these commands, none of them flushed by itself; throws if one of them fails, unless `check` is false. */
  async io(commands: readonly string[], check = true): Promise<string> {
    const { stdout } = await this.#client(
      'qemu-io',
      ['-t', 'writeback', '-f', 'raw', this.uri],
      commands,
      check,
    );
    return stdout;
  }

  async #client(
    command: string,
    args: readonly string[],
    lines: readonly string[],
    check: boolean,
  ): Promise<ExecResult> {
    const result = await execToEnd(command, args, { input: `${lines.join('\n')}\n`, check }, (started) =>
      this.#started.push(started),
    );
    if (check && /failed|error/i.test(result.stdout + result.stderr)) {
      throw new Error(`qemu-io: ${result.stdout}${result.stderr}`);
    }
    return { ...result, stdout: result.stdout + result.stderr };
  }

  async control(): Promise<Control> {
    const control = await Control.connect(this.controlPath);
    this.#started.push({ kill: async () => control.close() });
    return control;
  }

  #ringWord(offset: number): number {
    const bytes = Buffer.alloc(8);
    const file = openSync(this.ringPath, 'r');
    readSync(file, bytes, 0, 8, offset);
    closeSync(file);
    return Number(bytes.readBigUInt64LE());
  }
  get head(): number {
    return this.#ringWord(ring.head);
  }
  get flushesOwed(): number {
    return this.#ringWord(flushesOwed);
  }
  get flushesPaid(): number {
    return this.#ringWord(flushesPaid);
  }
  get stopPending(): boolean {
    return (this.#ringWord(ring.stopPending) & 1) === 1;
  }
  setStopPending(): void {
    const file = openSync(this.ringPath, 'r+');
    writeSync(file, Buffer.of(1, 0, 0, 0), 0, 4, ring.stopPending);
    closeSync(file);
  }

  /** Moves the tail, and wakes who waits for it. */
  async free(tail: number): Promise<void> {
    await execToEnd('python3', ['-c', freePython, this.ringPath, String(tail)]);
  }

  /** The records in [from, head): the circle must not have gone round since. */
  records(from = 0): RingRecord[] {
    const bytes = readFileSync(this.ringPath);
    const size = Number(bytes.readBigUInt64LE(ring.bytes));
    const head = this.head;
    const records: RingRecord[] = [];
    for (let lsn = from; lsn < head; ) {
      // What runs over the circle's end goes on at its beginning.
      const circle = bytes.subarray(ring.header);
      const at = lsn % size;
      const take = (offset: number, length: number) => {
        const start = (at + offset) % size;
        const first = circle.subarray(start, Math.min(start + length, size));
        return Buffer.concat([first, circle.subarray(0, length - first.length)]);
      };
      const header = take(0, recordHeaderBytes);
      if (header.readUInt32LE(0) !== recordMagic || header.readBigUInt64LE(8) !== BigInt(lsn)) {
        throw new Error(`no record at ${lsn}`);
      }
      const kind = (['write', 'zero', 'trim'] as const)[header[4]! - 1]!;
      const offset = Number(header.readBigUInt64LE(16));
      const length = Number(header.readBigUInt64LE(24));
      const data = kind === 'write' ? take(recordHeaderBytes, length) : Buffer.alloc(0);
      records.push({ kind, offset, length, data });
      lsn += recordHeaderBytes + (kind === 'write' ? Math.ceil(length / 8) * 8 : 0);
    }
    return records;
  }

  /** Writes, or zeros, each record's range of `disk`. */
  static replay(records: readonly RingRecord[], disk: Buffer): Buffer {
    for (const record of records) {
      if (record.kind === 'write') record.data.copy(disk, record.offset);
      else disk.fill(0, record.offset, record.offset + record.length);
    }
    return disk;
  }

  readMap(): { marked: number[]; clean: boolean; fault: boolean; syncId: string } {
    const bytes = readFileSync(this.mapPath);
    const windowBytes = Number(bytes.readBigUInt64LE(map.windowBytes));
    const marked: number[] = [];
    for (let block = 0; block < windowBytes * 8; block += 1) {
      const byte = map.header + Math.floor(block / 8);
      if (((bytes[byte]! | bytes[byte + windowBytes]!) >> (block % 8)) & 1) marked.push(block);
    }
    return {
      marked,
      clean: bytes.readUInt32LE(map.clean) === 1,
      fault: bytes.readUInt32LE(map.fault) === 1,
      syncId: bytes.subarray(map.syncId, map.syncId + 16).toString('hex'),
    };
  }

  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<ProcessEnd> {
    return await this.server.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const started of this.#started.reverse()) await started.kill();
    for (const directory of [this.directory, this.shared])
      rmSync(directory, { recursive: true, force: true });
  }
}

const requests = {
  logStart: 1,
  logStop: 2,
  mapRotate: 3,
  mapClear: 4,
  syncIdSet: 5,
  activate: 6,
  bind: 7,
  stats: 8,
} as const;

const statsNames = [
  ...['imageBytes', 'reads', 'readBytes', 'writes', 'writeBytes', 'zeros', 'trims', 'flushes'],
  ...['flushUs', 'flushUsMax', 'stalls', 'stalledUs', 'loggedBytes', 'ringBytes', 'ringUsedBytes'],
  ...['ringUsedBytesPeak', 'markedBlocks', 'errors', 'errnoAndFlags', 'flushesEarly'],
] as const;
const statsBytes = 160;

export type DiskStats = Readonly<Record<(typeof statsNames)[number] | 'lastErrno' | 'flags', number>>;

/** The daemon's end of the control socket, byte by byte. */
export class Control {
  readonly socket: Socket;
  /** Settles when the server has closed it. */
  readonly ended: Promise<unknown>;
  #received: Buffer = Buffer.alloc(0);
  #arrived: (() => void) | undefined;
  hello = 0n;

  private constructor(socket: Socket) {
    this.socket = socket;
    this.ended = once(socket, 'close');
    socket.on('error', () => {});
    socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#arrived?.();
    });
    void this.ended.then(() => this.#arrived?.());
  }

  static async connect(path: string): Promise<Control> {
    const socket = connect(path);
    const control = new Control(socket);
    await once(socket, 'connect');
    const hello = await control.#take(16);
    if (hello.readUInt32LE(0) !== 0x201) throw new Error(`no HELLO: ${hello.toString('hex')}`);
    control.hello = hello.readBigUInt64LE(8);
    return control;
  }

  async #take(bytes: number): Promise<Buffer> {
    while (this.#received.length < bytes) {
      if (this.socket.destroyed) throw new Error('the disk server closed the control socket');
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
      });
    }
    const taken = this.#received.subarray(0, bytes);
    this.#received = this.#received.subarray(bytes);
    return taken;
  }

  static message(type: number, value = 0): Buffer {
    const bytes = Buffer.alloc(16);
    bytes.writeUInt32LE(type, 0);
    bytes.writeBigUInt64LE(BigInt(value), 8);
    return bytes;
  }

  /** The answer's errno and value. */
  async ask(
    request: keyof typeof requests,
    value = 0,
    body: Uint8Array = Buffer.alloc(0),
  ): Promise<{ error: number; value: number }> {
    this.socket.write(Buffer.concat([Control.message(requests[request], value), body]));
    return await this.answer(request);
  }

  async answer(request: keyof typeof requests): Promise<{ error: number; value: number }> {
    const answer = await this.#take(16);
    if (answer.readUInt32LE(0) !== requests[request] + 0x100) {
      throw new Error(`another answer: ${answer.toString('hex')}`);
    }
    return { error: answer.readUInt32LE(4), value: Number(answer.readBigUInt64LE(8)) };
  }

  async stats(): Promise<DiskStats> {
    const { value } = await this.ask('stats');
    if (value !== statsBytes) throw new Error(`${value} bytes of stats`);
    const bytes = await this.#take(statsBytes);
    const words = Object.fromEntries(
      statsNames.map((name, index) => [name, Number(bytes.readBigUInt64LE(8 * index))]),
    );
    const at = 8 * statsNames.indexOf('errnoAndFlags');
    return {
      ...words,
      lastErrno: bytes.readUInt32LE(at),
      flags: bytes.readUInt32LE(at + 4),
    } as DiskStats;
  }

  close(): void {
    this.socket.destroy();
  }
}

/** A loop device over a file, or undefined where the kernel has none to give. */
export const loopDevice = (file: string): { path: string; remove(): void } | undefined => {
  const { status, stdout } = spawnSync('losetup', ['--find', '--show', file], { encoding: 'utf8' });
  if (status !== 0) return undefined;
  const path = stdout.trim();
  return { path, remove: () => spawnSync('losetup', ['--detach', path]) };
};
