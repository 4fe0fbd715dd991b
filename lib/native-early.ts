/**
 * The data plane's part of VMs that run before their memory is there: EarlyGuest of the addon
 * (native/postcopy/early_guest.h), on the host where the VM runs; and what the other side tells of serving.
 *
 *   new EarlyGuest({ pid, ram, emptyAll, origin, onEvent })   the VM waits, stopped, with -incoming
 *   start() ─► 'listed' ─► load its device state, let it run ─► 'complete' ─► release() ─► close()
 *
 * The same for a checkpoint on this host: `origin: { layers }`.
 */
import type { LayerFiles } from './checkpoint/binding.js';
import type { NativeErrorCode, RamMapping, Receiver } from './native.js';

export type PageOrigin =
  /** Another host, which comes by the page stream to this receiver's port, with its session's token. */
  | { readonly receiver: Receiver }
  /** The layers of a checkpoint, bottom first; each page is checked, and a damaged one is the end: `failed`. */
  | { readonly layers: readonly LayerFiles[] };

export interface EarlyGuestOptions {
  /** QEMU's process. */
  readonly pid: number;
  /** Guest RAM in it, of findRamMappings(); the file is written to, and needs room for what arrives. */
  readonly ram: Pick<RamMapping, 'hostAddress' | 'sizeBytes' | 'fileOffset'>;
  /** True: nothing of what the file holds counts. False: all of it does, but the pages that are listed. */
  readonly emptyAll: boolean;
  readonly origin: PageOrigin;
  readonly onEvent: (event: EarlyGuestEvent) => void;
}

export type EarlyGuestEvent =
  /** Once: it is known what is lacking, and its places are empty. From now on the VM may run. */
  | { readonly type: 'listed'; readonly pages: number }
  /** Nothing comes for now; the guest waits where it needs a page. After `complete`: the other side knows. */
  | { readonly type: 'lost'; readonly code: NativeErrorCode; readonly message: string }
  | { readonly type: 'found' }
  /** Nothing is lacking any more. */
  | { readonly type: 'complete' }
  /** The end: nothing is served any more, and the VM waits for ever. */
  | { readonly type: 'failed'; readonly code: NativeErrorCode; readonly message: string };

export interface EarlyGuestStats {
  readonly listed: boolean;
  /** Listed, and of these still lacking. */
  readonly pages: number;
  readonly pagesLeft: number;
  /** Arrived because a fault waited for them, or in the background; `zeroPages` of both. */
  readonly demandedPages: number;
  readonly backgroundPages: number;
  readonly zeroPages: number;
  readonly faults: number;
  readonly waitingFaults: number;
  /** From a fault's being read to its page's being there, microseconds. */
  readonly faultP50Us: number;
  readonly faultP99Us: number;
  readonly faultMaxUs: number;
}

export interface EarlyGuest {
  /**
   * Makes QEMU open a userfaultfd, and answers its faults from now on. Rejects with HOLDFAST_E_INJECT,
   * HOLDFAST_E_UNSUPPORTED or HOLDFAST_E_RAM_MAPPING; then QEMU is as it was.
   */
  start(): Promise<{ readonly injectMs: number }>;
  stats(): EarlyGuestStats;
  /** Serves no more; the guest waits for what it lacks, and stats() say for good how much that is. Idempotent. */
  stop(): Promise<void>;
  /** Answers no more, and leaves no trace in QEMU: after `complete`, or for a VM that ends. Idempotent. */
  release(): Promise<void>;
  /** Without release() the guest waits for ever. Idempotent. */
  close(): Promise<void>;
}

/** What the faults over there have cost. */
export interface FaultCost {
  readonly faults: number;
  readonly faultP50Us: number;
  readonly faultP99Us: number;
  readonly faultMaxUs: number;
}

export interface ServePagesOptions {
  readonly host: string;
  readonly port: number;
  readonly token: Uint8Array;
  /** To connect, and for the greeting. */
  readonly timeoutMs: number;
}

/** Of PrimaryEngine.servePages(), over all its connections. */
export interface ServeProgress {
  readonly pages: number;
  /** Not sent yet. */
  readonly pagesLeft: number;
  readonly demandedPages: number;
  readonly backgroundPages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** On which the other side has asked for its pages. */
  readonly connections: number;
}
