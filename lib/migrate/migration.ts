/**
 * Moves one running VM to a host where a Backup waits, by Holdfast's own engine: the rounds of the base sync
 * while the guest runs, until a policy says that what is left is worth a stop; then the last epoch, and the
 * hand-over. A Primary whose first epoch is its last carries it out (lib/primary/machine.ts).
 *
 *   Migration.start ─ Primary, purpose `migrate` ─► rounds ─policy─► stop, last epoch ─► hand-over ─► moved
 *            └── or at once, or when the policy says so: ─► stop ─► hand-over ─► it runs, its memory follows ─► moved
 *                                                    └── given up, failed, destination lost ─► stayed
 */
import { EventEmitter } from 'node:events';
import { DiskError, type HoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { ServeProgress } from '../native-early.js';
import type { RoundStats } from '../primary/convergence.js';
import type { CopyProgress } from '../primary/copy-progress.js';
import type { DiskPlan } from '../primary/disk-plan.js';
import type { DisksCopied } from '../primary/disks.js';
import type { FinalEpoch } from '../primary/epoch-report.js';
import { type IoErrorStop, stopText } from '../primary/io-error-watch.js';
import type { Failure, Outcome } from '../primary/machine.js';
import { type DiskPages, type DisksIndexed, sumDiskPages } from '../primary/page-disks.js';
import { Primary, type PrimaryStatus, type RunsEarly } from '../primary/primary.js';
import { afterRound, notConverged } from './after-round.js';
import { downtimeParts } from './downtime-parts.js';
import type { FallBackPoint } from './fall-back-point.js';
import {
  asPrimarySettings,
  checkMigrationSettings,
  type MigrationSettings,
  type MigrationSettingsInput,
} from './options.js';
import {
  type EarlyMove,
  lossOf,
  type MigrationFinal,
  type MigrationOutcome,
  migrationError,
} from './outcome.js';
import { migrationPolicy } from './policies.js';
import type { MigrationDecision, MigrationLimits, MigrationPolicy, MigrationRound } from './policy.js';
import { agedOverheadMs } from './round-figures.js';
import { timeText } from './words.js';

/**
 * What the VM stands still for beside its pages: stop, device state, the messages between the hosts, and the
 * state's loading over there. A migration knows that only when it is over; but before its first round it stops
 * the VM, has QEMU write its state and starts it again, which takes about as long, and for the same reasons.
 * This where it doesn't: some 10 ms of two QEMUs on one machine.
 */
const OVERHEAD_MS = 10;

export interface MigrationOptions extends MigrationSettingsInput {
  /** Pre-shared key, at least 16 bytes; the same on both sides. */
  readonly key: Uint8Array;
  /** QMP socket of the running VM; no other client may hold it. */
  readonly qmp: string;
  /** Gives the migration up as cancel() does. */
  readonly signal?: AbortSignal;
  readonly logger?: Logger;
}

/** One round, and what the policy made of it. */
export interface MigrationProgress extends MigrationRound {
  /** From 1. */
  readonly round: number;
  readonly bytesPerSecond: number;
  readonly decision: MigrationDecision;
  readonly diskPages?: DiskPages;
}

/** Of a PrimaryStatus, what every engine has. */
export type MigrationStatus = Pick<
  PrimaryStatus,
  | 'role'
  | 'name'
  | 'phase'
  | 'reason'
  | 'vm'
  | 'backup'
  | 'term'
  | 'epoch'
  | 'committedEpoch'
  | 'outputHeld'
  | 'baseRounds'
  | 'epochs'
> &
  Partial<PrimaryStatus>;

export interface MigrationEvents {
  phase: [MigrationStatus];
  'disk-plan': [readonly DiskPlan[]];
  'disk-copy': [CopyProgress];
  'disks-copied': [DisksCopied];
  'disks-indexed': [DisksIndexed];
  /** As asked: the destination would go on from this checkpoint. */
  fallback: [FallBackPoint];
  round: [MigrationProgress];
  /** All of the VM is over there; it is about to run. */
  final: [MigrationFinal];
  /** It runs over there, and its memory follows. */
  'runs-early': [RunsEarly];
  /** The migration goes on, but somebody should know. */
  warning: [HoldfastError];
  ended: [MigrationOutcome];
}

/** A migration under way, by whichever engine. */
export interface AnyMigration extends EventEmitter<MigrationEvents> {
  readonly ended: Promise<MigrationOutcome>;
  readonly movedDisks: Primary['movedDisks'];
  readonly following: ServeProgress | undefined;
  status(): MigrationStatus;
  cancel(): Promise<MigrationOutcome>;
  release(): Promise<MigrationOutcome>;
}

export class Migration extends EventEmitter<MigrationEvents> implements AnyMigration, AsyncDisposable {
  readonly #settings: MigrationSettings;
  readonly #primary: Primary;
  readonly #policy: MigrationPolicy;
  readonly #limits: MigrationLimits;
  readonly #startedMs: number;
  readonly #ended: Promise<MigrationOutcome>;
  readonly #rounds: RoundStats[] = [];
  #firstStopMs = 0;
  #final: FinalEpoch | undefined;
  #disks: DisksCopied | undefined;
  #givenUp: Failure | undefined;
  #early: RunsEarly | undefined;

  private constructor(parts: {
    settings: MigrationSettings;
    primary: Primary;
    policy: MigrationPolicy;
    limits: MigrationLimits;
    startedMs: number;
  }) {
    super();
    this.#settings = parts.settings;
    this.#primary = parts.primary;
    this.#policy = parts.policy;
    this.#limits = parts.limits;
    this.#startedMs = parts.startedMs;
    this.#listen();
    this.#ended = this.#run();
  }

  /**
   * Attaches to a running VM and begins to move it. Settles when the VM has passed the pre-flight checks.
   * @throws ConfigError, UnsupportedHostError, UnsupportedVmError (nothing was touched), InjectError,
   *         RamMappingError, QmpConnectionError
   */
  static async start(options: MigrationOptions): Promise<Migration> {
    const startedMs = performance.now();
    const { key, qmp, signal, logger, ...input } = options;
    const settings = checkMigrationSettings(input);
    signal?.throwIfAborted();
    const { resumeEarly, earlyWaitMs, fallback } = settings;
    const postCopy = resumeEarly !== 'never';
    const policy = migrationPolicy(settings.policy, { postCopyOffered: postCopy });
    let overheadMs = OVERHEAD_MS;
    let limits: MigrationLimits | undefined;
    const primary = await Primary.start(
      { ...asPrimarySettings(settings), key, qmp, ...(logger === undefined ? {} : { logger }) },
      {
        afterRound: (pageBytes) => {
          limits = {
            ...{ downtimeMs: settings.downtimeMs, pageBytes },
            get overheadMs() {
              return overheadMs;
            },
          };
          const limit = { roundsMax: settings.roundsMax, totalMsMax: settings.timeMaxMs };
          return afterRound({ policy, limits, limit, postCopy });
        },
        resumeEarly,
        earlyWaitMs,
        fallback,
        skipDiskPages: settings.skipDiskPages,
      },
    );
    primary.on('prefix-ahead', (stoodStillMs) => {
      overheadMs = stoodStillMs;
    });
    const migration = new Migration({ settings, primary, policy, limits: limits!, startedMs });
    // After the migration's own listener, which tells what was decided with it as it was.
    primary.on('round', () => {
      overheadMs = agedOverheadMs(overheadMs, OVERHEAD_MS);
    });
    if (signal?.aborted) migration.#cancel();
    signal?.addEventListener('abort', () => migration.#cancel(), { once: true });
    return migration;
  }

  /** Settles when the VM has moved, or stays, with how. Never rejects. */
  get ended(): Promise<MigrationOutcome> {
    return this.#ended;
  }

  /** The VM's disks that were moved to servers at the start, as `moveDisks` asks for; undefined: none. */
  get movedDisks(): Primary['movedDisks'] {
    return this.#primary.movedDisks;
  }

  /** How the memory of a VM follows that runs over there; undefined where it doesn't. */
  get following(): ServeProgress | undefined {
    return this.#early === undefined ? undefined : this.#primary.servingProgress();
  }

  status(): PrimaryStatus {
    return this.#primary.status();
  }

  /**
   * Gives up: the VM runs on here. What has stopped it already goes on: it is over in a moment, and whoever
   * waits for `ended` learns which way. One that may run over there, for its hand-over was not answered,
   * is left stopped.
   */
  async cancel(): Promise<MigrationOutcome> {
    this.#cancel();
    return await this.#ended;
  }

  /** The operator's word that the VM does not run over there: it runs on here. */
  async release(): Promise<MigrationOutcome> {
    await this.#primary.detach();
    return await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel();
  }

  #cancel(): void {
    this.#giveUp({ code: 'HOLDFAST_E_CANCELLED', message: 'the migration was cancelled' });
  }

  #giveUp(failure: Failure): void {
    this.#givenUp ??= failure;
    this.#primary.giveUp(failure);
  }

  #listen(): void {
    const primary = this.#primary;
    primary.on('phase', (status) => this.emit('phase', status));
    primary.on('disk-plan', (plans) => this.emit('disk-plan', plans));
    primary.on('disk-copy', (progress) => this.emit('disk-copy', progress));
    primary.on('warning', (warning) => this.emit('warning', warning));
    primary.on('vm-stopped', (stop) => this.emit('warning', stoppedItself(stop)));
    primary.on('disks-copied', (copied) => {
      this.#disks = copied;
      this.emit('disks-copied', copied);
    });
    primary.on('disks-indexed', (indexed) => this.emit('disks-indexed', indexed));
    primary.on('fallback', (point) => this.emit('fallback', point));
    primary.on('prefix-ahead', (stoodStillMs) => {
      this.#firstStopMs += stoodStillMs;
    });
    primary.on('round', (round) => {
      this.#rounds.push(round);
      this.emit('round', {
        ...round,
        round: this.#rounds.length,
        bytesPerSecond: (round.bytes / round.roundMs) * 1_000,
        decision: this.#policy(this.#rounds, this.#limits),
      });
    });
    primary.on('runs-early', (early) => {
      this.#early = early;
      this.emit('runs-early', early);
    });
    primary.on('final', (final) => {
      this.#final = final;
      this.emit('final', final);
    });
  }

  async #run(): Promise<MigrationOutcome> {
    const { timeMaxMs } = this.#settings;
    const overdue = setTimeout(
      () => this.#giveUp(notConverged(`it has not converged within ${timeText(timeMaxMs)}`)),
      timeMaxMs,
    );
    const ended = await this.#primary.ended;
    clearTimeout(overdue);
    const outcome = this.#outcomeOf(ended);
    this.emit('ended', outcome);
    return outcome;
  }

  #earlyOf(): EarlyMove | undefined {
    const cost = this.#primary.faultCost;
    if (cost === undefined) return undefined;
    const { pagesLeft: _none, ...served } = this.#primary.servingProgress();
    return { ...served, ...cost };
  }

  #outcomeOf(outcome: Outcome): MigrationOutcome {
    switch (outcome.kind) {
      case 'switched-over': {
        const { term, downtimeMs, resumeMs } = outcome;
        const final = this.#final;
        const early = this.#earlyOf();
        const roundBytes = this.#rounds.reduce((sum, { bytes }) => sum + bytes, 0);
        const diskPages = sumDiskPages([...this.#rounds, this.#final].map((each) => each?.diskPages));
        return {
          kind: 'moved',
          term,
          totalMs: performance.now() - this.#startedMs,
          downtimeMs,
          downtimeParts: final && downtimeParts(final, { downtimeMs, resumeMs }),
          resumeMs,
          firstStopMs: this.#firstStopMs,
          rounds: this.#rounds.length,
          bytes: roundBytes + (final?.bytes ?? 0) + (early?.bytes ?? 0),
          diskBytes: (this.#disks?.bytes ?? 0) + (final?.diskBytes ?? 0),
          final,
          ...(diskPages === undefined ? {} : { diskPages }),
          ...(early === undefined ? {} : { early }),
        };
      }
      case 'detached':
        return {
          kind: 'stayed',
          failure: this.#givenUp ?? { code: 'HOLDFAST_E_CANCELLED', message: 'the migration was given up' },
          mayRunThere: false,
        };
      case 'failed':
        return {
          kind: 'stayed',
          failure: outcome.failure,
          mayRunThere: this.#primary.mayRunThere,
          ...lossOf({
            failure: outcome.failure,
            ranThere: this.#early !== undefined,
            pagesLeft: this.#primary.servingProgress().pagesLeft,
            fallback: this.#primary.fallback,
          }),
        };
      case 'vm-ended':
      case 'vm-lost':
      case 'fenced':
        return outcome;
    }
  }
}

const stoppedItself = (stop: IoErrorStop): HoldfastError =>
  new DiskError(`the VM stands still: ${stopText(stop)}`, {
    cure: 'It moves all the same, and tries the request again over there.',
  });

/**
 * Moves a running VM, and settles when it runs on the other side.
 * @throws HoldfastError if it does not: the VM then stays here, and the message says in which state
 */
export const migrate = async (
  options: MigrationOptions,
): Promise<Extract<MigrationOutcome, { kind: 'moved' }>> => {
  const migration = await Migration.start(options);
  const outcome = await migration.ended;
  if (outcome.kind === 'moved') return outcome;
  throw migrationError(outcome);
};
