/** A small real QEMU whose RAM file the tests can see and write, and a QMP just big enough for them. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readdirSync, readlinkSync, rmSync, writeSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { native, type RamMapping } from '../../lib/native.js';

export const pageBytes = 4096;

interface QmpReply {
  readonly return?: Record<string, unknown>;
  readonly error?: { readonly desc: string };
}

let serial = 0;

/** Polls until `check` holds; fails after `deadlineMs`. */
export const until = async (what: string, check: () => boolean, deadlineMs = 10_000): Promise<void> => {
  const deadline = performance.now() + deadlineMs;
  while (!check()) {
    if (performance.now() > deadline) throw new Error(`timed out waiting for ${what}`);
    await sleep(5);
  }
};

/** QEMU binds the socket a moment before it listens. */
const connectSoon = async (path: string): Promise<Socket> => {
  const deadline = performance.now() + 10_000;
  for (;;) {
    const socket = connect(path);
    try {
      await once(socket, 'connect');
      return socket;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(10);
    }
  }
};

export class SmallQemu {
  readonly pid: number;
  readonly ramPath: string;
  readonly ram: RamMapping;
  readonly qmpSocket: Socket;
  readonly #directoryFiles: readonly string[];
  readonly #kill: () => Promise<void>;
  readonly #replies: ((reply: QmpReply) => void)[] = [];

  private constructor(
    pid: number,
    ramPath: string,
    ram: RamMapping,
    qmpSocket: Socket,
    files: readonly string[],
    kill: () => Promise<void>,
  ) {
    this.pid = pid;
    this.ramPath = ramPath;
    this.ram = ram;
    this.qmpSocket = qmpSocket;
    this.#directoryFiles = files;
    this.#kill = kill;
    let pending = '';
    qmpSocket.on('data', (chunk: Buffer) => {
      pending += chunk.toString();
      const lines = pending.split('\n');
      pending = lines.pop() ?? '';
      for (const line of lines) {
        const message = JSON.parse(line) as QmpReply;
        if (message.return !== undefined || message.error !== undefined) this.#replies.shift()?.(message);
      }
    });
    qmpSocket.on('error', () => {});
  }

  /** `args`: further ones for QEMU. */
  static async start(ramMiB = 64, args: readonly string[] = []): Promise<SmallQemu> {
    const name = `holdfast-native-${process.pid}-${++serial}`;
    const ramPath = `/dev/shm/${name}`;
    const qmpPath = join(tmpdir(), `${name}.qmp`);
    const child = spawn(
      'qemu-system-x86_64',
      [
        ...['-M', 'q35', '-nodefaults', '-vga', 'none', '-display', 'none', '-accel', 'tcg'],
        ...['-m', String(ramMiB), '-machine', 'memory-backend=ram'],
        ...args,
        ...['-object', `memory-backend-file,id=ram,size=${ramMiB}M,mem-path=${ramPath},share=on`],
        ...['-qmp', `unix:${qmpPath},server=on,wait=off`],
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    const exited = once(child, 'exit');
    const kill = async () => {
      child.kill('SIGKILL');
      await exited;
    };
    try {
      const socket = await connectSoon(qmpPath);
      // The socket is there before the machine is; the greeting comes after it.
      await once(socket, 'readable');
      const [ram] = await native.findRamMappings(child.pid!, ramMiB * 2 ** 20);
      if (ram === undefined) throw new Error('no RAM mapping found');
      const qemu = new SmallQemu(child.pid!, ramPath, ram, socket, [ramPath, qmpPath], kill);
      await qemu.qmp('qmp_capabilities');
      return qemu;
    } catch (error) {
      await kill();
      for (const file of [ramPath, qmpPath]) rmSync(file, { force: true });
      throw error;
    }
  }

  async qmp(execute: string, args: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    this.qmpSocket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    return await this.reply();
  }

  /** The answer to a command that was sent by other means. */
  async reply(): Promise<Record<string, unknown>> {
    const reply = await new Promise<QmpReply>((resolve) => this.#replies.push(resolve));
    if (reply.error !== undefined) throw new Error(reply.error.desc);
    return reply.return ?? {};
  }

  /** Writes into the guest's RAM through QEMU's own address space, as a device would. */
  writePages(pages: Iterable<number>, seed: number): void {
    const memory = openSync(`/proc/${this.pid}/mem`, 'r+');
    try {
      for (const page of pages) {
        const text = Buffer.from(`page ${page} seed ${seed} `);
        const offset = page * pageBytes + (seed % 3000);
        const position = this.ram.hostAddress + BigInt(offset);
        // Addresses fit: user space ends below 2^47.
        writeSync(memory, text, 0, text.length, Number(position));
      }
    } finally {
      closeSync(memory);
    }
  }

  /** Makes pages all zero, by the same way. */
  clearPages(pages: Iterable<number>): void {
    const memory = openSync(`/proc/${this.pid}/mem`, 'r+');
    try {
      const zeros = Buffer.alloc(pageBytes);
      for (const page of pages) {
        writeSync(memory, zeros, 0, pageBytes, Number(this.ram.hostAddress + BigInt(page * pageBytes)));
      }
    } finally {
      closeSync(memory);
    }
  }

  /** How many userfaultfds QEMU has open. */
  userfaults(): number {
    const directory = `/proc/${this.pid}/fd`;
    return readdirSync(directory).filter((fd) => {
      try {
        return readlinkSync(join(directory, fd)) === 'anon_inode:[userfaultfd]';
      } catch {
        return false;
      }
    }).length;
  }

  async kill(): Promise<void> {
    this.qmpSocket.destroy();
    await this.#kill();
    for (const file of this.#directoryFiles) rmSync(file, { force: true });
  }
}
