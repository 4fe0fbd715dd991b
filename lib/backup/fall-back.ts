/**
 * A VM that runs here before its memory has come, and whose source is lost for good, goes on from a checkpoint, if
 * that was agreed on when its session began.
 *
 *   prepare ─ it fits, its command line, nobody merges it away ─► session-ready names it ─► the VM runs early
 *     all pages come ─► release
 *     pages lost ─► goOn: the lacking VM ends, its RAM is freed ─ QEMU over an empty one ─ claim: from here on this
 *                   host runs the VM, whoever asks ─► it runs, as it was then ─ its memory follows ─► complete
 *
 * Whoever asks in between hears that the VM was lost here: the record that says so is replaced, never removed.
 */
import { mkdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Claim, claimReading } from '../checkpoint/claims.js';
import { listCheckpoints } from '../checkpoint/directory.js';
import { commandLineOf, type MemoryArrival, type RanAs, restoreCheckpoint } from '../checkpoint/restore.js';
import { type SelectedCheckpoint, selectCheckpoint } from '../checkpoint/select.js';
import { checkDevice } from '../checkpoint/verify.js';
import type { SessionMessage } from '../control/messages.js';
import { type HoldfastError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { type FallBackPoint, pointText } from '../migrate/fall-back-point.js';
import type { Replacement } from '../vm/command-line.js';
import type { VmExit } from '../vm/launch.js';
import { moveSockets } from '../vm/netdevs.js';
import { identifyProcess, type ProcessIdentity } from '../vm/process.js';
import { assertFits, assertRoomFor } from './fall-back-check.js';
import { freeRam } from './host-load.js';
import { standbyCwd } from './launch-standby.js';
import { findStandbyBinary } from './standby-binary.js';
import { StandbyRelays } from './standby-relays.js';

/** How it went on. */
export interface FallBackReport extends FallBackPoint {
  /** Why the VM that ran here was lost. */
  readonly reason: string;
  /** From then on until it ran from the checkpoint. */
  readonly totalMs: number;
  /** Unix time, milliseconds. */
  readonly resumedAtMs: number;
  readonly qmp: string;
  readonly pid: number;
}

/** Where the restored VM is to be, and what is called differently here. */
export interface FallBackPlace {
  /** For its sockets and its log; made when it is needed. */
  readonly dir: string;
  readonly ramPath: string;
  readonly qemu: string | undefined;
  readonly replacements: readonly Replacement[];
  readonly log: Logger;
}

/** It runs from the checkpoint; its QEMU outlives this process, once its memory is complete. */
export interface FallenVm {
  readonly process: ProcessIdentity;
  readonly qmpPath: string;
  readonly ramPath: string;
  /** Settles when it has ended; never rejects. */
  readonly exited: Promise<VmExit>;
  /** @throws DamagedError: it was ended */
  readonly complete: Promise<MemoryArrival>;
  /** After it has ended. */
  readonly removeFiles: () => Promise<void>;
}

/** Of the VM that lacks pages (generation.ts). */
interface Lacking {
  readonly killVm: () => Promise<void>;
  readonly removeFiles: () => Promise<void>;
}

export class FallBack {
  readonly point: FallBackPoint;
  /** This process, without which nobody goes on. */
  readonly daemon: ProcessIdentity;
  readonly #place: FallBackPlace;
  readonly #selected: SelectedCheckpoint;
  readonly #relays: StandbyRelays;
  readonly #ranAs: RanAs;
  readonly #claim: Claim;

  private constructor(parts: {
    place: FallBackPlace;
    selected: SelectedCheckpoint;
    relays: StandbyRelays;
    ranAs: RanAs;
    claim: Claim;
    point: FallBackPoint;
    daemon: ProcessIdentity;
  }) {
    this.#place = parts.place;
    this.#selected = parts.selected;
    this.#relays = parts.relays;
    this.#ranAs = parts.ranAs;
    this.#claim = parts.claim;
    this.point = parts.point;
    this.daemon = parts.daemon;
  }

  /**
   * @param dir of the checkpoints; the newest is taken
   * @param qemuHere version of the standby that has been started for the session
   * @throws ConfigError, StandbyError, DamagedError
   */
  static async prepare(
    session: SessionMessage,
    dir: string,
    qemuHere: string,
    place: FallBackPlace,
  ): Promise<FallBack> {
    const claim = await claimReading(dir);
    try {
      const selected = selectCheckpoint(await listCheckpoints(dir), dir);
      const { entry } = selected;
      assertFits(selected, session, qemuHere);
      await checkDevice(entry);
      const relays = relaysOf(session, place);
      const ranAs = await ranAsOf(session, place, relays);
      commandLineOf(placeOptions(place, relays), entry, ranAs, ranAs.cwd); // what it throws comes before the loss
      const point = { dir, epoch: entry.epoch, takenAt: entry.manifest.takenAt };
      const daemon = await identifyProcess(process.pid);
      return new FallBack({ place, selected, relays, ranAs, claim, point, daemon });
    } catch (error) {
      await claim.release();
      throw error;
    }
  }

  /** Nothing is to come any more, or it is over: others may merge the checkpoint. Never rejects. Idempotent. */
  async release(): Promise<void> {
    await this.#claim.release().catch(() => {}); // on a file system that is gone
  }

  /**
   * Settles when the VM runs from the checkpoint. If it rejects nothing runs. Once.
   * @param claim called with the process that is about to run, before it can
   * @throws VmGoneError (the lacking VM does not end), NoSpaceError, DamagedError, StandbyError, RelayError …
   */
  async goOn(lacking: Lacking, claim: (vm: FallenVm['process']) => Promise<void>): Promise<FallenVm> {
    const { dir, ramPath, log: logger } = this.#place;
    const relays = this.#relays;
    await lacking.killVm();
    await lacking.removeFiles(); // its RAM, its relays' taps
    await this.#awaitRoom();
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const options = placeOptions(this.#place, relays);
    const { qmpPath } = options;
    try {
      const { vm, complete } = await restoreCheckpoint(
        {
          ...{ ...options, dir: this.point.dir, logger },
          ...{ logPath: join(dir, 'qemu.log'), scratchDir: dir },
        },
        {
          ...{ selected: this.#selected, ranAs: this.#ranAs, claim },
          beside: (process) => relays.start(process),
        },
      );
      const { identity, exited } = vm;
      const removeFiles = async (): Promise<void> => {
        await relays.end();
        await rm(ramPath, { force: true });
        await rm(dir, { recursive: true, force: true });
      };
      return { process: identity, qmpPath, ramPath, exited, complete, removeFiles };
    } catch (error) {
      await relays.end();
      throw error;
    }
  }

  /** Where it is once it runs. */
  get runs(): Pick<FallenVm, 'qmpPath' | 'ramPath'> {
    const { dir, ramPath } = this.#place;
    return { qmpPath: qmpPathIn(dir), ramPath };
  }

  /** The kernel counts what a VM held as free a moment after that has ended. @throws NoSpaceError */
  async #awaitRoom(): Promise<void> {
    const dir = dirname(this.#place.ramPath);
    const deadlineMs = performance.now() + ROOM_WAIT_MS;
    for (;;) {
      try {
        assertRoomFor(this.#selected, { dir, freeBytes: await freeRam(dir) });
        return;
      } catch (error) {
        if (performance.now() >= deadlineMs) throw error;
      }
      await delay(ROOM_POLL_MS);
    }
  }
}

const ROOM_WAIT_MS = 2_000;
const ROOM_POLL_MS = 50;

/** Of the monitor, in a FallBackPlace's directory. */
const qmpPathIn = (dir: string): string => join(dir, 'qmp.sock');

const relaysOf = ({ standby }: SessionMessage, { dir, replacements, log }: FallBackPlace): StandbyRelays =>
  new StandbyRelays({ asked: standby.relays ?? [], replacements, dir, launch: 1, log });

/** As the VM came, with its network by the relays here. @throws StandbyError, ConfigError */
const ranAsOf = async (
  { standby }: SessionMessage,
  { qemu }: FallBackPlace,
  { sockets }: StandbyRelays,
): Promise<RanAs> => ({
  binary: await findStandbyBinary(standby.binary, qemu),
  argv: moveSockets(standby.argv, sockets),
  cwd: standbyCwd(standby),
});

const placeOptions = ({ dir, ramPath, replacements }: FallBackPlace, { sockets }: StandbyRelays) => ({
  ramPath,
  qmpPath: qmpPathIn(dir),
  // What is called anew for the relays is not to be called anew once more.
  replace: [...sockets.values()].map(unchanged).concat(replacements),
});

const unchanged = (path: string): Replacement => ({ from: path, to: path });

/**
 * Whether a loss is one of the source. Of any other one, such as a QEMU here that has ended, or whose RAM's file
 * system is full, the source is alive and has the whole VM, which is better than a checkpoint. Pure.
 */
export const isOfSource = ({ code }: Pick<HoldfastError, 'code'>): boolean => code === 'HOLDFAST_E_PEER_LOST';

/** The loss, where it is not the end. */
export const survivedLoss = ({ code, message }: HoldfastError, point: FallBackPoint): HoldfastError =>
  toHoldfastError(
    Object.assign(new Error(message), {
      code,
      cure: `The VM goes on here from ${pointText(point)}: do not continue the one at the source.`,
    }),
  );

/**
 * What the daemon says when neither its VM nor the checkpoint runs.
 * @param isStuck the VM that lacks pages has not ended, and stands still
 */
export const fallBackFailure = (
  loss: HoldfastError,
  error: unknown,
  point: FallBackPoint,
  isStuck = false,
): HoldfastError => {
  const failure = toHoldfastError(error);
  const cure = failure.cure === undefined ? '' : `${failure.cure} `;
  const state = isStuck ? 'Once it has ended, and not before:' : 'Nobody runs the VM.';
  return toHoldfastError(
    Object.assign(
      new Error(`${loss.message}; and it does not go on from ${pointText(point)}: ${failure.message}`),
      {
        code: loss.code,
        cure: `${cure}${state} \`holdfast restore ${point.dir}\` here goes on from a checkpoint (--at: from an older one), QMP cont at the source from the moment when it was stopped there, if its host lives: one of the two, never both.`,
      },
    ),
  );
};
