/**
 * The QEMU guest agent, as far as it is asked here: JSON lines on a Unix socket, one
 * question at a time. Protocol: docs/interop/qemu-ga-ref of QEMU.
 */
import { createConnection, type Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { QmpConnectionError, QmpError } from '../errors.js';

/** An agent that does not answer is not there: QEMU takes what is written all the same. */
const ANSWER_TIMEOUT_MS = 5_000;
const LINE_BYTES_MAX = 32 << 20;
const EARLY_LINES_MAX = 64;
const EXITED_EVERY_MS = 3;

const started = z.object({ pid: z.number() });
const ended = z.object({
  exited: z.boolean(),
  exitcode: z.number().optional(),
  'out-data': z.string().optional(),
});

interface Waiting {
  readonly resolve: (line: string) => void;
  readonly reject: (error: Error) => void;
}

export class GuestAgent {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #decoder = new StringDecoder('utf8');
  #partial = '';
  /** Came before they were waited for: answers to an earlier client. */
  readonly #lines: string[] = [];
  #waiting: Waiting | undefined;
  #failure: Error | undefined;

  private constructor(socket: Socket, path: string) {
    this.#socket = socket;
    this.#path = path;
    socket.on('data', (bytes) => this.#received(bytes));
    socket.on('error', (error) => this.#fail(`the guest agent at ${path}: ${error.message}`));
    socket.on('close', () => this.#fail(`the guest agent at ${path} closed the connection`));
  }

  /** @throws QmpConnectionError if nobody listens, or no agent answers */
  static async connect(path: string): Promise<GuestAgent> {
    const agent = new GuestAgent(createConnection(path), path);
    try {
      // What an earlier client asked may be answered first: our own number ends it.
      const id = Math.floor(Math.random() * 2 ** 31);
      let answer: unknown = await agent.#ask('guest-sync', { id });
      while (answer !== id) answer = await agent.#answer('guest-sync');
    } catch (error) {
      agent.close();
      throw error;
    }
    return agent;
  }

  /** A shell command in the guest: what it printed, whatever its exit code. */
  async run(command: string): Promise<string> {
    const { pid } = started.parse(
      await this.#ask('guest-exec', { path: '/bin/sh', arg: ['-c', command], 'capture-output': true }),
    );
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    for (;;) {
      const status = ended.parse(await this.#ask('guest-exec-status', { pid }));
      if (status.exited) return Buffer.from(status['out-data'] ?? '', 'base64').toString('utf8');
      if (performance.now() > deadline) throw this.#silent(command);
      await delay(EXITED_EVERY_MS);
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  async #ask(execute: string, args: object): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    return await this.#answer(execute);
  }

  async #answer(asked: string): Promise<unknown> {
    const line = await this.#line(asked);
    const answer = JSON.parse(line) as {
      readonly return?: unknown;
      readonly error?: { readonly desc?: string };
    };
    if (answer.error === undefined) return answer.return;
    throw new QmpError(`the guest agent refused ${asked}: ${answer.error.desc ?? 'no reason given'}`, {
      cure: 'Some distributions forbid guest-exec (/etc/sysconfig/qemu-ga, --block-rpcs); --guest-symbols needs no agent.',
      details: { command: asked },
    });
  }

  async #line(asked: string): Promise<string> {
    const early = this.#lines.shift();
    if (early !== undefined) return early;
    if (this.#failure !== undefined) throw this.#failure;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<string>((resolve, reject) => {
        this.#waiting = { resolve, reject };
        timer = setTimeout(() => reject(this.#silent(asked)), ANSWER_TIMEOUT_MS);
      });
    } finally {
      clearTimeout(timer);
      this.#waiting = undefined;
    }
  }

  #received(bytes: Buffer): void {
    // 0xFF is the agent's mark after a reset; it is in no UTF-8.
    this.#partial += this.#decoder.write(bytes.filter((byte) => byte !== 0xff) as Buffer);
    for (let end = this.#partial.indexOf('\n'); end !== -1; end = this.#partial.indexOf('\n')) {
      const line = this.#partial.slice(0, end);
      this.#partial = this.#partial.slice(end + 1);
      if (line.trim() !== '') this.#deliver(line);
    }
    if (this.#partial.length > LINE_BYTES_MAX) {
      this.#fail(`the guest agent at ${this.#path} sent a line without end`);
      this.#socket.destroy();
    }
  }

  #deliver(line: string): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting !== undefined) waiting.resolve(line);
    else if (this.#lines.length < EARLY_LINES_MAX) this.#lines.push(line);
  }

  #silent(asked: string): QmpConnectionError {
    return new QmpConnectionError(
      `the guest agent at ${this.#path} did not answer ${asked} within ${ANSWER_TIMEOUT_MS} ms`,
      { cure: 'Is qemu-guest-agent running in the guest, on the port org.qemu.guest_agent.0?' },
    );
  }

  #fail(message: string): void {
    this.#failure ??= new QmpConnectionError(message, {
      cure: '-chardev socket,id=ga,path=SOCKET,server=on,wait=off -device virtio-serial -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0',
    });
    this.#waiting?.reject(this.#failure);
  }
}
