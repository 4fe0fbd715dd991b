/**
 * The output gate: what holds the guest's network output until the backup has
 * the checkpoint that explains it (DESIGN part 3, output commit).
 *
 *   guest ──► [ output of the running epoch ] ──► [ epochs not yet acknowledged ] ──► tap
 *
 * A gate knows no epochs; the primary's state machine calls it in order:
 *
 *   prepare()         VM about to be stopped
 *   install()         VM stopped, before the first protected epoch
 *   boundary          VM stopped: what was held so far belongs to the epoch being captured.
 *                     Gates in QEMU by boundaryCommands(), gates beside it by boundary()
 *   release()         after the acknowledgement: all before the last boundary leaves
 *   open()            give up holding: all output leaves, in order, and holds no more
 *
 * An epoch that is given up needs no word: its output stays behind the boundary
 * until the next epoch that is acknowledged explains it, too.
 */
import type { QmpClient } from '../qmp/client.js';
import type { QmpRequest } from '../qmp/commands.js';

export interface GateStats {
  /** Held now. */
  readonly heldFrames: number;
  readonly heldBytes: number;
  /** The most that was held at once. */
  readonly heldBytesMax: number;
  /** How often the bound was reached, so that the guest had to wait, and for how long in all. */
  readonly backPressure: number;
  readonly stalledMs: number;
  /** What was lost on the way out, for instance because the tap was down. */
  readonly droppedFrames: number;
}

export interface OutputGate {
  readonly kind: 'filter-buffer' | 'relay' | 'plug' | 'none';
  /** True when output is held: installed now, or found in place from an earlier run. */
  readonly installed: boolean;
  /** False: nobody learns when output waits, so epochs are paced by the clock alone. */
  readonly seesOutput: boolean;
  /** Finds what an earlier run of ours left in place, and takes it over with what it holds. */
  adopt(qmp: QmpClient): Promise<boolean>;
  install(qmp: QmpClient): Promise<void>;
  /**
   * The VM is about to be stopped, and `stop` is sent when this has settled: a gate that lets the guest
   * wait takes in what QEMU has ready, for QEMU drops it when it stops. Never rejects.
   */
  prepare?(): Promise<void>;
  /**
   * For gates in QEMU: the boundary as commands for the same write as the pause's others; all must
   * have succeeded before the VM runs.
   */
  boundaryCommands(): readonly QmpRequest[];
  /** For gates beside QEMU: called once `stop` has answered; the VM may run when it has settled. */
  boundary(): Promise<void>;
  release(qmp: QmpClient): Promise<void>;
  open(qmp: QmpClient): Promise<void>;
  /** `listener` is called when the first frame of the running epoch is held, at most once per epoch. */
  onOutput(listener: () => void): void;
  /** As last known; undefined where nobody counts. */
  stats(): GateStats | undefined;
  /** Lets go of connections. What is held stays held. */
  close(): Promise<void>;
}

/** QEMU's filters are worked by its monitor, and deliver nothing while the VM is stopped; other gates need neither. */
export const isInQemu = (gate: Pick<OutputGate, 'kind'>): boolean => gate.kind === 'filter-buffer';

/** No output is held: for measurements, or guests without a network. Output commit is NOT kept. */
export class NoGate implements OutputGate {
  readonly kind = 'none';
  readonly installed = false;
  readonly seesOutput = false;
  async adopt(): Promise<boolean> {
    return false;
  }
  async install(): Promise<void> {}
  boundaryCommands(): readonly QmpRequest[] {
    return [];
  }
  async boundary(): Promise<void> {}
  async release(): Promise<void> {}
  async open(): Promise<void> {}
  onOutput(): void {}
  stats(): undefined {
    return undefined;
  }
  async close(): Promise<void> {}
}
