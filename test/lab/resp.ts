/** A Redis connection in a few lines: RESP2, replies in the order of the requests, no reconnection. */

import { connect, type Socket } from 'node:net';

export type Reply = string | number | null | RespError | readonly Reply[];

/** An error that the server answered with (`-ERR …`): a reply, not a failure of the connection. */
export class RespError extends Error {}

const bulkBytesMax = 1 << 20;
const elementsMax = 1 << 16;

/** One reply at `offset`, and where it ends; undefined if it is not complete. Throws on what is not RESP. */
export const parseReply = (
  data: Buffer,
  offset: number,
): { readonly reply: Reply; readonly end: number } | undefined => {
  const lineEnd = data.indexOf('\r\n', offset);
  if (lineEnd < 0) return undefined;
  const text = data.toString('utf8', offset + 1, lineEnd);
  const end = lineEnd + 2;
  const number = (min: number, max: number): number => {
    const value = Number(text);
    if (text === '' || !Number.isSafeInteger(value) || value < min || value > max) {
      throw new Error(`not a RESP number: ${text}`);
    }
    return value;
  };
  switch (String.fromCharCode(data[offset]!)) {
    case '+':
      return { reply: text, end };
    case '-':
      return { reply: new RespError(text), end };
    case ':':
      return { reply: number(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER), end };
    case '$': {
      const length = number(-1, bulkBytesMax);
      if (length < 0) return { reply: null, end };
      if (data.length < end + length + 2) return undefined;
      return { reply: data.toString('utf8', end, end + length), end: end + length + 2 };
    }
    case '*': {
      const count = number(-1, elementsMax);
      if (count < 0) return { reply: null, end };
      const elements: Reply[] = [];
      let at = end;
      while (elements.length < count) {
        const element = parseReply(data, at);
        if (element === undefined) return undefined;
        elements.push(element.reply);
        at = element.end;
      }
      return { reply: elements, end: at };
    }
    default:
      throw new Error(`not RESP: ${JSON.stringify(data.toString('latin1', offset, offset + 20))}`);
  }
};

export const encodeCommand = (args: readonly string[]): string =>
  `*${args.length}\r\n${args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`).join('')}`;

interface Waiting {
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

export class RespConnection {
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  #received: Buffer = Buffer.alloc(0);
  #broken: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#break(error));
    socket.on('close', () => this.#break(new Error('the server closed the connection')));
  }

  static connect(host: string, port: number, timeoutMs: number): Promise<RespConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect({ host, port, noDelay: true });
      const timer = setTimeout(
        () => socket.destroy(new Error(`no connection to ${host}:${port} within ${timeoutMs} ms`)),
        timeoutMs,
      );
      const failed = (error: Error): void => {
        clearTimeout(timer);
        reject(error);
      };
      socket.once('error', failed);
      socket.once('connect', () => {
        clearTimeout(timer);
        socket.off('error', failed);
        resolve(new RespConnection(socket));
      });
    });
  }

  /** Why the connection no longer works; undefined while it does. */
  get broken(): Error | undefined {
    return this.#broken;
  }

  /** Sends a command and resolves with its reply, however long that takes; rejects when the connection breaks. */
  send(...args: readonly string[]): Promise<Reply> {
    if (this.#broken !== undefined) return Promise.reject(this.#broken);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#socket.write(encodeCommand(args));
    });
  }

  /** Gives the connection up: what waits for a reply is rejected with `reason`. */
  destroy(reason = new Error('closed by this side')): void {
    this.#break(reason);
  }

  #receive(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    let at = 0;
    try {
      while (at < this.#received.length) {
        const parsed = parseReply(this.#received, at);
        if (parsed === undefined) break;
        at = parsed.end;
        const waiting = this.#waiting.shift();
        if (waiting === undefined) throw new Error('a reply that no command asked for');
        waiting.resolve(parsed.reply);
      }
    } catch (error) {
      this.#break(error as Error);
    }
    this.#received = this.#received.subarray(at);
  }

  #break(error: Error): void {
    if (this.#broken !== undefined) return;
    this.#broken = error;
    this.#socket.destroy();
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
