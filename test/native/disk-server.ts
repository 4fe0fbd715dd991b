/** nbdkit with Holdfast's plugin over an image of a test's own, and just enough of its control socket. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { PrimaryDisk } from '../../lib/native.js';
import { packageRoot } from '../../lib/package-root.js';
import { until } from './primary-qemu.js';

const run = promisify(execFile);
const messageBytes = 16;

/** Request types of native/nbdkit/disk_control.h. */
export const diskRequests = { logStart: 1, logStop: 2, mapClear: 4, syncIdSet: 5 } as const;

export class DiskServer {
  readonly disk: PrimaryDisk;
  readonly #directory: string;
  readonly #process: ChildProcess;
  readonly #exited: Promise<unknown>;
  #control: Socket | undefined;

  private constructor(directory: string, disk: PrimaryDisk, process: ChildProcess) {
    this.#directory = directory;
    this.disk = disk;
    this.#process = process;
    this.#exited = once(process, 'exit');
  }

  /** A sparse image of so many bytes. */
  static async start(id: string, imageBytes: number): Promise<DiskServer> {
    const directory = mkdtempSync(join(tmpdir(), 'holdfast-disk-'));
    const file = (name: string): string => join(directory, name);
    mkdirSync(file('meta'));
    writeFileSync(file('image'), '');
    truncateSync(file('image'), imageBytes);
    const process = spawn(
      'nbdkit',
      [
        ...['--foreground', '--exit-with-parent', '--unix', file('nbd')],
        join(packageRoot(), 'build/Release/holdfast_disk.so'),
        ...[`image=${file('image')}`, `meta=${file('meta')}`, `ring=${file('ring')}`],
        ...[`control=${file('control')}`, 'ring-bytes=4M'],
      ],
      { stdio: 'ignore' },
    );
    const disk = {
      ...{ id, imageBytes, imagePath: file('image') },
      ...{ mapPath: file('meta/map'), ringPath: file('ring') },
    };
    const server = new DiskServer(directory, disk, process);
    try {
      await until('the disk server', () => existsSync(file('nbd')) && existsSync(file('control')));
      server.#control = connect(file('control'));
      await once(server.#control, 'connect');
      await server.#answer();
      return server;
    } catch (error) {
      await server.close();
      throw error;
    }
  }

  async #answer(): Promise<Buffer> {
    for (;;) {
      const message = this.#control?.read(messageBytes) as Buffer | null;
      if (message !== null) return message;
      await once(this.#control!, 'readable');
    }
  }

  /** The answer's value. */
  async request(type: number, body = Buffer.alloc(0)): Promise<bigint> {
    const message = Buffer.alloc(messageBytes);
    message.writeUInt32LE(type, 0);
    this.#control?.write(Buffer.concat([message, body]));
    const answer = await this.#answer();
    const error = answer.readUInt32LE(4);
    if (answer.readUInt32LE(0) !== (type | 0x100) || error !== 0) {
      throw new Error(`request ${type} was answered with ${answer.toString('hex')}`);
    }
    return answer.readBigUInt64LE(8);
  }

  /** What both hosts have now goes by this name, and no block is marked. */
  async remember(syncId: string): Promise<void> {
    await this.request(diskRequests.syncIdSet, Buffer.from(syncId, 'hex'));
    await this.request(diskRequests.mapClear);
  }

  /** Runs qemu-io commands on it, as QEMU would: over NBD. */
  async io(...commands: readonly string[]): Promise<void> {
    const uri = `nbd+unix:///?socket=${join(this.#directory, 'nbd')}`;
    await run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  }

  async close(): Promise<void> {
    this.#control?.destroy();
    this.#process.kill('SIGTERM');
    await this.#exited;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
