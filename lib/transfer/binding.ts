/** The addon's part of the page transfer library: one native thread behind each object. */
import { native, type SenderStrategy } from '../native.js';

export interface TransferSenderOpenOptions {
  /** One of the two. The descriptor is duplicated before the call returns. */
  readonly path?: string;
  readonly fileFd?: number;
  readonly fileOffset: number;
  readonly regionBytes: number;
  readonly pageSize: number;
  readonly stagingBytesMax: number;
  /** Either both of these, or a connected socket, which the addon takes over. */
  readonly host?: string;
  readonly port?: number;
  readonly socketFd?: number;
  readonly token: Uint8Array;
  readonly streams: number;
  readonly verify: boolean;
  readonly timeoutMs: number;
}

export interface TransferSendOptions {
  readonly id: number;
  /** Pairs of first page and number of pages; left out with `staged`. */
  readonly runs?: Uint32Array;
  /** Sends what the last stage() copied, or rejects as it did. */
  readonly staged: boolean;
  readonly strategy: SenderStrategy;
  readonly metadata: Uint8Array;
}

export interface TransferSendResult {
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  readonly sendMs: number;
  readonly ackMs: number;
  readonly cpuMs: number;
  readonly syscalls: number;
  readonly copiedBytes: number;
  readonly referenceBytes: number;
}

/** Calls run one after the other, in the order they were made. */
export interface TransferSender {
  open(options: TransferSenderOpenOptions): Promise<void>;
  /** Settles with the milliseconds that the copy took. */
  stage(options: { readonly runs: Uint32Array }): Promise<number>;
  /** Settles on the receiver's acknowledgement. After a failure every call rejects with it. */
  send(options: TransferSendOptions): Promise<TransferSendResult>;
  /** Cuts what runs. Idempotent. */
  close(): Promise<void>;
}

export interface TransferReceiverOpenOptions {
  /** Either both of these, or a connected socket, which the addon takes over. */
  readonly host?: string;
  readonly port?: number;
  readonly socketFd?: number;
  readonly token: Uint8Array;
  readonly path: string;
  readonly regionBytes: number;
  readonly pageSize: number;
  readonly verify: boolean;
  readonly metadataBytesMax: number;
  /** Transfers that may be written to the file before allow() was called for them. */
  readonly aheadMax: number;
}

export interface CommittedTransfer {
  readonly type: 'committed';
  readonly epoch: number;
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  readonly receiveMs: number;
  readonly receiveCpuMs: number;
  readonly receiveSyscalls: number;
  readonly digestMs: number;
  /** The metadata. */
  readonly state: Uint8Array;
}

export type TransferReceiverEvent =
  | { readonly type: 'connected' }
  | { readonly type: 'round' }
  | CommittedTransfer
  | { readonly type: 'applied'; readonly epoch: number; readonly applyMs: number }
  | {
      readonly type: 'disconnected';
      readonly code: string;
      readonly message: string;
      /** The transfer that was cut off; 0 if none had begun. */
      readonly droppedEpoch: number;
    };

export interface TransferReceiver {
  /** Settles with the port; 0 on a descriptor. */
  open(options: TransferReceiverOpenOptions): Promise<number>;
  /** One more committed transfer may be written to the file. */
  allow(): void;
  close(): Promise<void>;
}

export interface TransferBinding {
  readonly TransferSender: new () => TransferSender;
  readonly TransferReceiver: new (options: {
    readonly onEvent: (event: TransferReceiverEvent) => void;
  }) => TransferReceiver;
}

export const binding = native as unknown as TransferBinding;
