/** Cuts a bulk stream (docs/wire-protocol.md) at its frames' boundaries. Pure; accepts any split of the stream. */

export const frameTypes = { begin: 3, ack: 10 } as const;

const HEADER_BYTES = 40;
const MAGIC = 0x31424648;

/** A piece of one frame. */
export interface FramePiece {
  readonly type: number;
  readonly epoch: number;
  /** The piece begins with the frame's header, all of it. */
  readonly first: boolean;
  readonly bytes: Buffer;
}

export class FrameSplitter {
  #pending: Buffer = Buffer.alloc(0);
  #type = 0;
  #epoch = 0;
  #bodyBytesLeft = 0;

  /** @returns the pieces that can be told so far; at most an incomplete header is kept back. */
  push(chunk: Buffer): FramePiece[] {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    const pieces: FramePiece[] = [];
    for (;;) {
      if (this.#bodyBytesLeft > 0) {
        if (this.#pending.length === 0) return pieces;
        const length = Math.min(this.#bodyBytesLeft, this.#pending.length);
        this.#bodyBytesLeft -= length;
        pieces.push(this.#piece(length, false));
      } else {
        if (this.#pending.length < HEADER_BYTES) return pieces;
        if (this.#pending.readUInt32LE(0) !== MAGIC) throw new Error('not at a frame of a bulk stream');
        this.#type = this.#pending.readUInt16LE(4);
        this.#epoch = Number(this.#pending.readBigUInt64LE(8));
        this.#bodyBytesLeft = this.#pending.readUInt32LE(16) + Number(this.#pending.readBigUInt64LE(24));
        pieces.push(this.#piece(HEADER_BYTES, true));
      }
    }
  }

  #piece(length: number, first: boolean): FramePiece {
    const bytes = this.#pending.subarray(0, length);
    this.#pending = this.#pending.subarray(length);
    return { type: this.#type, epoch: this.#epoch, first, bytes };
  }
}
