/** The part of the addon that works the kernel's plug qdisc, typed; errors are as in lib/native.ts. */

export interface PlugOptions {
  /** Names of tap devices in the network namespace of the calling thread; at least one. */
  readonly taps: readonly string[];
  /** Per tap, up to 2^31 - 1; the kernel drops what comes beyond it. */
  readonly heldBytesMax: number;
}

/** Of all taps together, as they were before the change that tells them. */
export interface PlugStats {
  readonly heldFrames: number;
  readonly heldBytes: number;
  /** Since the gate was installed: what came beyond the limit. */
  readonly droppedFrames: number;
}

/**
 * The kernel's plug qdisc on an ifb for each tap (native/output/plug.h). Calls are carried out in order.
 * The constructor throws HOLDFAST_E_UNSUPPORTED where libnl-route-3 is not installed.
 */
export interface Plug {
  /** True: an earlier process left it in place, and it holds. Removes what was half made. */
  adopt(): Promise<boolean>;
  /** Holds from now on; a failure leaves the taps as they were. */
  install(): Promise<void>;
  /** What came since the last call is the last epoch. Forgets how much an unreleased last epoch was! */
  buffer(): Promise<PlugStats>;
  /** As many frames leave, the oldest first, as the last epoch had. */
  releaseOne(): Promise<PlugStats>;
  /** All leaves, in order, and the taps are as they were. */
  remove(): Promise<void>;
  /** What is held stays held. */
  close(): Promise<void>;
}

/** Whether this host has what `Plug` needs, tried in a network namespace that lives no longer. */
export interface PlugProbe {
  readonly ok: boolean;
  /** The first thing that is missing. */
  readonly lacks?: 'libnl' | 'namespace' | 'ifb' | 'redirect' | 'qdisc';
  readonly reason?: string;
}

export interface PlugBinding {
  probePlug(): Promise<PlugProbe>;
  readonly Plug: new (options: PlugOptions) => Plug;
}
