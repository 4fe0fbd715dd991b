/**
 * A VM that QEMU has stopped because a disk failed it: `werror=` and `rerror=` say when; by default a write for
 * which there is no room does. The request that failed is kept, and is tried again when the VM goes on, here or,
 * as part of its device state, on the backup.
 *
 *   BLOCK_IO_ERROR, or found so ─► query-status: io-error? ─► onStopped, with the disk
 *        full: its file system is looked at every second ─► onRoom
 *   RESUME, whoever did it ─► onGoesOn
 */
import { stat, statfs } from 'node:fs/promises';
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { QmpClient } from '../qmp/client.js';
import type { Drive } from '../vm/describe.js';

const ROOM_WATCH_MS = 1_000;
/** More than was free when it stopped. */
const ROOM_BYTES = 1 << 20;

/** Why the VM stands still. */
export interface IoErrorStop {
  /** Of the disk. */
  readonly id: string;
  readonly image: string;
  /** No room for a write; else an I/O error. */
  readonly isFull: boolean;
  /** Its file system tells when there is room again. */
  readonly goesOnByItself: boolean;
}

interface Found {
  readonly stop: IoErrorStop;
  readonly freeBytesAtStop: number | undefined;
}

export interface IoErrorWatchOptions {
  readonly qmp: Pick<QmpClient, 'on' | 'pipeline'>;
  readonly drives: readonly Pick<Drive, 'name' | 'file' | 'server'>[];
  /** Settles when nothing of ours is under way that stops or starts the VM. */
  readonly idle: () => Promise<void>;
  readonly log: Logger;
  readonly onStopped: (stop: IoErrorStop) => void;
  readonly onRoom: () => void;
  readonly onGoesOn: () => void;
  /** Free bytes of the file system of an image; undefined where it cannot be known. For tests. */
  readonly freeBytesOf?: (image: string) => Promise<number | undefined>;
  readonly roomWatchMs?: number;
}

export class IoErrorWatch {
  readonly #options: IoErrorWatchOptions;
  #stop: IoErrorStop | undefined;
  /** QEMU has told of an error since the VM was last started. */
  #errorSeen = false;
  /** What makes an answer of QEMU's old. */
  #changes = 0;
  #looking = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: IoErrorWatchOptions) {
    this.#options = options;
    options.qmp.on('BLOCK_IO_ERROR', ({ data }) => {
      if (data.action !== 'stop') return;
      this.#errorSeen = true;
      void this.look();
    });
    options.qmp.on('STOP', () => {
      if (this.#errorSeen) void this.look();
    });
    options.qmp.on('RESUME', () => {
      this.#changes += 1;
      this.#errorSeen = false;
      if (this.#stop === undefined) return;
      this.end();
      options.onGoesOn();
    });
  }

  /** Undefined while the VM has not stopped itself. */
  get stop(): IoErrorStop | undefined {
    return this.#stop;
  }

  end(): void {
    this.#stop = undefined;
    clearInterval(this.#timer);
  }

  /** QEMU tells of the error before it stops, and a pause of ours may come in between: its state counts. */
  async look(): Promise<void> {
    this.#changes += 1;
    if (this.#looking || this.#stop !== undefined) return;
    this.#looking = true;
    try {
      let changes: number;
      let found: Found | undefined;
      do {
        changes = this.#changes;
        await this.#options.idle();
        found = await this.#ask();
      } while (changes !== this.#changes);
      if (found !== undefined) this.#tell(found);
    } catch (error) {
      this.#options.log.warn({ err: toHoldfastError(error).message }, 'asking QEMU why it stopped');
    } finally {
      this.#looking = false;
    }
  }

  async #ask(): Promise<Found | undefined> {
    const { qmp, drives, freeBytesOf = freeBytes } = this.#options;
    const [state, blocks] = await Promise.all(
      qmp.pipeline([{ execute: 'query-status' }, { execute: 'query-block' }]),
    );
    if (state.status !== 'io-error') return undefined;
    const failed = blocks.find(({ 'io-status': status }) => status !== undefined && status !== 'ok');
    const name = failed?.device || failed?.qdev || failed?.inserted?.['node-name'] || '(unknown)';
    const drive = drives.find((each) => each.name === name);
    const image = drive?.server?.imagePath ?? drive?.file ?? '';
    const isFull = failed?.['io-status'] === 'nospace';
    const freeBytesAtStop = isFull ? await freeBytesOf(image) : undefined;
    return {
      stop: { id: drive?.server?.id ?? name, image, isFull, goesOnByItself: freeBytesAtStop !== undefined },
      freeBytesAtStop,
    };
  }

  #tell({ stop, freeBytesAtStop }: Found): void {
    this.#stop = stop;
    if (freeBytesAtStop !== undefined) this.#watchRoom(stop.image, freeBytesAtStop);
    this.#options.onStopped(stop);
  }

  #watchRoom(image: string, freeBytesAtStop: number): void {
    const { freeBytesOf = freeBytes, onRoom, roomWatchMs = ROOM_WATCH_MS } = this.#options;
    const look = async (): Promise<void> => {
      const bytes = await freeBytesOf(image);
      if (this.#stop !== undefined && bytes !== undefined && bytes >= freeBytesAtStop + ROOM_BYTES) onRoom();
    };
    this.#timer = setInterval(() => void look(), roomWatchMs);
    this.#timer.unref();
  }
}

/** A block device's room (a thin volume's) is not its file system's. */
const freeBytes = async (image: string): Promise<number | undefined> => {
  try {
    if (!(await stat(image)).isFile()) return undefined;
    const { bfree, bsize } = await statfs(image);
    return bfree * bsize;
  } catch {
    return undefined;
  }
};

/** `its disk vda, /srv/vda.raw, is full`. */
export const stopText = ({ id, image, isFull }: IoErrorStop): string =>
  `its disk ${id}${image === '' ? '' : `, ${image},`} ${isFull ? 'is full' : 'fails with I/O errors'}`;

/** What to do about it. */
export const stopCure = ({ isFull, goesOnByItself }: IoErrorStop): string => {
  const move = '`holdfast switchover` moves it to the backup, where the request is tried again';
  return goesOnByItself
    ? `Make room in its file system: the VM goes on by itself. Or ${move}.`
    : `${isFull ? 'Make room' : 'Mend it'}, \`holdfast detach\`, then QMP \`cont\`. Or, at once: ${move}.`;
};
