/**
 * The replicas of a VM's disks on the backup: image, journal and map of each,
 * behind one native store. They outlive the generations, as images outlive
 * memory: whoever fills a generation takes them, and the last one to let go
 * closes them.
 *
 *   session ─ take ─► open, recover ─► base, log ─► commit ─► applied …
 *                                                      └─ takeover: retire ─► the disk servers write
 *   last generation dropped ─ let go ─► closed; what is committed stays
 */

import type { SessionDisk } from '../control/messages.js';
import { ConfigError, DiskError, type HoldfastError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { DiskStore } from '../native.js';
import { type Replacement, replaceText } from '../vm/command-line.js';

/** One disk of the replica, as the operator sees it. */
export interface ReplicaDiskStatus {
  readonly id: string;
  readonly image: string;
  readonly imageBytes: number;
  readonly journalUsedBytes: number;
  readonly journalBytes: number;
  readonly receivedBytes: number;
  readonly appliedBytes: number;
  /** The last epoch that a crash of this host could not take. */
  readonly durableEpoch: number;
  /** Why nothing is received any more. */
  readonly fault?: string;
  /** Nobody has it open: all this is from when it was closed, or could not be opened. */
  readonly closed?: true;
}

export interface ReplicaDisk {
  readonly id: string;
  readonly imagePath: string;
  readonly imageBytes: number;
  readonly metaDir: string;
}

/** Image or journal failed; nothing more is received for the disk. */
export interface DiskFault {
  readonly id: string;
  readonly code: string;
  readonly errno: number;
  readonly message: string;
}

/** The native store behind the replicas. */
export type ReplicaStore = DiskStore;

export interface ReplicaStoreOptions {
  readonly disks: readonly (ReplicaDisk & { readonly journalBytes: number; readonly adopt: boolean })[];
  readonly onFault: (fault: DiskFault) => void;
}

export interface ReplicaKeeperOptions {
  /** Directory of an image's journal and map; made if it is not there. */
  readonly metaDirOf: (imagePath: string) => Promise<string>;
  readonly openStore: (options: ReplicaStoreOptions) => ReplicaStore;
  readonly journalBytes: number;
  readonly adopt: boolean;
  readonly log: Logger;
  readonly onFault: (fault: DiskFault, image: string) => void;
}

/** What a generation holds while it may need the disks. */
export interface TakenDisks {
  readonly disks: readonly ReplicaDisk[];
  readonly store: ReplicaStore;
  /** Idempotent. */
  letGo(): Promise<void>;
}

interface Open {
  readonly disks: readonly ReplicaDisk[];
  readonly store: ReplicaStore;
  readonly faults: Map<string, DiskFault>;
  takers: number;
  isRetired: boolean;
}

export class ReplicaKeeper {
  readonly #options: ReplicaKeeperOptions;
  #open: Open | undefined;
  /** What was wrong when they were closed, or could not be opened: it is, until they are opened again. */
  #left: readonly ReplicaDiskStatus[] = [];
  #queue: Promise<unknown> = Promise.resolve();

  constructor(options: ReplicaKeeperOptions) {
    this.#options = options;
  }

  status(): readonly ReplicaDiskStatus[] {
    return this.#open === undefined ? this.#left : this.#statusOf(this.#open);
  }

  #statusOf(open: Open): readonly ReplicaDiskStatus[] {
    const stats = new Map(open.store.stats().map((each) => [each.id, each]));
    return open.disks.map(({ id, imagePath, imageBytes }) => {
      const counts = stats.get(id);
      const fault = open.faults.get(id)?.message;
      return {
        id,
        image: imagePath,
        imageBytes,
        journalUsedBytes: counts?.journalUsedBytes ?? 0,
        journalBytes: counts?.journalBytes ?? this.#options.journalBytes,
        receivedBytes: counts?.receivedBytes ?? 0,
        appliedBytes: counts?.appliedBytes ?? 0,
        durableEpoch: counts?.durableEpoch ?? 0,
        ...(fault === undefined ? {} : { fault }),
      };
    });
  }

  /**
   * Opens the images, or shares them with the generation that has them open.
   * @throws ConfigError (other disks are in use), NoSpaceError, DiskError: what is wrong with which image
   */
  take(asked: readonly SessionDisk[], replacements: readonly Replacement[]): Promise<TakenDisks> {
    return this.#exclusively(async () => {
      const disks = await Promise.all(
        asked.map(async ({ id, imagePath, imageBytes }) => {
          const path = replaceText(imagePath, replacements);
          return { id, imagePath: path, imageBytes, metaDir: await this.#options.metaDirOf(path) };
        }),
      );
      const open = this.#open ?? (await this.#openStore(disks));
      if (JSON.stringify(open.disks) !== JSON.stringify(disks)) {
        throw new ConfigError('the VM has other disks than those of its checkpoint here', {
          cure: 'Detach it and protect it anew: `holdfast detach` on its host.',
        });
      }
      if (open.faults.size > 0) await this.#recover(open);
      open.takers += 1;
      let isHeld = true;
      return {
        disks: open.disks,
        store: open.store,
        letGo: () =>
          this.#exclusively(async () => {
            if (!isHeld) return;
            isHeld = false;
            open.takers -= 1;
            if (open.takers === 0 && this.#open === open) await this.#close(open);
          }),
      };
    });
  }

  /**
   * Applies once more what could not be applied, if there is such: before a fence that failed for it is
   * tried again.
   */
  async recover(): Promise<void> {
    await this.#exclusively(async () => {
      if (this.#open !== undefined && this.#open.faults.size > 0) await this.#recover(this.#open);
    });
  }

  /** Whoever holds them still: what is committed stays in images and journals. */
  async close(): Promise<void> {
    await this.#exclusively(async () => {
      if (this.#open !== undefined) await this.#close(this.#open);
    });
  }

  /** At a takeover, after the fence: images are on stable storage, journals closed for good. Idempotent. */
  async retire(taken: TakenDisks): Promise<void> {
    await this.#exclusively(async () => {
      const open = this.#open;
      // A journal that was not closed for good would be applied over what the VM writes.
      if (open?.store !== taken.store) throw new DiskError('the replicas are closed already');
      if (open.isRetired) return;
      await open.store.retire();
      open.isRetired = true;
    });
  }

  async #openStore(disks: readonly ReplicaDisk[]): Promise<Open> {
    const { openStore, journalBytes, adopt, log, onFault } = this.#options;
    const faults = new Map<string, DiskFault>();
    const store = openStore({
      disks: disks.map((disk) => ({ ...disk, journalBytes, adopt })),
      onFault: (fault) => {
        faults.set(fault.id, fault);
        onFault(fault, disks.find(({ id }) => id === fault.id)?.imagePath ?? '');
      },
    });
    try {
      for (const found of await store.open()) log.info({ ...found }, 'replica of a disk');
    } catch (error) {
      await store.close().catch(() => {});
      const failure = toHoldfastError(error);
      this.#left = this.#refused(disks, failure);
      throw failure;
    }
    this.#left = [];
    this.#open = { disks, store, faults, takers: 0, isRetired: false };
    return this.#open;
  }

  /** The cause may be gone; what is committed is in the journals, and is applied now. */
  async #recover(open: Open): Promise<void> {
    const before = [...open.faults];
    open.faults.clear();
    try {
      await open.store.open();
    } catch (error) {
      for (const [id, fault] of before) open.faults.set(id, fault);
      throw toHoldfastError(error);
    }
  }

  /** The failure is that of the disk that it names; where it names none, of all. */
  #refused(disks: readonly ReplicaDisk[], { message }: HoldfastError): readonly ReplicaDiskStatus[] {
    const isNamed = ({ imagePath, metaDir }: ReplicaDisk): boolean =>
      message.includes(imagePath) || message.includes(metaDir);
    const isAnyNamed = disks.some(isNamed);
    return disks.map((disk) => ({
      ...{ id: disk.id, image: disk.imagePath, imageBytes: disk.imageBytes },
      ...{ journalUsedBytes: 0, journalBytes: this.#options.journalBytes },
      ...{ receivedBytes: 0, appliedBytes: 0, durableEpoch: 0, closed: true as const },
      ...(isAnyNamed && !isNamed(disk) ? {} : { fault: message }),
    }));
  }

  async #close(open: Open): Promise<void> {
    // Of a VM that runs here they are no replicas any more.
    const fails = open.faults.size > 0 && !open.isRetired;
    this.#left = fails ? this.#statusOf(open).map((status) => ({ ...status, closed: true as const })) : [];
    this.#open = undefined;
    await open.store.close();
  }

  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work);
    this.#queue = done.catch(() => {});
    return done;
  }
}
