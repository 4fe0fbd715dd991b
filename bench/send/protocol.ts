/**
 * What the suite says to its processes and what they answer: one JSON object a
 * line, on stdin and stdout. A process that fails says why and ends.
 */
import type { SenderStrategy } from '../../lib/native.js';

export type SendStrategy = SenderStrategy | 'auto';

/** `pages` pages of the region, in runs of `runPages`, scattered by `seed`. */
export interface Scattered {
  readonly runPages: number;
  readonly pages: number;
  readonly seed: number;
}

/** A transfer's pages: scattered, or one run from `firstPage`. */
export type TransferShape = Scattered | { readonly firstPage: number; readonly pages: number };

/** A connection with settings of its own, named by the suite; the same name on both sides. */
export interface LaneOptions {
  readonly strategy: SendStrategy;
  readonly streams: number;
  readonly staged: boolean;
  readonly verify: boolean;
}

/** To `transfer-role.js sender`. */
export type SenderCommand =
  | ({
      readonly do: 'open';
      readonly lane: string;
      readonly host: string;
      readonly port: number;
      /** In hexadecimal. */
      readonly token: string;
    } & LaneOptions)
  | ({ readonly do: 'send'; readonly lane: string } & TransferShape)
  | { readonly do: 'close'; readonly lane: string };

/** To `transfer-role.js receiver`. */
export type ReceiverCommand =
  | { readonly do: 'open'; readonly lane: string; readonly host: string; readonly verify: boolean }
  | { readonly do: 'close'; readonly lane: string };

/** To `node-role.js client`. */
export type NodeCommand = { readonly do: 'send'; readonly reads: 'awaited' | 'sync' } & Scattered;

/** Of one transfer, by the sender. */
export interface SentMessage {
  readonly event: 'sent';
  readonly strategy: SenderStrategy;
  readonly bytes: number;
  readonly sendMs: number;
  readonly ackMs: number;
  /** Thread clocks of the sending threads. */
  readonly cpuMs: number;
  /** The whole process, Node's own threads included. */
  readonly processCpuMs: number;
  readonly syscalls: number;
  readonly copiedBytes: number;
  readonly referenceBytes: number;
}

/** Of one transfer, by the receiver, once its pages are in the file. */
export interface ReceivedMessage {
  readonly event: 'received';
  readonly receiveMs: number;
  readonly receiveCpuMs: number;
  readonly receiveSyscalls: number;
  /** Of `receiveCpuMs`, for the digest; 0 unverified. */
  readonly digestMs: number;
}

/** Of one transfer, by the client of the plain Node pair. */
export interface NodeSentMessage {
  readonly event: 'sent';
  readonly sendMs: number;
  readonly ackMs: number;
  readonly processCpuMs: number;
}
