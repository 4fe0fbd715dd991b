/**
 * Live migration by QEMU's own pre-copy, driven over QMP, with our policies deciding when it stops.
 *
 *   source                                                destination (MigrationTarget)
 *   prepareSource, migrate ─── all of RAM ──────────────►
 *   MIGRATION_PASS ─► round ─► policy: next-round         ┐
 *   MIGRATION_PASS ─► round ─► policy: next-round         ├ the VM runs on the source
 *   MIGRATION_PASS ─► round ─► policy: stop-and-copy      ┘
 *   downtime-limit up ─► QEMU stops the VM ── the rest ─►  loads it, stays paused
 *   completed ◄────────────── return path ──────────────
 *                                          resume() ────►  the VM runs on the destination
 *
 *   anything fails, a limit is reached, cancelled: migrate_cancel; the VM runs on, on the source
 *   somebody stops the VM: migrate_cancel; it stays stopped, on the source
 *
 * QEMU decides by its own `downtime-limit`, by the rule of our policy `fixed`. It is kept at the least that works,
 * so that our policy decides. (0 would be wrong: QEMU 7.2 looks for newly dirtied pages only when less remains than
 * fits the limit, ram_save_pending(), and with nothing ever fitting it completes after one single round.)
 *
 * How it is made to stop: by raising `downtime-limit` above everything. QMP `stop` would be the obvious way, and is
 * the wrong one: the rest would still go as live rounds under `max-bandwidth`, and QEMU would hand over the state
 * `paused`, and count no downtime. With the limit raised, QEMU notices within 100 ms (BUFFER_DELAY, after which it
 * recomputes its threshold), looks once more for dirty pages, stops the VM and sends the rest without a limit.
 * Measured on 7.2, 12 MB left and 48 MiB/s: the VM stands still for 299 ms by `stop`, for 12 ms this way.
 *
 * A STOP that is not QEMU's own is somebody's `stop`, whose VM must not run anywhere. The event is the same, so the
 * run state is asked for at once: QEMU's own is `finish-migrate` from the start. A `stop` within the moment between
 * the two comes too late, as one does that follows QEMU's own.
 *
 * At no time can both sides run the VM: the destination runs it only by resume(), called when the source has said
 * `completed`, after which a source doesn't run it by itself. If this process dies between the two, the VM stands
 * still on both sides, complete: `cont` on one of them goes on.
 */
import { setTimeout as delay } from 'node:timers/promises';
import {
  CancelledError,
  ConfigError,
  LimitError,
  QmpConnectionError,
  QmpError,
  StandbyError,
  TimeoutError,
} from '../errors.js';
import type { QmpClient } from '../qmp/client.js';
import { hasMigrationEnded } from '../qmp/recipes.js';
import { limitReached, type MigrationLimit, migrationLimit } from './migration-limit.js';
import type { MigrationDecision, MigrationLimits, MigrationPolicy, MigrationRound } from './policy.js';
import { checkDirtyLog } from './qemu-dirty-log.js';
import { type QemuMigrationView, QemuRounds } from './qemu-rounds.js';
import { prepareSource, type QemuMigrationSettings, restoreSource } from './qemu-settings.js';
import type { MigrationTarget } from './target.js';

/** Between two looks at QEMU's counters, unless an event comes first. */
const POLL_MS = 100;
const DOWNTIME_LIMIT_MIN_MS = 1;
/** QEMU's MAX_MIGRATE_DOWNTIME. */
const DOWNTIME_LIMIT_MAX_MS = 2_000_000;
/** As good as none: a tebibyte per second. */
const BANDWIDTH_UNLIMITED = 2 ** 40;
/** From the decision to `completed`: some time for everything, and a multiple of what was expected. */
const SWITCHOVER_MS_MIN = 10_000;
const SWITCHOVER_EXPECTED_TIMES = 4;
/** migrate_cancel shuts the connection down; QEMU's threads need some moments. */
const CANCEL_MS_MAX = 10_000;
const SETTLED_MS_MAX = 5_000;
const STATE_POLL_MS = 2;

export interface QemuMigrationOptions {
  /** Connected to the source's monitor; stays the caller's. */
  readonly qmp: QmpClient;
  readonly target: MigrationTarget;
  readonly policy: MigrationPolicy;
  /** The downtime that the policy is to keep, as far as it does. */
  readonly downtimeMs: number;
  /** What stops the VM beside the pages, if it is known (default 0). */
  readonly overheadMs?: number;
  /** Bytes per second, for the rounds; QEMU does not limit stop-and-copy by it. Default: no limit. */
  readonly bandwidthMax?: number | undefined;
  /** When to give up. */
  readonly limit?: MigrationLimit;
  readonly signal?: AbortSignal | undefined;
  readonly onRound?: ((report: MigrationRoundReport) => void) | undefined;
  /** Everything is over there, and is about to run. */
  readonly onArrived?: ((arrival: MigrationArrival) => void) | undefined;
}

/** Run states that QEMU's own stop leads to, and that of a disk that failed, which is tried again over there. */
const MOVES_ON = new Set(['running', 'finish-migrate', 'postmigrate', 'io-error']);

/** What was sent after the last round that the policy saw. */
export interface MigrationArrival {
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** Since the VM was stopped. 0 if it was paused. */
  readonly stoppedForMs: number;
}

export interface MigrationRoundReport {
  /** Counted from 1. */
  readonly number: number;
  readonly round: Omit<MigrationRound, 'diskPages'>;
  readonly decision: MigrationDecision;
}

export interface QemuMigrationResult {
  /** From the begin until the VM runs on the destination. */
  readonly totalMs: number;
  /** From the moment that QEMU said it stopped until the destination said it runs. 0 if the VM was paused. */
  readonly downtimeMs: number;
  /** Of the wire, as QEMU counts them. */
  readonly bytes: number;
  /** Those that the policy saw. */
  readonly rounds: readonly MigrationRound[];
  /** What ended the rounds; undefined if QEMU did, because what remained fits its least downtime, 1 ms. */
  readonly decision: MigrationDecision | undefined;
}

/** As with Holdfast's engine (lib/primary/machine.ts): a VM that is paused would run over there. */
export class StoppedMeanwhileError extends CancelledError {
  constructor(status: string) {
    super(`the VM was stopped by somebody else (${status}); it would run on the destination`, {
      cure: 'It is on the source, stopped as it was. Resume it first (QMP cont), or let it be.',
      details: { status },
    });
  }
}

/**
 * Moves the VM to the target. On success the source's QEMU is in `postmigrate`, and the caller's to end.
 *
 * @throws UnsupportedVmError this QEMU would damage the guest; nothing was touched.
 * @throws LimitError it did not converge; TimeoutError QEMU did not come to an end after the decision; QmpError
 *         QEMU refused or failed; CancelledError. After each of these the VM runs on the source, whose settings
 *         are as before, and the target was abandoned.
 * @throws StoppedMeanwhileError the same, but that the VM is stopped, as somebody left it.
 * @throws StandbyError everything arrived, but whether the destination runs the VM is not known; the source does
 *         not. QmpConnectionError the source's monitor was lost. Both messages say what to do.
 */
export const migrateWithQemu = async (options: QemuMigrationOptions): Promise<QemuMigrationResult> => {
  const { qmp } = options;
  await checkDirtyLog(qmp);
  const { running } = await qmp.execute('query-status');
  const before = await prepareSource(qmp, {
    'max-bandwidth': options.bandwidthMax ?? BANDWIDTH_UNLIMITED,
    'downtime-limit': DOWNTIME_LIMIT_MIN_MS,
  });
  const migration = new QemuMigration(options, running, before);
  const remove = qmp.on('*', ({ event }) => migration.hear(event));
  try {
    return await migration.run();
  } catch (error) {
    throw error instanceof QmpConnectionError && !qmp.open ? sourceLost(error) : error;
  } finally {
    remove();
  }
};

class QemuMigration {
  readonly #options: QemuMigrationOptions;
  #wasRunning: boolean;
  /** Somebody else's `stop`, as far as it is known. */
  #stopped: StoppedMeanwhileError | undefined;
  #stopExamined: Promise<void> = Promise.resolve();
  readonly #before: QemuMigrationSettings;
  readonly #rounds: MigrationRound[] = [];
  #decision: MigrationDecision | undefined;
  #startedMs = 0;
  #stoppedMs: number | undefined;
  #switchoverEndsMs = Number.POSITIVE_INFINITY;
  #wake = (): void => {};

  constructor(options: QemuMigrationOptions, wasRunning: boolean, before: QemuMigrationSettings) {
    this.#options = options;
    this.#wasRunning = wasRunning;
    this.#before = before;
  }

  /** An event of the source's QEMU. */
  hear(event: string): void {
    if (event === 'RESUME') this.#wasRunning = true; // one that was paused at first
    if (event === 'STOP') {
      this.#stoppedMs = performance.now();
      this.#stopExamined = this.#examineStop();
    }
    if (event === 'MIGRATION_PASS' || event === 'MIGRATION') this.#wake();
  }

  async #examineStop(): Promise<void> {
    const status = await this.#options.qmp.execute('query-status').then(
      (answer) => answer.status,
      () => 'running', // lost, which others see
    );
    if (!MOVES_ON.has(status)) this.#stopped ??= new StoppedMeanwhileError(status);
    this.#wake();
  }

  async run(): Promise<QemuMigrationResult> {
    const { qmp, target } = this.#options;
    this.#startedMs = performance.now();
    let view: QemuMigrationView;
    try {
      await qmp.execute('migrate', { uri: target.uri });
      view = await this.#untilCompleted();
    } catch (error) {
      view = await this.#cancel(error);
    }
    this.#options.onArrived?.(this.#arrival(view));
    await this.#handOver();
    const endedMs = performance.now();
    await this.#settled().catch(() => {}); // it runs over there, whatever has become of this QEMU
    return {
      totalMs: endedMs - this.#startedMs,
      downtimeMs: this.#stoppedForMs(endedMs),
      bytes: view.ram?.transferred ?? 0,
      rounds: this.#rounds,
      decision: this.#decision,
    };
  }

  #stoppedForMs(nowMs: number): number {
    return this.#stoppedMs === undefined || !this.#wasRunning ? 0 : nowMs - this.#stoppedMs;
  }

  #arrival({ ram }: QemuMigrationView): MigrationArrival {
    const since = (total = 0, of: (round: MigrationRound) => number): number =>
      Math.max(0, total - this.#rounds.reduce((sum, round) => sum + of(round), 0));
    return {
      pages: since(ram?.normal, ({ pages }) => pages),
      zeroPages: since(ram?.duplicate, ({ zeroPages }) => zeroPages),
      bytes: since(ram?.transferred, ({ bytes }) => bytes),
      stoppedForMs: this.#stoppedForMs(performance.now()),
    };
  }

  async #untilCompleted(): Promise<QemuMigrationView> {
    const { qmp, signal, limit = migrationLimit } = this.#options;
    const passes = new QemuRounds(this.#startedMs);
    for (;;) {
      const woken = this.#nextWake();
      const view = await qmp.execute('query-migrate');
      if (view.status === 'completed') return await this.#unlessStopped(view);
      if (hasEnded(view)) throw migrationFailed(view);
      if (this.#stopped !== undefined) throw this.#stopped;
      if (signal?.aborted) throw new CancelledError('the migration was cancelled');
      const nowMs = performance.now();
      if (nowMs > this.#switchoverEndsMs) throw switchoverLate();
      const round = view.ram === undefined ? undefined : passes.observe(view.ram, nowMs);
      if (this.#decision === undefined) {
        if (round !== undefined) await this.#decide(round, view);
        const so = { rounds: this.#rounds.length, elapsedMs: nowMs - this.#startedMs };
        const reached = this.#decision === undefined ? limitReached(so, limit) : undefined;
        if (reached !== undefined) throw givenUp(reached, this.#rounds);
      }
      await woken;
    }
  }

  /** @throws StoppedMeanwhileError QEMU was faster than a `stop` could be noticed: nobody is to run what has arrived */
  async #unlessStopped(view: QemuMigrationView): Promise<QemuMigrationView> {
    await this.#stopExamined;
    if (this.#stopped !== undefined) throw this.#stopped;
    return view;
  }

  async #decide(round: MigrationRound, view: QemuMigrationView): Promise<void> {
    const { qmp, policy, downtimeMs, overheadMs = 0, onRound } = this.#options;
    this.#rounds.push(round);
    const limits: MigrationLimits = { downtimeMs, overheadMs, pageBytes: view.ram!['page-size'] };
    const decision = policy(this.#rounds, limits);
    onRound?.({ number: this.#rounds.length, round, decision });
    switch (decision.step) {
      case 'next-round':
        return;
      case 'stop-and-copy': {
        await qmp.execute('migrate-set-parameters', { 'downtime-limit': DOWNTIME_LIMIT_MAX_MS });
        this.#decision = decision;
        const expectedMs = Math.min(decision.expectedDowntimeMs, DOWNTIME_LIMIT_MAX_MS);
        this.#switchoverEndsMs =
          performance.now() + SWITCHOVER_MS_MIN + SWITCHOVER_EXPECTED_TIMES * expectedMs;
        return;
      }
      case 'post-copy':
        throw new ConfigError("the policy asked for post-copy, which QEMU's engine does not offer here", {
          cure: 'Make the policy without the option postCopyOffered.',
        });
    }
  }

  /** Settles at the next event of the migration, and after POLL_MS at the latest. */
  #nextWake(): Promise<void> {
    const { signal } = this.#options;
    return new Promise((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', wake);
        resolve();
      };
      const timer = setTimeout(wake, POLL_MS);
      signal?.addEventListener('abort', wake, { once: true });
      this.#wake = wake;
    });
  }

  /**
   * Leaves the VM on the source, and throws `error`. If QEMU was faster and has completed, that is what counts:
   * the destination has everything, and the result is returned as if nobody had asked; but not of a VM that was
   * stopped, which is left as it is.
   */
  async #cancel(error: unknown): Promise<QemuMigrationView> {
    const { qmp, target } = this.#options;
    if (!qmp.open) throw error;
    await qmp.execute('migrate_cancel');
    const view = await this.#whenEnded();
    await this.#stopExamined;
    if (view.status === 'completed' && this.#stopped === undefined) return view;
    await this.#runOnSource();
    await target.abandon();
    throw error;
  }

  async #whenEnded(): Promise<QemuMigrationView> {
    const { qmp } = this.#options;
    const deadlineMs = performance.now() + CANCEL_MS_MAX;
    for (;;) {
      const view = await qmp.execute('query-migrate');
      // No status at all: `migrate` itself was refused.
      if (view.status === undefined || view.status === 'none' || hasEnded(view)) return view;
      if (performance.now() > deadlineMs) {
        throw new TimeoutError(
          `QEMU did not end its migration within ${CANCEL_MS_MAX} ms of migrate_cancel`,
          {
            cure: 'The VM is still on the source; look at `query-migrate` there before anything is done to the destination.',
          },
        );
      }
      await delay(STATE_POLL_MS);
    }
  }

  async #runOnSource(): Promise<void> {
    const { qmp } = this.#options;
    // QEMU resumes a VM by itself that it has stopped for a migration which then failed.
    const status = await this.#settled();
    const isToRun = this.#wasRunning && this.#stopped === undefined;
    if (isToRun && status === 'postmigrate') await qmp.execute('cont');
    await restoreSource(qmp, this.#before);
  }

  /** The source's state, once QEMU has made up its mind: a moment after the migration has ended. */
  async #settled(): Promise<string> {
    const { qmp } = this.#options;
    const deadlineMs = performance.now() + SETTLED_MS_MAX;
    for (;;) {
      const { status } = await qmp.execute('query-status');
      if (status !== 'finish-migrate' || performance.now() > deadlineMs) return status;
      await delay(STATE_POLL_MS);
    }
  }

  /** The source has given the VM up; from here on the destination has it, unless it refuses. */
  async #handOver(): Promise<void> {
    const { target } = this.#options;
    if (!this.#wasRunning) return;
    try {
      await target.resume();
    } catch (error) {
      if (error instanceof QmpError) {
        await target.abandon();
        await this.#runOnSource();
        throw error;
      }
      throw new StandbyError('the VM has arrived, but whether it runs on the destination is not known', {
        cause: error,
        cure: 'It stands still on this host (postmigrate). If it does not run over there and never will, `cont` resumes it here. Never let both run.',
      });
    }
  }
}

const hasEnded = ({ status }: QemuMigrationView): boolean => hasMigrationEnded(status);

const migrationFailed = (view: QemuMigrationView): QmpError =>
  new QmpError(
    `QEMU's migration ${view.status}: ${view['error-desc'] ?? 'QEMU gave no reason; its log, or that of the destination, may'}`,
    {
      cure: 'The VM runs on, on the source. Both sides need the same machine, devices and RAM, and a way between them.',
      details: { command: 'migrate', status: view.status ?? 'none', desc: view['error-desc'] ?? '' },
    },
  );

const givenUp = (reason: string, rounds: readonly MigrationRound[]): LimitError =>
  new LimitError(`the migration was given up: ${reason}`, {
    cure: 'The VM runs on, on the source. Allow more downtime, a faster link or a higher limit, or use the policy mp or auto.',
    details: { rounds: rounds.length, dirtyPages: rounds.at(-1)?.dirtyPages ?? null },
  });

const switchoverLate = (): TimeoutError =>
  new TimeoutError('the VM was to be stopped and moved, and it took far longer than expected', {
    cure: 'The VM runs on, on the source. Look at the link, and at the log of the destination.',
  });

const sourceLost = (error: QmpConnectionError): QmpConnectionError =>
  new QmpConnectionError(`the source was lost in the middle of the migration: ${error.message}`, {
    cause: error,
    cure: 'The destination does not run the VM by itself. If the source has ended and the destination is `paused`, everything has arrived: `cont` there. If the source lives, look at its `query-status` first.',
  });
