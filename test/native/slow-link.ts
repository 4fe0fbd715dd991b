/** A link in front of a receiver that carries only so much, so that a test has time to write what is still to be sent. */

import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Of one connection, before others have their turn. */
const PORTION_MS = 2;

export class SlowLink implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets: Socket[] = [];
  #allowance: number;
  #perMs = 0;
  #refilledMs = performance.now();

  private constructor(target: number, allowance: number) {
    this.#allowance = allowance;
    this.#server = createServer((near) => {
      const far = connect(target, '127.0.0.1');
      far.pipe(near);
      for (const socket of [near, far]) {
        socket.on('error', () => {});
        this.#sockets.push(socket);
      }
      void this.#carry(near, far);
    });
  }

  /** To a port of this host; it carries so many bytes, in all connections together, until it is told to go on. */
  static async to(target: number, bytes: number): Promise<SlowLink> {
    const link = new SlowLink(target, bytes);
    link.#server.listen(0, '127.0.0.1');
    await once(link.#server, 'listening');
    return link;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** It has carried what it was to carry. */
  get stalled(): boolean {
    return this.#allowance <= 0 && this.#perMs === 0;
  }

  goOn(bytesPerMs = Number.POSITIVE_INFINITY): void {
    this.#refilledMs = performance.now();
    this.#perMs = bytesPerMs;
  }

  async #carry(near: Socket, far: Socket): Promise<void> {
    try {
      for await (const chunk of near as AsyncIterable<Buffer>) {
        while (!this.#takes(chunk.length)) await sleep(PORTION_MS);
        far.write(chunk);
      }
      far.end();
    } catch {
      far.destroy();
    }
  }

  #takes(bytes: number): boolean {
    if (this.#perMs === Number.POSITIVE_INFINITY) return true;
    const nowMs = performance.now();
    // What it did not carry in a while is not saved up.
    const refill = Math.min(nowMs - this.#refilledMs, 2 * PORTION_MS) * this.#perMs;
    if (this.#perMs > 0) this.#allowance = Math.min(this.#allowance + refill, 4 * PORTION_MS * this.#perMs);
    this.#refilledMs = nowMs;
    if (this.#allowance <= 0) return false;
    this.#allowance -= bytes;
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}
