/**
 * Everything that stops, saves or starts the VM, one thing at a time.
 *
 * Work is queued: a resume that is under way ends before the next pause, and
 * whoever ends protection waits for what runs (`idle`). Because only one piece
 * of work runs, it is also clear which STOP and RESUME events are ours.
 */
import { readFile, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { CancelledError, NoSpaceError, QmpConnectionError, QmpError, toHoldfastError } from '../errors.js';
import type { CaptureResult, StateFile } from '../native.js';
import { isInQemu, type OutputGate } from '../output/gate.js';
import type { QmpClient } from '../qmp/client.js';
import { FileMigration, migrateToFile } from '../qmp/file-migration.js';
import { saveDeviceStateRequest } from '../qmp/recipes.js';
import { parseMigrationPrefix, xenSaveHeaderBytes } from '../vm/migration-stream.js';
import type { GuestClock } from './guest-clock.js';

export type DeviceStatePath = 'xen-save' | 'migrate-fd';

export interface PauseRequest<Captured = CaptureResult> {
  readonly epoch: number;
  readonly installGate: boolean;
  readonly takePrefix: boolean;
  /** Starts when the VM has stopped; runs beside the saving of the device state. */
  readonly capture: () => Promise<Captured>;
  /** What the pause does to the VM's disks: before the prefix, for which QEMU gives them up until the VM runs. */
  readonly switchDisks?: () => Promise<void>;
}

/** The paused VM, captured; times in milliseconds of performance.now() or durations. */
export interface Paused<Captured = CaptureResult> {
  readonly captured: Captured;
  readonly pauseStartMs: number;
  readonly stopMs: number;
  readonly deviceMs: number;
  readonly gateMs: number;
  readonly device: { readonly path: string; readonly skipBytes: number };
  readonly prefix: Prefix | undefined;
}

interface Prefix {
  readonly path: string;
  readonly bytes: number;
}

/** As the data plane takes it: what QEMU has appended since is not of it. */
export const prefixFile = (prefix: Prefix | undefined): StateFile | undefined =>
  prefix && { path: prefix.path, skipBytes: 0, maxBytes: prefix.bytes };

export interface VmDriverOptions {
  readonly qmp: QmpClient;
  readonly gate: OutputGate;
  readonly deviceState: DeviceStatePath;
  readonly guestClock: Pick<GuestClock, 'beforeStop' | 'saved' | 'beforeCont' | 'standsStill'>;
  /** The VM's disks: QEMU drains and flushes them at every `stop`. */
  readonly disks?: { readonly stopPending: (isPending: boolean) => void } | undefined;
  /** For device state and prefix files; on a tmpfs. */
  readonly scratchDir: string;
  /** The VM was left stopped by an earlier run of ours. */
  readonly stoppedByUs: boolean;
  /** Somebody else stopped or started the VM. */
  readonly onOperator: (change: 'paused' | 'resumed') => void;
}

export class VmDriver {
  readonly #options: VmDriverOptions;
  readonly #qmp: QmpClient;
  readonly #gate: OutputGate;
  #queue: Promise<unknown> = Promise.resolve();
  #underWay = 0;
  /** True from our stop to the end of our cont: a STOP within is ours. */
  #stoppedByUs: boolean;
  /** Our cont is under way: the RESUME is its. */
  #resuming = false;
  #resumedByOther = false;
  /** Since the last pause was asked for. */
  #pausedByOther = false;
  #lastResumeMs: number | undefined;
  #prefixAhead: Prefix | undefined;

  constructor(options: VmDriverOptions) {
    this.#options = options;
    this.#qmp = options.qmp;
    this.#gate = options.gate;
    this.#stoppedByUs = options.stoppedByUs;
    this.#qmp.on('STOP', () => {
      if (this.#stoppedByUs) return;
      this.#pausedByOther = true;
      options.guestClock.standsStill();
      options.onOperator('paused');
    });
    this.#qmp.on('RESUME', () => {
      if (this.#resuming) return;
      options.guestClock.standsStill();
      // Somebody else's, also where the VM stood still by our word: a capture under way is void.
      this.#stoppedByUs = false;
      this.#pausedByOther = false;
      this.#resumedByOther = true;
      options.onOperator('resumed');
    });
  }

  /** When the VM was last started by us, in performance.now() milliseconds. */
  get lastResumeMs(): number | undefined {
    return this.#lastResumeMs;
  }

  /** What takePrefixAhead() took last, until the next pause has it. */
  get prefixAhead(): Prefix | undefined {
    return this.#prefixAhead;
  }

  /** From our stop to our cont; else it runs, or stands still by another's word. */
  get isStoppedByUs(): boolean {
    return this.#stoppedByUs;
  }

  /** Settles when nothing is under way any more. */
  async idle(): Promise<void> {
    await this.#queue;
  }

  /**
   * Stops the VM and captures it: device state and output boundary by QEMU,
   * RAM by `capture`. The VM stays stopped, also when this throws; but for what throws before the stop (isStoppedByUs).
   * @throws CancelledError if somebody else has stopped it meanwhile: then it stays so
   */
  pause<Captured>(request: PauseRequest<Captured>): Promise<Paused<Captured>> {
    this.#pausedByOther = false;
    return this.#exclusively(() => this.#pause(request));
  }

  /** Starts the VM. Idempotent in QEMU. Settles with how long it took. */
  resume(): Promise<number> {
    return this.#exclusively(() => this.#cont());
  }

  /**
   * Takes the prefix for the next pause, in a short stop of its own; the VM runs when this settles, also
   * when it throws. Settles with how long it stood still.
   * @throws CancelledError if somebody else has stopped it: then it stays so
   */
  takePrefixAhead(): Promise<number> {
    return this.#exclusively(async () => {
      const isOurs = this.#stoppedByUs; // it may stand still by our own word, and goes on as well then
      this.#prefixAhead = undefined; // its file is written anew
      await using migration = await this.#prepareMigration(isOurs);
      const startMs = performance.now();
      const asked = this.#qmp.execute('query-status'); // right before our stop
      let ran = true;
      try {
        await this.#stop();
        ran = isOurs || (await asked).running;
        if (!ran) throw pausedByOther();
        await migration.run();
      } finally {
        if (ran) await this.#cont();
        else this.#leavePaused();
      }
      const stoodStillMs = performance.now() - startMs;
      this.#prefixAhead = await this.#readPrefix();
      return stoodStillMs;
    });
  }

  /** Starts a VM that stopped itself, as somebody else would: onOperator() tells, and that time stays lost. */
  goOn(): Promise<void> {
    return this.#exclusively(async () => {
      await this.#qmp.execute('cont');
    });
  }

  stop(): Promise<void> {
    return this.#exclusively(() => this.#stop());
  }

  /**
   * Lets out the output of the acknowledged epoch. QEMU's own filters deliver only while the VM runs, so
   * theirs waits for its turn; a gate beside QEMU releases at once, whatever the VM is doing.
   */
  release(): Promise<void> {
    const release = () => this.#gate.release(this.#qmp);
    return isInQemu(this.#gate) ? this.#exclusively(release) : release();
  }

  /** Lets out all output and holds no more. The VM must run. */
  openGate(): Promise<void> {
    return this.#exclusively(() => this.#gate.open(this.#qmp));
  }

  /** Ends QEMU. */
  async quit(): Promise<void> {
    await this.#exclusively(async () => {
      await this.#qmp.execute('quit').catch(() => {}); // it may end before it answers
      await this.#qmp.closed;
    });
  }

  /** Also if its STOP event was taken for ours. */
  #leavePaused(): void {
    this.#stoppedByUs = false;
    this.#options.onOperator('paused');
  }

  async #cont(): Promise<number> {
    const startMs = performance.now();
    this.#resuming = true;
    this.#options.guestClock.beforeCont();
    try {
      await this.#qmp.execute('cont'); // RESUME comes before the answer
    } finally {
      this.#resuming = false;
    }
    this.#stoppedByUs = false;
    this.#lastResumeMs = performance.now();
    return this.#lastResumeMs - startMs;
  }

  async #stop(): Promise<void> {
    await this.#gate.prepare?.();
    this.#options.guestClock.standsStill();
    this.#stoppedByUs = true;
    this.#options.disks?.stopPending(true);
    try {
      await this.#qmp.execute('stop');
    } finally {
      this.#options.disks?.stopPending(false);
    }
    await this.#endPrepared();
  }

  /**
   * No checkpoint, but the end of what the gate's prepare() began: what is held stays so until one is acknowledged.
   * A gate that fails here lets nothing out either; the next pause reports it.
   */
  async #endPrepared(): Promise<void> {
    await this.#gate.boundary().catch(() => {});
  }

  async #pause<Captured>(request: PauseRequest<Captured>): Promise<Paused<Captured>> {
    const { deviceState, scratchDir, guestClock, disks } = this.#options;
    // Two files in turn: the sender may still read the last epoch's when this one is written.
    const devicePath = join(scratchDir, `d${request.epoch % 2}`);
    const xenSave = deviceState === 'xen-save';
    await using migration =
      xenSave && request.takePrefix ? await FileMigration.prepare(this.#qmp, this.#prefixPath) : undefined;
    await this.#gate.prepare?.();
    if (this.#pausedByOther) {
      await this.#endPrepared();
      throw pausedByOther();
    }
    guestClock.beforeStop();
    const pauseStartMs = performance.now();
    this.#stoppedByUs = true;
    this.#resumedByOther = false;
    disks?.stopPending(true);
    // One write: QEMU goes from each to the next by itself. The answer of `stop` starts the capture.
    const [stopped = Promise.resolve(), ...answers] = this.#qmp.pipeline([
      { execute: 'stop' },
      ...(xenSave ? [saveDeviceStateRequest(devicePath)] : []),
      ...this.#gate.boundaryCommands(),
    ]);
    let stoppedMs = pauseStartMs;
    let stoppedNs = 0n;
    const drained = (): void => disks?.stopPending(false);
    stopped.then(drained, drained);
    const capturing = stopped.then(() => {
      stoppedMs = performance.now();
      stoppedNs = process.hrtime.bigint();
      return request.capture();
    });
    // Beside the capture, and in QEMU after the device state, which was asked for before.
    const prefixTaken = stopped.then(async () => {
      await request.switchDisks?.();
      if (migration === undefined) return this.#prefixAhead;
      return await this.#takePrefix(migration).catch(notSaved(scratchDir, this.#prefixPath));
    });
    let boundaryMs = 0;
    const boundary = stopped.then(async () => {
      await this.#gate.boundary();
      boundaryMs = performance.now() - stoppedMs;
    });
    const doneMs: number[] = [];
    const rest = answers.map(async (answer, index) => {
      const isDeviceState = xenSave && index === 0;
      await (isDeviceState ? answer.catch(notSaved(scratchDir, devicePath)) : answer);
      doneMs[index] = performance.now();
      // In the first pause that takes some milliseconds: beside the capture.
      if (isDeviceState) await guestClock.saved(devicePath, stoppedNs);
    });
    try {
      const [captured, prefix] = await allOrFirstFailure([capturing, prefixTaken, boundary, ...rest]);
      let deviceDoneMs = doneMs[0] ?? performance.now();
      if (!xenSave) {
        await migrateToFile(this.#qmp, devicePath);
        deviceDoneMs = performance.now();
        await guestClock.saved(devicePath, stoppedNs);
      }
      this.#prefixAhead = undefined;
      if (request.installGate) await this.#gate.install(this.#qmp);
      if (this.#resumedByOther) {
        throw new QmpError('the VM was started by another QMP client while it was being captured', {
          cure: 'Leave stop and cont to Holdfast while it protects the VM.',
        });
      }
      return {
        captured,
        pauseStartMs,
        stopMs: stoppedMs - pauseStartMs,
        deviceMs: deviceDoneMs - stoppedMs,
        gateMs: Math.max(boundaryMs, xenSave ? (doneMs.at(-1) ?? deviceDoneMs) - deviceDoneMs : 0),
        // The prefix carries magic and version already.
        device: { path: devicePath, skipBytes: xenSave ? xenSaveHeaderBytes : 0 },
        prefix,
      };
    } catch (error) {
      if (this.#resumedByOther) this.#isToRun();
      throw error;
    }
  }

  /** Whoever started it in a pause of ours wants it to run, also where our own work has stopped it once more. */
  #isToRun(): void {
    this.#stoppedByUs = true;
    this.#pausedByOther = false;
    this.#options.onOperator('resumed');
  }

  async #prepareMigration(isOurs: boolean): Promise<FileMigration> {
    try {
      return await FileMigration.prepare(this.#qmp, this.#prefixPath);
    } catch (error) {
      if (isOurs) await this.#cont();
      throw error;
    }
  }

  /** A file that lacks its end is complete to QEMU, where only its last write failed. */
  async #takePrefix(migration: FileMigration): Promise<Prefix> {
    await migration.run();
    await migration[Symbol.asyncDispose]();
    return await this.#readPrefix();
  }

  /** Of an ordinary migration without RAM, the part before the first device. */
  async #readPrefix(): Promise<Prefix> {
    const path = this.#prefixPath;
    const { bytes } = parseMigrationPrefix(await readFile(path));
    return { path, bytes };
  }

  get #prefixPath(): string {
    return join(this.#options.scratchDir, 'prefix');
  }

  /** At once where nothing is under way: what starts the VM must not wait for another turn of the loop. */
  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const run = async (): Promise<T> => {
      try {
        return await work();
      } finally {
        this.#underWay -= 1;
      }
    };
    const done = this.#underWay++ === 0 ? run() : this.#queue.then(run);
    this.#queue = done.catch(() => {});
    return done;
  }
}

export const pausedByOther = (): CancelledError => new CancelledError('the VM was paused by somebody else');

/** A device state that did not fit has taken all that was left. */
const FREE_BYTES_FULL = 1 << 16;

/** QEMU says only "an IO error": where it happened, and what it usually is. */
const notSaved =
  (dir: string, path: string) =>
  async (cause: Error): Promise<never> => {
    if (cause instanceof QmpConnectionError) throw cause;
    const message = `QEMU could not write the device state to ${path}: ${cause.message}`;
    const options = {
      cause,
      cure: 'Make room in the run directory (df), or choose another with --run-dir.',
      details: toHoldfastError(cause).details,
    };
    if (await isFull(dir)) throw new NoSpaceError(message, options);
    throw cause instanceof QmpError ? new QmpError(message, options) : cause;
  };

const isFull = async (dir: string): Promise<boolean> => {
  const room = await statfs(dir).catch(() => undefined);
  return room !== undefined && room.bavail * room.bsize < FREE_BYTES_FULL;
};

/** Waits for all, so that nothing is under way afterwards, then throws the first failure. */
const allOrFirstFailure = async <A, B>(
  promises: readonly [Promise<A>, Promise<B>, ...Promise<unknown>[]],
): Promise<[A, B]> => {
  const outcomes = await Promise.allSettled(promises);
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  return [await promises[0], await promises[1]];
};
