/**
 * The disk server's control protocol, as bytes (docs/disk.md has the tables; native/nbdkit/disk_control.h
 * is the other side). Pure: encodes requests, takes the stream of answers apart at any split.
 *
 *   {u32 type, u32 errno of an answer, u64 value}   little-endian, both ways; bodies: a sync id, the counts
 */
import { ProtocolError } from '../errors.js';

export const DISK_PROTOCOL_VERSION = 1;
export const DISK_MESSAGE_BYTES = 16;
export const DISK_STATS_BYTES = 160;
const SYNC_ID_BYTES = 16;

export const diskRequests = {
  logStart: 1,
  logStop: 2,
  mapRotate: 3,
  mapClear: 4,
  syncIdSet: 5,
  activate: 6,
  bind: 7,
  stats: 8,
} as const;
export type DiskRequest = keyof typeof diskRequests;

const ANSWER = 0x100;
const HELLO = 0x201;

/** What a disk server counts, from its start on; bytes and milliseconds. */
export interface DiskServerStats {
  readonly imageBytes: number;
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writeBytes: number;
  readonly zeros: number;
  readonly trims: number;
  /** Asked for, FUA included. */
  readonly flushes: number;
  /** Of the image, together and the longest. */
  readonly flushMs: number;
  readonly flushMsMax: number;
  /** Writes that found no room in the log, and how long they waited. */
  readonly stalls: number;
  readonly stalledMs: number;
  readonly loggedBytes: number;
  readonly ringBytes: number;
  readonly ringUsedBytes: number;
  readonly ringUsedBytesPeak: number;
  /** Of 64 KiB: what may differ from the other host's image. */
  readonly markedBlocks: number;
  /** Of the image, each answered to the VM; and the errno of the last, 0: none. */
  readonly errors: number;
  readonly lastErrno: number;
  readonly logging: boolean;
  readonly active: boolean;
  /** A flush failed: every later one does. */
  readonly fault: boolean;
  readonly stalled: boolean;
  /** It ends with a VM's process. */
  readonly bound: boolean;
  /** Of `flushes`: answered before they were done (docs/disk.md, "Flushes"). */
  readonly flushesEarly: number;
}

export type DiskMessage =
  | { readonly type: 'hello'; readonly logging: boolean; readonly active: boolean; readonly version: number }
  | {
      readonly type: 'answer';
      readonly request: DiskRequest;
      /** Why it was not done; 0: it was. */
      readonly errno: number;
      readonly value: number;
      readonly stats?: DiskServerStats;
    };

/** @param syncId 32 hexadecimal digits, of `syncIdSet` only */
export const encodeDiskRequest = (request: DiskRequest, value = 0, syncId = ''): Buffer => {
  const message = Buffer.alloc(DISK_MESSAGE_BYTES);
  message.writeUInt32LE(diskRequests[request], 0);
  message.writeBigUInt64LE(BigInt(value), 8);
  if (request !== 'syncIdSet') return message;
  const body = Buffer.from(syncId, 'hex');
  if (body.length !== SYNC_ID_BYTES) throw new RangeError(`not a sync id: ${syncId}`);
  return Buffer.concat([message, body]);
};

const requestNames = new Map<number, DiskRequest>(
  Object.entries(diskRequests).map(([name, type]) => [type, name as DiskRequest]),
);

const decodeStats = (bytes: Buffer): DiskServerStats => {
  const count = (offset: number): number => Number(bytes.readBigUInt64LE(offset));
  const flags = bytes.readUInt32LE(148);
  return {
    imageBytes: count(0),
    reads: count(8),
    readBytes: count(16),
    writes: count(24),
    writeBytes: count(32),
    zeros: count(40),
    trims: count(48),
    flushes: count(56),
    flushMs: count(64) / 1000,
    flushMsMax: count(72) / 1000,
    stalls: count(80),
    stalledMs: count(88) / 1000,
    loggedBytes: count(96),
    ringBytes: count(104),
    ringUsedBytes: count(112),
    ringUsedBytesPeak: count(120),
    markedBlocks: count(128),
    errors: count(136),
    lastErrno: bytes.readUInt32LE(144),
    logging: (flags & 1) !== 0,
    active: (flags & 2) !== 0,
    fault: (flags & 4) !== 0,
    stalled: (flags & 8) !== 0,
    bound: (flags & 16) !== 0,
    flushesEarly: count(152),
  };
};

export class DiskMessageDecoder {
  #pending: Buffer = Buffer.alloc(0);

  /**
   * Adds received bytes and returns the messages they complete.
   * @throws ProtocolError on a type that no disk server sends.
   */
  push(chunk: Uint8Array): DiskMessage[] {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk]);
    const messages: DiskMessage[] = [];
    while (this.#pending.length >= DISK_MESSAGE_BYTES) {
      const type = this.#pending.readUInt32LE(0);
      const bodyBytes = type === (diskRequests.stats | ANSWER) ? DISK_STATS_BYTES : 0;
      if (this.#pending.length < DISK_MESSAGE_BYTES + bodyBytes) break;
      const errno = this.#pending.readUInt32LE(4);
      const value = this.#pending.readBigUInt64LE(8);
      const body = this.#pending.subarray(DISK_MESSAGE_BYTES, DISK_MESSAGE_BYTES + bodyBytes);
      messages.push(this.#message(type, errno, value, body));
      this.#pending = this.#pending.subarray(DISK_MESSAGE_BYTES + bodyBytes);
    }
    return messages;
  }

  #message(type: number, errno: number, value: bigint, body: Buffer): DiskMessage {
    if (type === HELLO) {
      return {
        type: 'hello',
        logging: (value & 1n) !== 0n,
        active: (value & 2n) !== 0n,
        version: Number(value >> 32n),
      };
    }
    const request = (type & ANSWER) === 0 ? undefined : requestNames.get(type & ~ANSWER);
    if (request === undefined) {
      throw new ProtocolError(
        `control socket of the disk server: message of unknown type 0x${type.toString(16)}`,
        { cure: 'Is this the control socket of a Holdfast disk server of the same version?' },
      );
    }
    const stats = request === 'stats' ? { stats: decodeStats(body) } : {};
    return { type: 'answer', request, errno, value: Number(value), ...stats };
  }
}
