/**
 * The relay's control protocol, as bytes (docs/relay.md has the tables; native/output/control.h is the
 * other side). Pure: encodes requests, takes the stream of answers and events apart at any split.
 *
 *   {u32 type, u32 0, u64 value}   little-endian, both ways; a stats answer is followed by 96 bytes
 */
import { ProtocolError } from '../errors.js';

export const RELAY_PROTOCOL_VERSION = 1;
export const RELAY_MESSAGE_BYTES = 16;
export const RELAY_STATS_BYTES = 96;

export const relayRequests = {
  hold: 1,
  boundary: 2,
  release: 3,
  open: 4,
  stats: 5,
  prepare: 6,
  pause: 7,
  switch: 8,
} as const;
export type RelayRequest = keyof typeof relayRequests;

const ANSWER = 0x100;
const OUTPUT = 0x200;
const HELLO = 0x201;

export interface RelayStats {
  /** In the relay now: held, or released and not yet taken by the target. */
  readonly heldFrames: number;
  readonly heldBytes: number;
  /** Of these, before the last boundary: what the next release lets go. */
  readonly boundaryFrames: number;
  /** Most that was ever held. */
  readonly heldBytesPeak: number;
  /** Guest to target. */
  readonly outFrames: number;
  readonly outBytes: number;
  /** Target to guest. */
  readonly inFrames: number;
  readonly inBytes: number;
  /** Released frames that had nowhere to go: the target refused them, or was gone. */
  readonly droppedFrames: number;
  /** errno of the last of them; 0: none. */
  readonly lastDropErrno: number;
  readonly holding: boolean;
  readonly qemuConnected: boolean;
  readonly targetConnected: boolean;
  /** The bound is reached: QEMU's socket is not read. */
  readonly stalled: boolean;
  /** QEMU's end of the socket was given room for a burst; without, `stop` can cost a frame (docs/relay.md). */
  readonly socketWide: boolean;
  readonly stalledMs: number;
  /** How often the bound was reached. */
  readonly stalls: number;
  /** Held when QEMU's connection ended, and therefore never released. */
  readonly discardedFrames: number;
}

export type RelayMessage =
  | { readonly type: 'hello'; readonly holding: boolean; readonly version: number }
  | { readonly type: 'output' }
  | {
      readonly type: 'answer';
      readonly request: RelayRequest;
      readonly frames: number;
      readonly stats?: RelayStats;
    };

export const encodeRelayRequest = (request: RelayRequest): Buffer => {
  const message = Buffer.alloc(RELAY_MESSAGE_BYTES);
  message.writeUInt32LE(relayRequests[request], 0);
  return message;
};

const requestNames = new Map<number, RelayRequest>(
  Object.entries(relayRequests).map(([name, type]) => [type, name as RelayRequest]),
);

const decodeStats = (bytes: Buffer): RelayStats => {
  const count = (offset: number): number => Number(bytes.readBigUInt64LE(offset));
  const flags = bytes.readUInt32LE(76);
  return {
    heldFrames: count(0),
    heldBytes: count(8),
    boundaryFrames: count(16),
    heldBytesPeak: count(24),
    outFrames: count(32),
    outBytes: count(40),
    inFrames: count(48),
    inBytes: count(56),
    droppedFrames: count(64),
    lastDropErrno: bytes.readUInt32LE(72),
    holding: (flags & 1) !== 0,
    qemuConnected: (flags & 2) !== 0,
    targetConnected: (flags & 4) !== 0,
    stalled: (flags & 8) !== 0,
    socketWide: (flags & 16) !== 0,
    stalledMs: count(80) / 1000,
    stalls: bytes.readUInt32LE(88),
    discardedFrames: bytes.readUInt32LE(92),
  };
};

export class RelayMessageDecoder {
  #pending: Buffer = Buffer.alloc(0);

  /**
   * Adds received bytes and returns the messages they complete.
   * @throws ProtocolError on a type that no relay sends.
   */
  push(chunk: Uint8Array): RelayMessage[] {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk]);
    const messages: RelayMessage[] = [];
    while (this.#pending.length >= RELAY_MESSAGE_BYTES) {
      const type = this.#pending.readUInt32LE(0);
      const value = this.#pending.readBigUInt64LE(8);
      const bodyBytes = type === (relayRequests.stats | ANSWER) ? RELAY_STATS_BYTES : 0;
      if (this.#pending.length < RELAY_MESSAGE_BYTES + bodyBytes) break;
      const body = this.#pending.subarray(RELAY_MESSAGE_BYTES, RELAY_MESSAGE_BYTES + bodyBytes);
      messages.push(this.#message(type, value, body));
      this.#pending = this.#pending.subarray(RELAY_MESSAGE_BYTES + bodyBytes);
    }
    return messages;
  }

  #message(type: number, value: bigint, body: Buffer): RelayMessage {
    if (type === OUTPUT) return { type: 'output' };
    if (type === HELLO) return { type: 'hello', holding: (value & 1n) === 1n, version: Number(value >> 32n) };
    const request = (type & ANSWER) === 0 ? undefined : requestNames.get(type & ~ANSWER);
    if (request === undefined) {
      throw new ProtocolError(`control socket of the relay: message of unknown type 0x${type.toString(16)}`, {
        cure: 'Is this the control socket of a Holdfast relay of the same version?',
      });
    }
    const stats = request === 'stats' ? { stats: decodeStats(body) } : {};
    return { type: 'answer', request, frames: Number(value), ...stats };
  }
}
