/** What a hand-off is told, what it tells meanwhile, and what it took. */
import type { HoldfastError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import type { VmDescription } from '../vm/describe.js';
import type { ProcessIdentity } from '../vm/process.js';
import type { HandoffSource } from './source.js';

export interface HandoffOptions {
  /** Monitor of the VM; nobody else may hold it. */
  readonly qmp: string;
  /** The new QEMU: a path, or a name to be found in PATH. Default: the path of the one that runs, as it is now. */
  readonly binary?: string | undefined;
  /** Arguments for it, without the binary. Default: those of the one that runs. Where RAM is, is kept. */
  readonly argv?: readonly string[] | undefined;
  /** Gives up, as long as the VM was not stopped. */
  readonly signal?: AbortSignal | undefined;
  readonly apart?: HandoffApart | undefined;
  /** The new QEMU runs, and the old one has not ended yet: whoever knows the VM by its process is told here. */
  readonly whenItRuns?: ((from: ProcessIdentity, to: ProcessIdentity) => Promise<void>) | undefined;
  readonly onProgress?: ((progress: HandoffProgress) => void) | undefined;
  /** The addon; default: loaded. */
  readonly native?: Pick<NativeBinding, 'peerPid' | 'findRamMappings' | 'sendWithFd'> | undefined;
}

/**
 * The two QEMUs share nothing: the one that had the VM stays as it was when it was stopped (coordinator.ts). What
 * throws before whileBoth() ends the hand-off, and the VM is where it was.
 */
export interface HandoffApart {
  /** Their names; nothing is made yet. @throws UnsupportedVmError */
  readonly filesFor: (vm: VmDescription, ramPath: string) => ApartFiles;
  /**
   * The VM can be handed over: its disks' overlays are there when it settles.
   * @param leftover files of a new QEMU that a killed command left, which was ended just now
   */
  readonly makeFiles: (leftover: readonly string[]) => Promise<void>;
  /** Before the new QEMU starts: when it settles its RAM file is there, with most of what belongs in it. */
  readonly copyAhead: () => Promise<void>;
  /** The new QEMU is ready. The VM runs, also when this settles. */
  readonly beforeStop: (source: HandoffSource) => Promise<void>;
  /** The VM runs, and has written memory since: what of that can be, is in the new QEMU's RAM file when this settles. */
  readonly catchUp: () => Promise<void>;
  /** The VM was stopped: the new QEMU's RAM file has all of its RAM when this settles. */
  readonly whileStopped: () => Promise<void>;
  /** The VM is where it was, and the new QEMU has ended. */
  readonly giveUp: () => Promise<void>;
  /** When the new QEMU runs, before the old one ends. Must not throw. */
  readonly whileBoth: (stopped: QmpClient) => Promise<void>;
}

export interface ApartFiles {
  /** For the new QEMU's RAM. */
  readonly ramTo: string;
  /** Overlay, a qcow2 image, by the image beneath it. */
  readonly overlays: ReadonlyMap<string, string>;
}

export interface HandoffSide extends ProcessIdentity {
  readonly binary: string;
  readonly version: string;
}

export type HandoffProgress =
  | {
      readonly step: 'starting';
      readonly from: HandoffSide;
      readonly binary: string;
      readonly ramBytes: number;
      readonly name?: string | undefined;
    }
  | { readonly step: 'ready'; readonly to: HandoffSide; readonly startMs: number }
  | { readonly step: 'runs'; readonly to: HandoffSide; readonly downtimeMs: number }
  | { readonly step: 'warning'; readonly error: HoldfastError };

/** Of the downtime; they add up to it. */
export interface HandoffParts {
  /** Until the VM has stopped, its disks at rest. */
  readonly stopMs: number;
  /** Saving the devices' state, and loading it over there; first what is left of RAM, where it is not shared. */
  readonly stateMs: number;
  /** Names and network. */
  readonly namesMs: number;
  /** Until the VM runs. */
  readonly resumeMs: number;
}

export interface HandoffResult {
  readonly from: HandoffSide;
  readonly to: HandoffSide;
  /** False: it was left, stopped, for not everything that ends with the VM's process knows the new one (a warning). */
  readonly fromEnded: boolean;
  /** False: it was paused, and is. */
  readonly running: boolean;
  /** From before `stop` until `cont` was answered; 0 for a VM that was paused. */
  readonly downtimeMs: number;
  readonly parts: HandoffParts;
  /** Starting the new QEMU, while the VM ran. */
  readonly startMs: number;
  /** All of it, until the QEMU that had the VM has ended. */
  readonly totalMs: number;
}
