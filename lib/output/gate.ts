/**
 * The output gate: what holds the guest's network output until the backup has
 * the checkpoint that explains it (DESIGN part 3, output commit).
 *
 *   guest ──► [ f1: output of the running epoch ] ──► [ f2: epochs not yet acknowledged ] ──► tap
 *
 * A gate knows no epochs; the primary's state machine calls it in order:
 *
 *   install()         VM stopped, before the first protected epoch
 *   boundary()        VM stopped: what was held so far belongs to the epoch being captured
 *   release()         VM running, after the acknowledgement: that epoch's output leaves
 *   open()            give up holding: all output leaves, in order, and the gate is gone
 */
import type { QmpClient } from '../qmp/client.js';
import type { QmpRequest } from '../qmp/commands.js';

export interface OutputGate {
  readonly kind: 'filter-buffer' | 'none';
  /** True when output is held: installed now, or found in place from an earlier run. */
  readonly installed: boolean;
  /** Finds what an earlier run of ours left in place, and takes it over with what it holds. */
  adopt(qmp: QmpClient): Promise<boolean>;
  install(qmp: QmpClient): Promise<void>;
  /**
   * Commands that move the held output behind the boundary, for the same write as the pause's
   * others; all must have succeeded before the VM runs.
   */
  boundaryCommands(): readonly QmpRequest[];
  release(qmp: QmpClient): Promise<void>;
  open(qmp: QmpClient): Promise<void>;
}

/** No output is held: for measurements, or guests without a network. Output commit is NOT kept. */
export class NoGate implements OutputGate {
  readonly kind = 'none';
  readonly installed = false;
  async adopt(): Promise<boolean> {
    return false;
  }
  async install(): Promise<void> {}
  boundaryCommands(): readonly QmpRequest[] {
    return [];
  }
  async release(): Promise<void> {}
  async open(): Promise<void> {}
}
