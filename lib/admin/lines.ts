/** Newline-separated text out of chunks, with a limit on the length of a line. */
import { ProtocolError } from '../errors.js';

export class LineDecoder {
  readonly #bytesMax: number;
  #pending: Buffer = Buffer.alloc(0);

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /**
   * Adds received bytes and returns the lines they complete, without newline.
   * @throws ProtocolError as soon as a line is over the limit, complete or not.
   */
  push(chunk: Uint8Array): string[] {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk]);
    const lines: string[] = [];
    for (;;) {
      const end = this.#pending.indexOf(0x0a);
      if ((end === -1 ? this.#pending.length : end) > this.#bytesMax) {
        throw new ProtocolError(`a line is over the limit of ${this.#bytesMax} bytes`);
      }
      if (end === -1) return lines;
      lines.push(this.#pending.toString('utf8', 0, end));
      this.#pending = this.#pending.subarray(end + 1);
    }
  }
}
