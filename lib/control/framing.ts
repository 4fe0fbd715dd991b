/**
 * Control frames: a 4-byte big-endian length, then that many bytes. Pure; the
 * decoder accepts any split of the stream and refuses a frame over the limit
 * before it buffers it.
 */
import { ProtocolError } from '../errors.js';

/** A frame's largest body. A QEMU command line and a status fit many times over. */
export const CONTROL_FRAME_BYTES_MAX = 1 << 20;

export const encodeFrame = (body: Uint8Array): Buffer => {
  if (body.length > CONTROL_FRAME_BYTES_MAX) {
    throw new ProtocolError(
      `control frame of ${body.length} bytes is over the limit of ${CONTROL_FRAME_BYTES_MAX}`,
    );
  }
  const frame = Buffer.allocUnsafe(4 + body.length);
  frame.writeUInt32BE(body.length, 0);
  frame.set(body, 4);
  return frame;
};

export class FrameDecoder {
  #pending: Buffer = Buffer.alloc(0);
  #bodyBytesMax: number;

  /** @param bodyBytesMax a smaller limit, for peers that have proved nothing yet. */
  constructor(bodyBytesMax = CONTROL_FRAME_BYTES_MAX) {
    this.#bodyBytesMax = bodyBytesMax;
  }

  /** The full limit from here on: the peer is authenticated. */
  liftLimit(): void {
    this.#bodyBytesMax = CONTROL_FRAME_BYTES_MAX;
  }

  /**
   * Adds received bytes and returns the frames they complete.
   * @throws ProtocolError on a length over the limit or of zero.
   */
  push(chunk: Uint8Array): Buffer[] {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk]);
    const frames: Buffer[] = [];
    while (this.#pending.length >= 4) {
      const length = this.#pending.readUInt32BE(0);
      if (length === 0 || length > this.#bodyBytesMax) {
        throw new ProtocolError(`control frame length ${length} is not within 1 and ${this.#bodyBytesMax}`, {
          cure: 'Is the other end a Holdfast control port? Check --backup and --listen.',
        });
      }
      if (this.#pending.length < 4 + length) break;
      frames.push(this.#pending.subarray(4, 4 + length));
      this.#pending = this.#pending.subarray(4 + length);
    }
    return frames;
  }
}
