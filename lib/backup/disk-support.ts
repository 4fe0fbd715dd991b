/**
 * What a backup needs for VMs with disks, from lib/disk and the addon: the store
 * behind the replicas, and the disk servers of a standby. Structural, so that
 * the roles can be tested without either.
 */
import type { Logger } from '../log.js';
import type { Replacement } from '../vm/command-line.js';
import type { ProcessIdentity } from '../vm/process.js';
import type { FoundServer } from './finish-takeover.js';
import type { ReplicaDisk, ReplicaStore, ReplicaStoreOptions } from './replica-disks.js';

/** The disk servers of one standby: they answer its reads; its writes wait until it is the VM. */
export interface StandbyDisks {
  /** QEMU's, by which the servers are found again. */
  readonly sockets: readonly string[];
  /** QEMU's arguments over the servers' sockets. @param argv of the session, its replacements applied */
  over(argv: readonly string[], replacements: readonly Replacement[]): readonly string[];
  /** Before QEMU: it connects when it starts. */
  start(): Promise<void>;
  /** The servers end with it from now on. */
  bind(vm: ProcessIdentity): Promise<void>;
  /** Idempotent: writes go to the images from now on. The servers are then the next primary's to control. */
  activate(): Promise<void>;
  end(): Promise<void>;
}

export interface StandbyDisksOptions {
  readonly disks: readonly ReplicaDisk[];
  /** For QEMU's sockets. */
  readonly dir: string;
  /** Tells the sockets of one standby from those of the next one. */
  readonly launch: number;
  readonly log: Logger;
}

export interface DiskSupport {
  /** Directory of an image's journal and map; made if it is not there. */
  metaDirOf(diskDir: string, imagePath: string): Promise<string>;
  openStore(options: ReplicaStoreOptions): ReplicaStore;
  standby(options: StandbyDisksOptions): StandbyDisks;
  /** Servers of VMs that run, by QEMU's sockets; whether one is active is the server's own word. */
  find(sockets: readonly string[]): Promise<readonly FoundServer[]>;
}
