/**
 * The native addon, typed: everything TypeScript may ask of the data plane.
 *
 * TypeScript decides, C++ moves bytes. No function here returns guest memory;
 * what crosses is offsets, counts, paths, descriptors and policies, and each
 * epoch crosses a handful of times (capture, send, and on the backup one
 * event per commit). Nothing here blocks the event loop: what takes time
 * returns a promise that a native thread settles.
 *
 * Native failures reject (or throw) as plain `Error`s with `code` (one of
 * `NativeErrorCode`), `errno` (number, 0 if none) and `syscall` (name of the
 * failing call, or ''). `lib/errors.ts` wraps them into the public classes.
 */

import { createRequire } from 'node:module';
import type { CheckpointBinding } from './checkpoint/binding.js';
import type {
  EarlyGuest,
  EarlyGuestOptions,
  FaultCost,
  ServePagesOptions,
  ServeProgress,
} from './native-early.js';
import type { PlugBinding } from './output/plug-binding.js';
import type { RelayStats } from './output/relay-protocol.js';
import { packageRoot } from './package-root.js';
import type { TraceBinding } from './trace/binding.js';

/** Stable codes of native failures. */
export type NativeErrorCode =
  | 'HOLDFAST_E_SYSCALL' // a system call failed; see errno and syscall
  | 'HOLDFAST_E_UNSUPPORTED' // kernel or address space lacks what is needed
  | 'HOLDFAST_E_INJECT' // no thread of QEMU could be used for the injection
  | 'HOLDFAST_E_RAM_MAPPING' // guest RAM mapping not found or not usable
  | 'HOLDFAST_E_CONNECT' // bulk connection could not be made in time
  | 'HOLDFAST_E_PEER_LOST' // peer closed, reset or fell silent
  | 'HOLDFAST_E_PROTOCOL' // peer sent what the protocol does not allow
  | 'HOLDFAST_E_CHECKSUM' // an epoch's digest did not match
  | 'HOLDFAST_E_AUTH' // bulk token refused
  | 'HOLDFAST_E_NO_SPACE' // replica or staging could not be allocated
  | 'HOLDFAST_E_LIMIT' // a named limit was exceeded
  | 'HOLDFAST_E_STATE_LOAD' // device state could not be handed to the standby
  | 'HOLDFAST_E_FENCED' // the receiver no longer acknowledges
  | 'HOLDFAST_E_CANCELLED' // cancelled by close() or disconnect()
  | 'HOLDFAST_E_DISK' // a disk's image, journal or map cannot be used; the message says why
  | 'HOLDFAST_E_DISK_FOREIGN'; // the image has content that is not ours

export interface NativeError extends Error {
  readonly code: NativeErrorCode;
  readonly errno: number;
  readonly syscall: string;
}

/** How page bytes get to the socket; native/send/page_sender.h says what each does. */
export type SenderStrategy = 'copy' | 'sendfile' | 'splice' | 'vmsplice' | 'zerocopy' | 'uring';
export type NativeCaptureMode = 'staged' | 'direct';

/** What the kernel can do, each probed for real in this process, none assumed. */
export interface KernelProbe {
  /** Kernel release, as uname prints it. */
  readonly release: string;
  /** userfaultfd(2) can be opened by this process. `errno` of the failure otherwise. */
  readonly userfaultfd: { readonly ok: boolean; readonly errno: number };
  /** UFFDIO_API accepts WP_ASYNC | WP_UNPOPULATED | WP_HUGETLBFS_SHMEM. */
  readonly wpAsync: boolean;
  /** A written page of a registered shared mapping is reported by PAGEMAP_SCAN, exactly that one, and re-protected. */
  readonly pagemapScan: boolean;
  /** ptrace(PTRACE_SEIZE) and pidfd_getfd of a child both work. */
  readonly ptrace: boolean;
  readonly pidfdGetfd: boolean;
  /** RLIMIT_MEMLOCK soft limit, bytes; -1 is unlimited. */
  readonly memlockBytes: number;
  /** Effective capabilities, as a bit mask in hexadecimal (CapEff of /proc/self/status). */
  readonly capEff: string;
}

/** Which senders this kernel lets this process use, each tried on a socket that leads nowhere. */
export interface SenderProbe {
  /** MSG_ZEROCOPY; why not, otherwise. */
  readonly zerocopy: boolean;
  readonly zerocopyReason?: string;
  /** io_uring with zero-copy sends; why not, otherwise. */
  readonly uring: boolean;
  readonly uringReason?: string;
  /** The ring says what was copied after all (Linux 6.2). */
  readonly uringUsageReports: boolean;
  /** Staging can be registered with the ring. */
  readonly uringFixedBuffers: boolean;
  /** net.core.optmem_max; -1 unknown. */
  readonly optmemBytesMax: number;
  /** RLIMIT_MEMLOCK soft limit; -1 is unlimited. */
  readonly memlockBytesMax: number;
}

/** One file-backed, shared mapping of a process, merged over adjacent VMAs. */
export interface RamMapping {
  /** Address in the process. */
  readonly hostAddress: bigint;
  readonly sizeBytes: number;
  /** Offset of `hostAddress` in the file. */
  readonly fileOffset: number;
  readonly path: string;
  readonly deleted: boolean;
  readonly shared: boolean;
  /** Mapping's page size, bytes: 4096, or 2097152 on hugetlbfs. */
  readonly pageSize: number;
}

export interface PrimaryEngineOptions {
  /** Process id of QEMU. */
  readonly pid: number;
  /** The mapping that findRamMappings returned for the guest's RAM. */
  readonly ram: RamMapping;
  /** Upper bound of the staging pool, bytes (default 256 MiB). It grows lazily. */
  readonly stagingBytesMax: number;
  /** How the pages of base rounds are sent, and of epochs for which send() names no other. */
  readonly strategy: SenderStrategy;
  /** Threads that copy during the pause (default 2). */
  readonly copyThreads: number;
  /** The VM's disks that are on disk servers (docs/disk.md); none: epochs carry none. */
  readonly disks?: readonly PrimaryDisk[] | undefined;
}

/** A disk as the primary's data plane sees it: three files of its disk server. */
export interface PrimaryDisk {
  /** The backup's disk of the same id is its copy: up to 128 printable characters, no spaces, no slash. */
  readonly id: string;
  readonly ringPath: string;
  readonly mapPath: string;
  readonly imagePath: string;
  readonly imageBytes: number;
}

/** What the two sides of a disk know about how it differs. */
export interface PeerDisk {
  readonly id: string;
  /** 32 hexadecimal digits; all zero is none. */
  readonly syncId: string;
  /** The backup's map knows of every write to its image since `syncId`. */
  readonly trusted: boolean;
  /** Nothing was ever written to the backup's image. */
  readonly fresh: boolean;
  /** What the backup's map has marked; 0 also where it is not trusted. */
  readonly markedBytes: number;
  readonly localSyncId: string;
  readonly localTrusted: boolean;
  readonly localMarkedBytes: number;
}

export interface SyncDisksOptions {
  /** One for each disk. `changed` only where both sides are trusted and have the same sync id, not zero. */
  readonly plans: readonly { readonly id: string; readonly what: 'all' | 'changed' }[];
  /** 32 hexadecimal digits, not all zero: fresh ones. */
  readonly syncId: string;
}

export interface SyncDisksResult {
  /** Data that travelled. */
  readonly bytes: number;
  /** What was told to read as zeros. */
  readonly holeBytes: number;
  readonly millis: number;
}

export interface DiskStats {
  readonly id: string;
  /** Of the log since connectDisks(): appended by the disk server, handed to the kernel, received by the backup. */
  readonly loggedBytes: number;
  readonly shippedBytes: number;
  readonly receivedBytes: number;
  readonly ringUsedBytes: number;
  readonly ringBytes: number;
  /** Of `shippedBytes`: copied once more, because the kernel would not send them from the ring. */
  readonly copiedBytes: number;
  /** Flushes answered before they were done, and those of them done since, ever. */
  readonly flushesOwed: number;
  readonly flushesPaid: number;
}

export interface ConnectOptions {
  readonly host: string;
  readonly port: number;
  /** 32 bytes that bind the bulk connection to the authenticated control session. */
  readonly token: Uint8Array;
  readonly timeoutMs: number;
  /** TCP connections over which pages are striped, 1 to 16 (default 1), each with a sending thread. */
  readonly streams?: number | undefined;
  /**
   * Digests over all that an epoch carries (default true). They are computed if
   * both sides want them; without, only TCP's own checksum is left.
   */
  readonly verify?: boolean | undefined;
}

export interface AttachResult {
  /** True if a userfaultfd was found open in QEMU and adopted, false if injected. */
  readonly adopted: boolean;
  readonly injectMs: number;
}

export interface IndexDisksOptions {
  /** Images whose content pages may be; `number` is the place that the backup's session has the disk at. */
  readonly disks: readonly { readonly number: number; readonly path: string; readonly bytes: number }[];
  /** Of memory for the index, 24 to 48 bytes for each 4 KiB of data. What does not fit is not found. */
  readonly tableBytesMax: number;
}

/** How far indexDisks() has come. */
export interface DiskIndexProgress {
  readonly ended: boolean;
  /** What the images have, less their holes, and what of it was read. */
  readonly dataBytes: number;
  readonly readBytes: number;
  /** Blocks of 4 KiB of different content. */
  readonly blocks: number;
  readonly millis: number;
  /** Why not all was read. */
  readonly error?: string;
}

/** Pages of a round or an epoch that were sent as references to a disk, beside `pages`. */
export interface DiskPageCounts {
  readonly referenced: number;
  /** Of these, the backup's disk had something else there, */
  readonly different: number;
  /** or was not read, or not in time: both came again in full, and count among `pages`. */
  readonly unread: number;
  /** What the references took; of `bytes`. */
  readonly referenceBytes: number;
}

export interface BaseRoundOptions {
  /**
   * True in the first round: send every populated page (SEEK_DATA), after
   * arming the tracker. False: send what was written since the last scan.
   */
  readonly first: boolean;
  /** Prefix that the first epoch may have: it then has its name only, and the backup's standby has loaded it. */
  readonly prefix?: StateFile | undefined;
}

export interface BaseRoundResult {
  readonly pages: number;
  readonly zeroPages: number;
  /** Beside these: written again since this round's scan, and so left to the next; of `dirtyPages`. */
  readonly skippedPages: number;
  readonly bytes: number;
  /** Written since this round's scan: what the next round, or the first epoch, would have to send now. */
  readonly dirtyPages: number;
  readonly scanMs: number;
  readonly sendMs: number;
  /** Of `sendMs`: finding what to skip. */
  readonly lookMs: number;
  /** Of `dirtyPages`; nothing is re-protected for it. */
  readonly countMs: number;
  /** After indexDisks(). */
  readonly diskPages?: DiskPageCounts;
}

export interface CaptureOptions {
  readonly epoch: number;
  /** `later`: the epoch has no pages, and needs no base: servePages() brings what the backup lacks. */
  readonly mode: NativeCaptureMode | 'later';
}

export interface PrestageOptions {
  /** The epoch that will be captured next. With another number than the slice before, that epoch is given up. */
  readonly epoch: number;
  /**
   * True: the slice is also sent, with all that was only staged before, ahead of
   * the pause and without waiting for the backup's answer. It waits for room in
   * the kernel's buffers, though: `bytesMax` bounds that.
   */
  readonly send: boolean;
  /** How it is sent; default: the engine's strategy. */
  readonly strategy?: SenderStrategy | undefined;
  /** Limit on the slice's pages, bytes. What is beyond stays dirty, for the next slice or the pause. */
  readonly bytesMax?: number | undefined;
}

export interface PrestageResult {
  /** Staged in this slice. All slices of an epoch together fill at most half of the staging pool. */
  readonly pages: number;
  /** Dirty pages left for the pause, because slices were rewritten again and again. */
  readonly heldBackPages: number;
  /** Staged earlier in this epoch, and found written again by this slice. */
  readonly supersededPages: number;
  /** Of these, the ones that had been sent as well. */
  readonly supersededSentPages: number;
  /** Sent: all bytes on the wire. */
  readonly bytes: number;
  readonly scanMs: number;
  readonly copyMs: number;
  /** To the last byte handed to the kernel; 0 if nothing was sent. */
  readonly sendMs: number;
}

export interface CaptureResult {
  /**
   * What was done: `direct` also when `staged` was asked for but the dirty set
   * exceeds the staging pool; the VM must then stay paused until send() settles.
   */
  readonly mode: NativeCaptureMode;
  /** Of the epoch, each once, the prestaged ones included. */
  readonly dirtyPages: number;
  /** Staged by prestage(), before the pause; in direct mode only those that were sent as well. */
  readonly prestagedPages: number;
  /** Of these, written again before the pause, and so staged or sent twice. */
  readonly supersededPages: number;
  /** Of the prestaged ones, sent already and still valid: send() has so many pages less to send. */
  readonly aheadPages: number;
  /** Left for the pause by the last slice, because they were rewritten again and again. */
  readonly heldBackPages: number;
  readonly runs: number;
  /** In mode `later`, told as `direct`: what servePages() will have to bring. */
  readonly laterPages: number;
  /** Log of all disks that belongs to the epoch; most of it has left already. */
  readonly diskBytes: number;
  /** Within the pause. */
  readonly scanMs: number;
  readonly copyMs: number;
}

/** A file whose bytes [skipBytes, skipBytes + maxBytes) travel with the epoch. */
export interface StateFile {
  readonly path: string;
  readonly skipBytes: number;
  /** Length to read; undefined: to the end of the file. */
  readonly maxBytes?: number | undefined;
}

export interface SendOptions {
  readonly epoch: number;
  /** The epoch's device state. Read completely before anything else is sent. */
  readonly device: StateFile;
  /** New prefix of the composite stream, if it changed since the last commit. */
  readonly prefix?: StateFile | undefined;
  /** How this epoch's pages are sent; default: the engine's strategy. */
  readonly strategy?: SenderStrategy | undefined;
}

/** Counts are of the whole epoch, with the slices that were sent ahead; times are of this call. */
export interface SendResult {
  readonly epoch: number;
  /** `pages` + `zeroPages` are the epoch's dirty pages, and those that were sent ahead in vain. */
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** The whole device state. */
  readonly deviceBytes: number;
  /** What of it travelled: less where it went as changes to the last acknowledged one. */
  readonly deviceSentBytes: number;
  /** Of the pages sent ahead, those written again: at most so many bytes of `bytes` were in vain. */
  readonly supersededBytes: number;
  /** From the start of the send to the last byte handed to the kernel. */
  readonly sendMs: number;
  /** From the start of the send to the acknowledgement. */
  readonly ackMs: number;
  /** System calls that moved payload. */
  readonly syscalls: number;
  /** CPU time of all sending threads for this epoch, slices and completions included. */
  readonly cpuMs: number;
  /** Page bytes that the kernel copied, as far as it says. */
  readonly copiedBytes: number;
  /** Page bytes that left as they lie in memory. */
  readonly referenceBytes: number;
  /** Calls of which the kernel has reported that it needs their pages no more. */
  readonly completions: number;
  /** Log of all disks in the epoch, beside `bytes`. */
  readonly diskBytes: number;
  /** The backup's apply time of the epoch before, as carried by the acknowledgement; -1 unknown. */
  readonly previousApplyMs: number;
  /** After indexDisks(). */
  readonly diskPages?: DiskPageCounts;
}

/**
 * The primary's data plane for one VM: tracker, staging, one bulk connection of one or more streams.
 *
 * Order per epoch: prestage() while the VM runs, any number of times, where it
 * pays; capture() while the VM is stopped; then send(). With
 * `staged` the VM may run as soon as capture() settles; with `direct` it must
 * stay stopped until send() settles. At most one epoch is unacknowledged:
 * capture(N+1) before send(N) settled rejects with HOLDFAST_E_LIMIT.
 *
 * With disks: connect(), connectDisks(), then each disk server is told to log,
 * then syncDisks(); base rounds of RAM before, after or between. Each capture
 * then notes how far the logs go, and send() settles when the backup has them so
 * far. The end of the disks' connection is the end of the other streams, too.
 */
export interface PrimaryEngine {
  /** Injects (or adopts) the userfaultfd, registers the RAM mapping write-protected. */
  attach(): Promise<AttachResult>;
  connect(options: ConnectOptions): Promise<void>;
  /**
   * Opens the disks' rings and their stream to the backup, and asks how the disks
   * differ. What the rings held of an earlier connection is forgotten.
   */
  connectDisks(): Promise<readonly PeerDisk[]>;
  /**
   * Sends the disks as they are, beside their logs, while the VM runs; from here
   * the logs are shipped as they grow. Only once every disk server has answered
   * that it logs. Settles when the backup has all of it.
   */
  syncDisks(options: SyncDisksOptions): Promise<SyncDisksResult>;
  /** Of the syncDisks() under way. `totalBytes` is an estimate that may still change. */
  diskProgress(): { readonly doneBytes: number; readonly totalBytes: number } | undefined;
  /**
   * On right before QEMU is told to stop, off when it has answered: what it then
   * drains finds room in the rings, and its flushes are answered before they are
   * done (docs/disk.md). Does nothing without connected disks.
   */
  setStopPending(on: boolean): void;
  /** Since connectDisks(); empty before. */
  diskStats(): readonly DiskStats[];
  /**
   * Begins to read the images, so that pages whose content they have leave as references to them, in rounds
   * and in epochs of which nothing was sent ahead; until the connection ends. After connect(). Rejects with
   * HOLDFAST_E_UNSUPPORTED where guest RAM is not in pages of 4 KiB.
   */
  indexDisks(options: IndexDisksOptions): Promise<void>;
  /** Settles when all is read, or after that time, with how far it is. */
  awaitIndex(options: { readonly timeoutMs: number }): Promise<DiskIndexProgress>;
  /** One live round of the base sync, straight from guest RAM. The VM runs. */
  baseRound(options: BaseRoundOptions): Promise<BaseRoundResult>;
  /**
   * One slice of speculative capture, while the VM runs: copies what is dirty by
   * now, and sends it, so that capture() copies and send() sends only what is
   * written after this. Rejects with HOLDFAST_E_LIMIT before the last send()
   * settled, and as send() does where the connection fails; no page is forgotten then.
   */
  prestage(options: PrestageOptions): Promise<PrestageResult>;
  /**
   * While the VM runs, before capture() in mode `later` with no round before: finds what RAM holds, so that the
   * capture has to look only for what is written after this.
   */
  findPopulated(): Promise<void>;
  capture(options: CaptureOptions): Promise<CaptureResult>;
  /** Settles on the backup's acknowledgement, never on a kernel completion. */
  send(options: SendOptions): Promise<SendResult>;
  /**
   * Of an epoch that was captured as `later` and is acknowledged: brings its pages to the VM, which may run
   * there by then, over a connection of its own. Settles when all are there. The VM here must stay stopped.
   * Rejects with HOLDFAST_E_PEER_LOST or HOLDFAST_E_CONNECT when that breaks: it may be called again, and
   * goes on with what is lacking.
   */
  servePages(options: ServePagesOptions): Promise<FaultCost>;
  serveProgress(): ServeProgress;
  /**
   * Drops a captured epoch that will not be (or was not completely) sent: its
   * pages are merged into the next capture, so that no write is forgotten. What
   * was sent ahead of it is given up with it, also where nothing was captured:
   * its number may then be used again on the same connection. Never rejects for
   * the connection's sake; one that fails is cut.
   */
  abort(epoch: number): Promise<void>;
  /** Cuts the bulk connection; pending calls reject with HOLDFAST_E_CANCELLED. */
  disconnect(): Promise<void>;
  /** Unregisters the mapping and makes QEMU close the descriptor. Idempotent. Works on a dead QEMU. */
  detach(): Promise<void>;
  /** Stops the threads, unmaps, closes. Does not detach. Idempotent. */
  close(): Promise<void>;
}

export interface ReceiverOptions {
  /** Address to listen on for bulk connections. */
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  /** Bounded event queue to JavaScript ends in this callback. */
  readonly onEvent: (event: ReceiverEvent) => void;
}

export interface SessionOptions {
  readonly token: Uint8Array;
  /** Replica file; created with this size, its memory reserved (fallocate) before the promise settles. */
  readonly ramPath: string;
  readonly ramBytes: number;
  readonly pageSize: number;
  /** Limit on one epoch's page bytes; larger is a protocol error. Usually ramBytes. */
  readonly epochBytesMax: number;
  /** Limit on device state and on the prefix, bytes each. */
  readonly deviceBytesMax: number;
  /** False: no digests, whatever the primary wishes (default true). */
  readonly verify?: boolean | undefined;
  /** No memory is reserved, only seen to be there: the session takes no time, whatever the size (default false). */
  readonly sparse?: boolean | undefined;
  /**
   * The replicas of the VM's disks, open. An epoch is then committed with them, as one. The store may be an
   * older session's, too: that one's checkpoint stands until this one's first commit.
   */
  readonly disks?: DiskStore | undefined;
  /** Disks that the primary may refer to, by their place here, as long as the primary knows them. */
  readonly referenceDisks?: readonly { readonly path: string; readonly bytes: number }[] | undefined;
}

export interface OpenedSession {
  /** Which of them are here, and long enough. */
  readonly referenceDisks: readonly boolean[];
}

export type ReceiverEvent =
  | { readonly type: 'connected' }
  | { readonly type: 'round'; readonly pages: number; readonly zeroPages: number; readonly bytes: number }
  /** One has come ahead of the first epoch, counted as below: feedStandby() gives it until that is committed. */
  | { readonly type: 'prefix'; readonly prefix: number }
  | {
      readonly type: 'committed';
      readonly epoch: number;
      readonly pages: number;
      readonly zeroPages: number;
      readonly bytes: number;
      /** First byte of the epoch received to commit. */
      readonly receiveMs: number;
      /** CPU time of the receive threads of all streams since the epoch before. */
      readonly receiveCpuMs: number;
      /** Their system calls that brought bytes. */
      readonly receiveSyscalls: number;
      /** Of their time, what went into digests. */
      readonly digestMs: number;
      /** Which prefix the checkpoint has: those that differ are counted from 1. 0: it has none. */
      readonly prefix: number;
    }
  | { readonly type: 'applied'; readonly epoch: number; readonly applyMs: number }
  /** The bulk connection ended, with all its streams; `code` says why. The partly received epoch was dropped. */
  | {
      readonly type: 'disconnected';
      readonly code: NativeErrorCode;
      readonly message: string;
      /** The epoch that was dropped; 0 if none had begun. */
      readonly droppedEpoch: number;
    };

export interface FenceResult {
  /** Last committed epoch, now applied to the replica completely; 0 if none. */
  readonly epoch: number;
  /** From the call until acknowledgements were impossible and the last epoch applied. */
  readonly fenceMs: number;
  readonly partialEpochDropped: boolean;
}

export interface FedStandby {
  /** Which prefix it was given, as `committed` counts them; 0: none, for there is none yet. */
  readonly prefix: number;
}

export interface WriteStateOptions {
  /** The guest's clock in it goes on by the time since the VM was stopped for the epoch (default false). */
  readonly followClock: boolean;
}

export interface WrittenState {
  readonly bytes: number;
  readonly writeMs: number;
  /** By how much the clock was advanced; undefined: it was left as it is. */
  readonly clockAdvancedMs?: number;
}

/**
 * The backup's data plane: a listening socket, at most one bulk connection,
 * one replica. A session stands for one replica and one lineage of epochs.
 */
export interface Receiver {
  readonly port: number;
  /** Milliseconds since the last byte arrived on the bulk connection; Infinity if none did. */
  idleMs(): number;
  /** Creates and reserves the replica, then accepts one bulk connection that shows `token`. */
  openSession(options: SessionOptions): Promise<OpenedSession>;
  /**
   * From this moment no acknowledgement leaves (atomic with the commit of an
   * epoch: an epoch is either acknowledged and in the replica, or neither).
   * Settles when the last committed epoch is applied, to the disks' images as well. Idempotent.
   * Rejects with HOLDFAST_E_FENCED where a newer session has committed to the same disks, and with a
   * disk's own error if its image cannot be written: it may be called again then.
   */
  fence(): Promise<FenceResult>;
  /**
   * Gives the standby that listens on a Unix socket what it can load ahead of the takeover: the checkpoint's
   * prefix, or the one that has come ahead of the first. The connection stays open for writeState(). At any
   * time, and beside all other calls; once for each standby, and only one has such a connection. Rejects with
   * HOLDFAST_E_STATE_LOAD where it could not be written; with HOLDFAST_E_CANCELLED after endFeed(),
   * closeSession(), close(), or for another standby.
   */
  feedStandby(socketPath: string): Promise<FedStandby>;
  /** Closes that connection. A standby that waits on it ends: this is for one that has. Does not wait. */
  endFeed(): void;
  /**
   * Writes to a Unix socket on which the standby listens what it lacks of prefix + device state of the last
   * committed epoch. Only after fence(). Waits for a feedStandby() under way. Rejects with
   * HOLDFAST_E_STATE_LOAD, also where the standby was given another prefix: it has not run then, and is not to
   * be used any more.
   */
  writeState(socketPath: string, options?: WriteStateOptions): Promise<WrittenState>;
  /** Ends the session: drops the connection and staging; keeps the replica file on disk. */
  closeSession(): Promise<void>;
  close(): Promise<void>;
}

export interface RelayOptions {
  /** QEMU's `-netdev stream,addr.type=unix,server=on` socket. */
  readonly qemuSocket: string;
  /** Where released frames go: an existing tap device of this network namespace, or a socket with QEMU's framing. */
  readonly target: { readonly tap: string } | { readonly unix: string };
  /** The control socket to listen on; a stale socket of that name is replaced. */
  readonly controlSocket: string;
  /** From 128 KiB; at it QEMU's socket is read no more until a release. docs/relay.md has the rest. */
  readonly heldBytesMax: number;
  /** Room that QEMU's end of its socket is given (default 4 MiB); 0: left as it is. */
  readonly qemuSocketBytes?: number | undefined;
  /** Hold from the first frame on, rather than from the first HOLD. */
  readonly hold: boolean;
  readonly onEvent: (event: RelayEvent) => void;
}

export type RelayEvent =
  | { readonly type: 'connected' }
  /** QEMU's connection ended; `discardedFrames` were held and will never leave. */
  | { readonly type: 'disconnected'; readonly discardedFrames: number }
  /** The target is gone or cannot be opened; it is tried again. Said once until it is back. */
  | { readonly type: 'target-lost'; readonly errno: number }
  | { readonly type: 'target-found' }
  | { readonly type: 'controller'; readonly connected: boolean }
  /** Last of all, after close(). */
  | { readonly type: 'ended' };

/**
 * The packet gate between QEMU and the network: a thread of its own that holds
 * and releases what the guest sends, told so through its control socket, not
 * through this object (docs/relay.md). It keeps node running until close().
 */
export interface Relay {
  stats(): RelayStats;
  /** Ends the thread; what is held is gone with it. Idempotent. */
  close(): Promise<void>;
}

/**
 * Gives a TCG guest back the time that pauses take, by writing into the stopped
 * QEMU's memory (native/guest/guest_clock.h). Per pause: beforePause() while the
 * VM runs; advance() right before `cont`, both in some microseconds. locate()
 * in the first pause. A method that throws has written nothing.
 */
export interface GuestClock {
  /** Searches QEMU's global variables for the clock that `statePath`, saved in this pause, speaks of. */
  locate(options: { readonly statePath: string }): Promise<void>;
  beforePause(): void;
  /**
   * Milliseconds by which the guest's clock was advanced. `stoppedNs`: process.hrtime when the VM was
   * stopped. @throws HOLDFAST_E_UNSUPPORTED unless QEMU's memory is what its device state says
   */
  advance(pause: { readonly statePath: string; readonly stoppedNs: bigint }): number;
  /** The VM stands still for another reason than a pause; that time is not given back. */
  forget(): void;
}

export interface ReplicaDiskOptions {
  readonly id: string;
  /** A raw file of that size, made sparse if it is not there, or a block device. */
  readonly imagePath: string;
  /** An existing directory for the journal, the map, and while a synchronisation needs it, the aside. */
  readonly metaDir: string;
  readonly imageBytes: number;
  /** At least 8 MiB. */
  readonly journalBytes: number;
  /** Take an image that has content, and no metadata of ours, as the replica: it will be overwritten. */
  readonly adopt?: boolean | undefined;
}

export interface DiskStoreOptions {
  readonly disks: readonly ReplicaDiskOptions[];
  readonly onEvent: (event: DiskStoreEvent) => void;
}

export type DiskStoreEvent =
  /** All epochs up to this one are in the images. */
  | { readonly type: 'applied'; readonly epoch: number }
  /** All epochs up to this one survive a power failure of this host. */
  | { readonly type: 'durable'; readonly epoch: number }
  /** What a new synchronisation brought is in the images now. */
  | { readonly type: 'merged'; readonly epoch: number }
  /**
   * An image or a journal could not be written. What was committed stays, in the journal; nothing is
   * received any more until a new session, or open(), has tried it again with success.
   */
  | {
      readonly type: 'fault';
      readonly id: string;
      readonly code: NativeErrorCode;
      readonly errno: number;
      readonly message: string;
    };

export interface OpenedDisk {
  readonly id: string;
  /** The image has no data. */
  readonly fresh: boolean;
  /** 32 hexadecimal digits; all zero: none. */
  readonly syncId: string;
  /** The map knows of all that was written since `syncId`. */
  readonly trusted: boolean;
  readonly markedBytes: number;
  /** The epoch that the image is, exactly; 0: none. */
  readonly committedEpoch: number;
  /** The journal had something for the image. */
  readonly recovered: boolean;
}

export interface ReplicaDiskStats {
  readonly id: string;
  readonly journalBytes: number;
  readonly journalUsedBytes: number;
  /** Of log, since open(). */
  readonly receivedBytes: number;
  readonly baseBytes: number;
  /** Of log. */
  readonly appliedBytes: number;
  readonly committedEpoch: number;
  readonly durableEpoch: number;
  /** What a synchronisation brought aside is being written to the image. */
  readonly merging: boolean;
}

/**
 * The replicas of a VM's disks on the backup (docs/disk.md): images, journals, maps. One per VM; sessions
 * of a Receiver fill it, one after the other.
 */
export interface DiskStore {
  /**
   * Creates what is missing, locks the images against other processes, brings them to the last durable
   * epoch. Rejects with HOLDFAST_E_DISK, HOLDFAST_E_DISK_FOREIGN, HOLDFAST_E_NO_SPACE or HOLDFAST_E_SYSCALL;
   * then nothing is open. On an open store: tries again what had failed.
   */
  open(): Promise<readonly OpenedDisk[]>;
  /** Empty unless it is open. */
  stats(): readonly ReplicaDiskStats[];
  /**
   * At a takeover, after fence(): the images are on stable storage, and let go for a disk server that
   * writes; the journals will never be applied to them. Idempotent.
   */
  retire(): Promise<void>;
  /** Everything stays; what is committed is durable by then, unless a disk has failed. Idempotent. */
  close(): Promise<void>;
}

export interface NativeBinding extends PlugBinding, TraceBinding, CheckpointBinding {
  probeKernel(): Promise<KernelProbe>;
  /** Takes well under a millisecond and waits for nothing. */
  probeSenders(): SenderProbe;
  /** Mappings of regular (tmpfs, hugetlbfs) files of at least `minBytes`, or of memfds. */
  findRamMappings(pid: number, minBytes: number): Promise<readonly RamMapping[]>;
  /** Process id at the other end of a Unix stream socket (SO_PEERCRED). */
  peerPid(socketFd: number): number;
  /** Sends `data` with `fd` attached (SCM_RIGHTS) on a Unix socket; all or an error. */
  sendWithFd(socketFd: number, data: Uint8Array, fd: number): void;
  /**
   * Locks an open file for writers, until that descriptor is closed or its process ends (flock(2)).
   * @returns false if another open file of it has the lock
   */
  lockFile(fd: number): boolean;
  /** xxh3-64 of [0, bytes) of a file, for tests and verification; holes count as zeros. */
  hashFile(path: string, bytes: number): Promise<string>;
  /** Page numbers (first `limit`) at which two files of `bytes` length differ. */
  compareFiles(
    a: string,
    b: string,
    bytes: number,
    pageSize: number,
    limit: number,
  ): Promise<readonly number[]>;
  /** Live native threads and open engines: a leak check for tests. */
  debugCounters(): { readonly threads: number; readonly engines: number; readonly descriptors: number };
  readonly DiskStore: new (options: DiskStoreOptions) => DiskStore;
  readonly EarlyGuest: new (options: EarlyGuestOptions) => EarlyGuest;
  readonly GuestClock: new (options: { readonly pid: number }) => GuestClock;
  readonly PrimaryEngine: new (options: PrimaryEngineOptions) => PrimaryEngine;
  readonly Receiver: new (options: ReceiverOptions) => Receiver;
  readonly Relay: new (options: RelayOptions) => Relay;
}

const load = createRequire(import.meta.url)('node-gyp-build') as (dir: string) => NativeBinding;

export const native: NativeBinding = load(packageRoot());
