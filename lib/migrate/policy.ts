/**
 * What a migration's policies see and say. A policy is a pure function over the rounds so far; both
 * engines, ours and QEMU's own, fill in the same figures, so that policies can be compared.
 */

/** One pass over what was dirty when it began. The first is the whole of RAM. */
export interface MigrationRound {
  /** Pages whose bytes travelled. */
  readonly pages: number;
  /** Pages of zeros, told but not sent. */
  readonly zeroPages: number;
  /**
   * Beside these: left out, for the guest had written them again since the round began. They are among
   * `dirtyPages`. An engine that sends them all the same has none.
   */
  readonly skippedPages?: number;
  /** Of the wire. */
  readonly bytes: number;
  /** From this round's begin to the next one's. */
  readonly roundMs: number;
  /** Dirty at its end: what stop-and-copy would have to send now. */
  readonly dirtyPages: number;
  /** Beside `pages`: those that were read from a disk over there. */
  readonly diskPages?: { readonly verified: number };
}

export interface MigrationLimits {
  /** The downtime that was asked for. */
  readonly downtimeMs: number;
  readonly pageBytes: number;
  /** What stops the VM beside the pages: device state and its loading, as measured; 0 if not known yet. */
  readonly overheadMs: number;
}

export type MigrationStep = 'next-round' | 'stop-and-copy' | 'post-copy';

export interface MigrationDecision {
  readonly step: MigrationStep;
  /** If the VM were stopped now. */
  readonly expectedDowntimeMs: number;
  /** For people: what was seen, and why it means this. */
  readonly reason: string;
}

export type MigrationPolicy = (
  rounds: readonly MigrationRound[],
  limits: MigrationLimits,
) => MigrationDecision;
