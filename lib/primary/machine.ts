/**
 * The primary's decisions, pure: `step(state, event) → [state, actions]`. No
 * clock, socket or promise in here; primary.ts carries the actions out and
 * reports back as events. The same machine runs in the simulator.
 *
 *   connecting ──connected──► syncing ──converged──► protected ──► ended
 *        ▲                       │                       │
 *        └──retry── waiting ◄────┴────── backup-lost ◄───┘
 *
 * `syncing` copies the disks first, if there are any, then RAM in rounds.
 *
 * A migration is the same with a first epoch that is the last. Nothing is held
 * before it, for until it is handed over the VM runs here and nowhere else:
 *
 *   connecting ─► syncing ─stop-and-copy─► capturing ─► sending ─► handing-over ─took-over─► ended
 *                    │                         │           │              └─ no answer: as at a switchover
 *                    └──── backup lost, given up, failed ──┴─► the VM runs on here, ended
 *
 * With pages that follow (`pagesFollow`) it is handed over before its memory is there, without a round
 * before it, or after some. It is over when all pages are there; the connection they travel by decides, for
 * from the hand-over on the VM must never run here again:
 *
 *   handing-over ─took-over─► serving ─pages-served─► ended      pages-lost ─► ended, left stopped
 *
 * One epoch, within `protected`:
 *
 *   idle ─tick─► capturing ─captured─► sending ──acked + resumed──► releasing ─► idle
 *                 (VM stopped)          staged: [resume, send]
 *                                       direct: [send], resume on acked
 *
 * Rules of DESIGN part 3 that live here: output is released only on `acked`
 * (output commit); at most one epoch is unacknowledged, so two chained buffers
 * suffice (everything is bounded); after losing the backup output stays held
 * unless the policy grants the next term (one active side).
 */
import type { ConvergencePolicy, RoundStats } from './convergence.js';

export type BackupLostPolicy = 'hold' | 'release';
export type CaptureMode = 'staged' | 'direct' | 'auto';
export type EpochMode = 'staged' | 'direct';
/**
 * Why an epoch ended: output waited, much was dirty, much was written to disks, time was up; the first after
 * a base sync; a switchover.
 */
export type EpochTrigger = 'output' | 'dirty' | 'disk' | 'interval' | 'first' | 'request';

export interface PrimaryConfig {
  readonly onBackupLost: BackupLostPolicy;
  /** Pause between attempts to reach the backup again. */
  readonly retryMs: number;
  /** A capture that fails this often in a row ends protection. */
  readonly captureFailuresMax: number;
  readonly purpose: Purpose;
}

export type Purpose =
  | { readonly kind: 'protect'; readonly convergence: ConvergencePolicy }
  /** The VM moves to the backup, which never takes over but when it is told to. */
  | {
      readonly kind: 'migrate';
      readonly afterRound: AfterRound;
      /** Without a round: stopped and handed over as soon as it can be, its pages follow. */
      readonly atOnce?: boolean;
    };

/** What follows on a migration's rounds so far; a failure gives it up. */
export type AfterRound = (
  rounds: readonly RoundStats[],
) => 'next-round' | 'stop-and-copy' | 'post-copy' | Failure;

export interface Failure {
  readonly code: string;
  readonly message: string;
  readonly cure?: string | undefined;
}

/** The epoch in the making. */
export type Cycle =
  | { readonly at: 'idle' }
  | { readonly at: 'capturing'; readonly epoch: number; readonly final: boolean }
  | {
      readonly at: 'sending';
      readonly epoch: number;
      readonly mode: EpochMode;
      readonly final: boolean;
      readonly resumed: boolean;
      readonly acked: boolean;
    }
  | { readonly at: 'releasing'; readonly epoch: number }
  /** The VM is stopped for good here; the backup was told to run it. */
  | { readonly at: 'handing-over'; readonly epoch: number }
  /** It runs there, and lacks pages of here. */
  | {
      readonly at: 'serving';
      readonly epoch: number;
      readonly term: number;
      readonly resumeMs: number;
      readonly downtimeMs: number;
    };

export type Phase =
  | { readonly name: 'connecting' }
  | {
      readonly name: 'syncing';
      /** The disks' images are being copied; RAM, which changes faster, comes after them. */
      readonly copyingDisks: boolean;
      readonly rounds: readonly RoundStats[];
    }
  | {
      readonly name: 'protected';
      readonly cycle: Cycle;
      /** Why the next epoch should have begun while one was still under way. */
      readonly due: EpochTrigger | undefined;
      /** The backup was lost while an effect was under way that must end first. */
      readonly lost: string | undefined;
    }
  | {
      /** Without a backup. */
      readonly name: 'waiting';
      /** Until the effects of the loss are done; a detach that comes meanwhile waits for them. */
      readonly entering: boolean;
      readonly detachAsked: boolean;
      readonly reason: string;
      /** A migration that ends here, without a hand-over. */
      readonly failure?: Failure;
    }
  | { readonly name: 'ended'; readonly outcome: Outcome };

export type Outcome =
  | { readonly kind: 'detached' }
  | {
      readonly kind: 'switched-over';
      readonly term: number;
      readonly epoch: number;
      /** At the backup, from its decision until the VM ran. */
      readonly resumeMs: number;
      /** By this host's clock alone: from the VM's stop here until it was heard that it runs there. */
      readonly downtimeMs: number;
    }
  | { readonly kind: 'vm-ended'; readonly reason: string }
  | { readonly kind: 'vm-lost'; readonly reason: string }
  | { readonly kind: 'fenced'; readonly term: number; readonly message: string }
  | { readonly kind: 'failed'; readonly failure: Failure };

export interface PrimaryState {
  readonly config: PrimaryConfig;
  /** The VM has disks that travel with the checkpoint. */
  readonly hasDisks: boolean;
  readonly phase: Phase;
  readonly term: number;
  /** Last epoch begun. One that could not be captured is begun again, under its number. */
  readonly epoch: number;
  /** Last epoch acknowledged by any backup. */
  readonly committed: number;
  /** Output is held (the gate is in place). */
  readonly gateInstalled: boolean;
  /** A backup has acknowledged a checkpoint since this daemon started. */
  readonly everProtected: boolean;
  /** The composite stream's prefix must be taken again in the next pause. */
  readonly prefixStale: boolean;
  /** Somebody else stopped the VM, or QEMU did: no epochs, and we don't start it. */
  readonly operatorPaused: boolean;
  /** QEMU did, for a disk that failed. The request is in its device state: whoever runs it tries it again. */
  readonly ioError: boolean;
  /** We stopped the VM and have not started it yet. */
  readonly vmStopped: boolean;
  /**
   * The backup may be running the VM (a hand-over without an answer; an earlier
   * daemon of ours died): policy `release` is off until it has acknowledged again.
   * For a migration until a backup has accepted a session: one that runs the VM refuses.
   */
  readonly mustHold: boolean;
  readonly captureFailures: number;
  /** The final epoch has no pages: they follow when it runs there. */
  readonly pagesFollow: boolean;
  readonly pending: 'none' | 'switchover' | 'detach';
}

export type PrimaryEvent =
  | { readonly type: 'start' }
  | { readonly type: 'connected' }
  | { readonly type: 'connect-failed'; readonly failure: Failure }
  /** The VM has run there before its memory was there, and was lost: what is here is its past. */
  | { readonly type: 'lost-there'; readonly failure: Failure }
  | { readonly type: 'fenced'; readonly term: number; readonly message: string }
  | { readonly type: 'disks-copied' }
  | { readonly type: 'round-done'; readonly round: RoundStats }
  | { readonly type: 'tick'; readonly trigger: EpochTrigger }
  | { readonly type: 'captured'; readonly epoch: number; readonly mode: EpochMode }
  | { readonly type: 'capture-failed'; readonly epoch: number; readonly failure: Failure }
  | { readonly type: 'resumed' }
  | { readonly type: 'acked'; readonly epoch: number }
  | { readonly type: 'released'; readonly epoch: number }
  | { readonly type: 'backup-lost'; readonly reason: string }
  | { readonly type: 'loss-entered' }
  | { readonly type: 'retry' }
  | {
      readonly type: 'took-over';
      readonly term: number;
      readonly epoch: number;
      readonly resumeMs: number;
      readonly downtimeMs: number;
    }
  | { readonly type: 'takeover-failed'; readonly failure: Failure }
  /** All pages that were to follow are there: so it runs there, whether that was heard or not. */
  | { readonly type: 'pages-served'; readonly downtimeMs: number }
  /** They can't be brought there any more. */
  | { readonly type: 'pages-lost'; readonly failure: Failure }
  | { readonly type: 'vm-reset' }
  | { readonly type: 'vm-paused' }
  | { readonly type: 'vm-resumed' }
  | { readonly type: 'vm-io-error' }
  /** The disk for which it stopped was full, and is no more. */
  | { readonly type: 'disk-has-room' }
  | { readonly type: 'vm-gone'; readonly ended: boolean; readonly reason: string }
  | { readonly type: 'switchover' }
  | { readonly type: 'detach' }
  /** A migration's time is up. */
  | { readonly type: 'give-up'; readonly failure: Failure }
  | { readonly type: 'failed'; readonly failure: Failure };

export type PrimaryAction =
  | { readonly type: 'connect'; readonly term: number; readonly outputHeld: boolean }
  /** In a short stop of its own, so that it does not make the move's longer. Before `connected` it has ended. */
  | { readonly type: 'take-prefix' }
  /** `resume`: the VM was stopped by us while the backup was away; it may run again, output held. */
  /** Switch the disks' logs on, then copy the images beside the running guest. */
  | { readonly type: 'copy-disks'; readonly resume: boolean }
  | {
      readonly type: 'base-round';
      readonly first: boolean;
      readonly resume: boolean;
      /** Before it: a short stop for what would make the only pause of a migration longer. */
      readonly prefixAhead: boolean;
    }
  /** Begin to watch for when the next epoch is due (pace.ts): a tick will come. */
  | { readonly type: 'arm-epoch' }
  | { readonly type: 'arm-retry'; readonly ms: number }
  | {
      readonly type: 'begin-epoch';
      readonly epoch: number;
      readonly installGate: boolean;
      readonly takePrefix: boolean;
      readonly final: boolean;
      readonly trigger: EpochTrigger;
      readonly pagesFollow?: boolean;
    }
  | { readonly type: 'resume' }
  /** As somebody else would: `vm-resumed` tells. */
  | { readonly type: 'continue-vm' }
  | { readonly type: 'send'; readonly epoch: number }
  | { readonly type: 'release'; readonly epoch: number }
  | { readonly type: 'hand-over'; readonly epoch: number; readonly pagesFollow?: boolean }
  | { readonly type: 'resume-after-failed-handover' }
  /** Writes are only marked in the maps from now on: see backupLost(). */
  | { readonly type: 'stop-logs' }
  /** Cut the bulk connection, give back the epoch's pages, and leave the VM as said. */
  | {
      readonly type: 'enter-loss';
      readonly abortEpoch: number | undefined;
      readonly vm: 'stop' | 'run';
      readonly openGate: boolean;
    }
  | { readonly type: 'finish'; readonly outcome: Outcome; readonly release: boolean };

export type Step = readonly [PrimaryState, readonly PrimaryAction[]];

export const initialState = (
  config: PrimaryConfig,
  options: {
    readonly term: number;
    readonly epoch?: number;
    readonly hasDisks: boolean;
    /** The gate of an earlier run was found in place, with what it holds. */
    readonly gateAdopted: boolean;
    readonly operatorPaused: boolean;
    readonly ioError?: boolean;
    readonly vmStopped: boolean;
  },
): PrimaryState => ({
  config,
  hasDisks: options.hasDisks,
  phase: { name: 'connecting' },
  term: options.term,
  epoch: options.epoch ?? 0,
  committed: 0,
  gateInstalled: options.gateAdopted,
  everProtected: false,
  prefixStale: true,
  operatorPaused: options.operatorPaused,
  ioError: options.ioError ?? false,
  vmStopped: options.vmStopped,
  mustHold: options.gateAdopted || options.vmStopped,
  captureFailures: 0,
  pagesFollow: false,
  pending: 'none',
});

const none: readonly PrimaryAction[] = [];

export const step = (state: PrimaryState, event: PrimaryEvent): Step => {
  if (state.phase.name === 'ended') return [state, none];
  switch (event.type) {
    case 'start':
      return start(state);
    case 'vm-gone':
      // What it lacks there is in the file of its RAM here, which outlives this QEMU.
      if (followsThere(state)) return [state, none];
      return finish(
        state,
        event.ended ? { kind: 'vm-ended', reason: event.reason } : { kind: 'vm-lost', reason: event.reason },
      );
    case 'fenced':
      return finish(state, { kind: 'fenced', term: event.term, message: event.message });
    case 'failed':
      if (followsThere(state)) return [state, none];
      return finish(state, { kind: 'failed', failure: event.failure });
    case 'vm-reset':
      return [{ ...state, prefixStale: true }, none];
    case 'vm-paused':
      return [{ ...state, operatorPaused: true }, none];
    case 'vm-resumed':
      return operatorResumed({ ...state, operatorPaused: false, ioError: false });
    case 'vm-io-error':
      return [{ ...state, operatorPaused: true, ioError: true }, none];
    case 'disk-has-room':
      return [state, state.ioError && mayContinue(state) ? [{ type: 'continue-vm' }] : none];
    case 'detach':
      return requestDetach(state);
    case 'switchover':
      return requestSwitchover(state);
    case 'give-up':
      return giveUpInTime(state, event.failure);
    case 'backup-lost':
      return backupLost(state, event.reason);
    case 'connected':
      return connected(state);
    case 'connect-failed':
      return connectFailed(state, event.failure);
    case 'retry':
      return state.phase.name === 'waiting' && !state.phase.entering ? connect(state) : [state, none];
    case 'loss-entered':
      return lossEntered(state);
    case 'lost-there':
      return state.phase.name === 'connecting'
        ? finish({ ...state, mustHold: true }, { kind: 'failed', failure: event.failure })
        : [state, none];
    case 'disks-copied':
      return disksCopied(state);
    case 'round-done':
      return roundDone(state, event.round);
    default:
      return state.phase.name === 'protected' ? cycleStep(state, state.phase, event) : [state, none];
  }
};

type Protected = Extract<Phase, { name: 'protected' }>;
type CycleEvent = Extract<
  PrimaryEvent,
  {
    type:
      | 'tick'
      | 'captured'
      | 'capture-failed'
      | 'resumed'
      | 'acked'
      | 'released'
      | 'took-over'
      | 'takeover-failed'
      | 'pages-served'
      | 'pages-lost';
  }
>;

const cycleStep = (state: PrimaryState, phase: Protected, event: CycleEvent): Step => {
  const { cycle } = phase;
  switch (event.type) {
    case 'tick':
      if (cycle.at !== 'idle' || state.operatorPaused)
        return [withPhase(state, { ...phase, due: phase.due ?? event.trigger }), none];
      return beginEpoch(state, event.trigger, false);

    case 'captured': {
      if (cycle.at !== 'capturing' || cycle.epoch !== event.epoch) return [state, none];
      const stopped = {
        ...state,
        gateInstalled: state.gateInstalled || !isMigration(state),
        vmStopped: true,
        captureFailures: 0,
      };
      if (phase.lost !== undefined) return enterLoss(stopped, phase.lost, cycle.epoch);
      const sending: Cycle = {
        at: 'sending',
        epoch: cycle.epoch,
        mode: event.mode,
        final: cycle.final,
        resumed: false,
        acked: false,
      };
      const send: PrimaryAction = { type: 'send', epoch: cycle.epoch };
      // Direct: pages are read from guest RAM until the backup has them (no torn pages).
      const resumeNow = event.mode === 'staged' && !cycle.final;
      return [
        withPhase(stopped, { ...phase, cycle: sending }),
        resumeNow ? [{ type: 'resume' }, send] : [send],
      ];
    }

    case 'capture-failed': {
      if (cycle.at !== 'capturing' || cycle.epoch !== event.epoch) return [state, none];
      const failures = state.captureFailures + 1;
      // The number is used again: what was sent ahead for it stays open at the backup until then.
      const failed = {
        ...state,
        epoch: state.epoch - 1,
        captureFailures: failures,
        vmStopped: false,
        prefixStale: true,
      };
      if (phase.lost !== undefined) return enterLoss(failed, phase.lost, cycle.epoch);
      if (failures >= state.config.captureFailuresMax) {
        return finish(failed, { kind: 'failed', failure: event.failure });
      }
      // A tick or a request that came meanwhile must not be lost: no timer may be running.
      return becomeIdle(failed, phase);
    }

    case 'resumed': {
      if (cycle.at !== 'sending') return [{ ...state, vmStopped: false }, none];
      const running = { ...state, vmStopped: false };
      if (!cycle.acked) return [withPhase(running, { ...phase, cycle: { ...cycle, resumed: true } }), none];
      return release(running, phase, cycle.epoch);
    }

    case 'acked': {
      if (cycle.at !== 'sending' || cycle.epoch !== event.epoch) return [state, none];
      const committed = { ...state, committed: event.epoch, everProtected: true, mustHold: false };
      if (cycle.final) {
        return [
          withPhase(committed, { ...phase, cycle: { at: 'handing-over', epoch: event.epoch } }),
          [{ type: 'hand-over', epoch: event.epoch, ...following(state) }],
        ];
      }
      if (cycle.resumed) return release(committed, phase, cycle.epoch);
      return [
        withPhase(committed, { ...phase, cycle: { ...cycle, acked: true } }),
        cycle.mode === 'direct' ? [{ type: 'resume' }] : none,
      ];
    }

    case 'released':
      if (cycle.at !== 'releasing' || cycle.epoch !== event.epoch) return [state, none];
      if (phase.lost !== undefined) return enterLoss(state, phase.lost, undefined);
      return becomeIdle(state, phase);

    case 'took-over':
      if (cycle.at !== 'handing-over') return [state, none];
      if (state.pagesFollow) {
        const { term, epoch, resumeMs, downtimeMs } = event;
        const serving: Cycle = { at: 'serving', epoch, term, resumeMs, downtimeMs };
        return [withPhase(state, { ...phase, cycle: serving }), none];
      }
      return finish(state, {
        kind: 'switched-over',
        term: event.term,
        epoch: event.epoch,
        resumeMs: event.resumeMs,
        downtimeMs: event.downtimeMs,
      });

    case 'pages-served':
      return pagesServed(state, cycle, event.downtimeMs);

    case 'pages-lost':
      if (!followsThere(state)) return [state, none];
      // It may run there; nobody here has heard that it does, so the question can still be put.
      return cycle.at === 'handing-over'
        ? enterLoss({ ...state, mustHold: true, pagesFollow: false }, event.failure.message, undefined)
        : finish({ ...state, mustHold: true }, { kind: 'failed', failure: event.failure });

    case 'takeover-failed':
      if (cycle.at !== 'handing-over') return [state, none];
      if (isMigration(state)) return giveUp({ ...state, pagesFollow: false }, event.failure, undefined);
      // The backup said that it does not run the VM: it goes on here, and its output may leave.
      return [
        withPhase(
          { ...state, pending: state.pending === 'detach' ? 'detach' : 'none' },
          {
            ...phase,
            due: 'request', // nothing was armed for the final epoch
            cycle: {
              at: 'sending',
              epoch: cycle.epoch,
              mode: 'direct',
              final: false,
              resumed: false,
              acked: true,
            },
          },
        ),
        [{ type: 'resume-after-failed-handover' }],
      ];
  }
};

const withPhase = (state: PrimaryState, phase: Phase): PrimaryState => ({ ...state, phase });

/** It has been handed over, or that is under way, and lacks pages of here. */
const followsThere = ({ phase, pagesFollow }: PrimaryState): boolean =>
  pagesFollow &&
  phase.name === 'protected' &&
  (phase.cycle.at === 'handing-over' || phase.cycle.at === 'serving');

const following = ({ pagesFollow }: PrimaryState): { readonly pagesFollow?: boolean } =>
  pagesFollow ? { pagesFollow } : {};

const pagesServed = (state: PrimaryState, cycle: Cycle, downtimeMs: number): Step => {
  if (!followsThere(state)) return [state, none];
  // Its word that it runs was lost on the way, with the connection: its page faults say so, too.
  const unheard = { term: state.term + 1, epoch: state.committed, resumeMs: 0, downtimeMs };
  const heard = cycle.at === 'serving' ? cycle : unheard;
  const { term, epoch, resumeMs } = heard;
  return finish(state, { kind: 'switched-over', term, epoch, resumeMs, downtimeMs: heard.downtimeMs });
};

const isMigration = ({ config }: PrimaryState): boolean => config.purpose.kind === 'migrate';

/**
 * What moves at once has its short stop for the firmware's memory while the backup gets ready. Not if somebody
 * else has stopped the VM, nor if it may run over there: it would run here for a moment.
 */
const start = (state: PrimaryState): Step => {
  const [next, actions] = connect(state);
  const mayStop = !state.operatorPaused && !state.vmStopped && !state.mustHold;
  if (!movesAtOnce(state) || !mayStop) return [next, actions];
  return [{ ...next, prefixStale: false }, [...actions, { type: 'take-prefix' }]];
};

const connect = (state: PrimaryState): Step => [
  { ...withPhase(state, { name: 'connecting' }), prefixStale: true },
  [{ type: 'connect', term: state.term, outputHeld: state.gateInstalled }],
];

const connected = (state: PrimaryState): Step => {
  if (state.phase.name !== 'connecting') return [state, none];
  // Given up while it was handed over, which is undone: this backup does not run it.
  if (isMigration(state) && state.pending === 'detach') {
    return finish({ ...state, mustHold: false }, { kind: 'detached' });
  }
  const { hasDisks } = state;
  if (!hasDisks && movesAtOnce(state)) return moveWithoutPages(state);
  const resume = state.vmStopped && !state.operatorPaused;
  return [
    withPhase(
      {
        ...state,
        vmStopped: false,
        prefixStale: movesAtOnce(state) ? state.prefixStale : hasDisks || !prefixIsAhead(state),
        mustHold: state.mustHold && !isMigration(state),
      },
      { name: 'syncing', copyingDisks: hasDisks, rounds: [] },
    ),
    [hasDisks ? { type: 'copy-disks', resume } : firstRound(state, resume)],
  ];
};

const movesAtOnce = ({ config: { purpose } }: PrimaryState): boolean =>
  purpose.kind === 'migrate' && purpose.atOnce === true;

/** From here on it stands still until it runs there: whatever takes time is behind it, or follows. */
const moveWithoutPages = (state: PrimaryState): Step =>
  beginMove({
    ...state,
    phase: { name: 'protected', cycle: { at: 'idle' }, due: 'first', lost: undefined },
    vmStopped: false,
    mustHold: false,
    pagesFollow: true,
  });

const firstRound = (state: PrimaryState, resume: boolean): PrimaryAction => ({
  type: 'base-round',
  first: true,
  resume,
  prefixAhead: prefixIsAhead(state),
});

/** Who paused the VM would see it run. */
const prefixIsAhead = (state: PrimaryState): boolean => isMigration(state) && !state.operatorPaused;

const disksCopied = (state: PrimaryState): Step => {
  if (state.phase.name !== 'syncing' || !state.phase.copyingDisks) return [state, none];
  if (movesAtOnce(state)) return moveWithoutPages(state);
  return [
    withPhase({ ...state, prefixStale: !prefixIsAhead(state) }, { ...state.phase, copyingDisks: false }),
    [firstRound(state, false)],
  ];
};

const connectFailed = (state: PrimaryState, failure: Failure): Step => {
  if (state.phase.name !== 'connecting') return [state, none];
  // The first attempt's failure is the operator's to see at once; later the backup may come back.
  if (!state.everProtected && !state.gateInstalled && !state.mustHold) {
    return finish(state, { kind: 'failed', failure });
  }
  // Adopted from an earlier daemon and running: held output is bounded only while the VM is stopped.
  if (state.gateInstalled && !state.vmStopped && !state.operatorPaused) {
    return enterLoss(state, failure.message, undefined);
  }
  return [
    withPhase(state, { name: 'waiting', entering: false, detachAsked: false, reason: failure.message }),
    [{ type: 'arm-retry', ms: state.config.retryMs }],
  ];
};

const roundDone = (state: PrimaryState, round: RoundStats): Step => {
  if (state.phase.name !== 'syncing') return [state, none];
  const rounds = [...state.phase.rounds, round];
  const { purpose } = state.config;
  const next =
    purpose.kind === 'migrate'
      ? purpose.afterRound(rounds)
      : purpose.convergence(rounds)
        ? 'first-epoch'
        : 'next-round';
  if (typeof next === 'object') return finish(state, { kind: 'failed', failure: next });
  if (next === 'next-round') {
    return [
      withPhase(state, { ...state.phase, rounds }),
      [{ type: 'base-round', first: false, resume: false, prefixAhead: false }],
    ];
  }
  const ready = withPhase(state, { name: 'protected', cycle: { at: 'idle' }, due: 'first', lost: undefined });
  if (next === 'stop-and-copy') return beginMove(ready);
  if (next === 'post-copy') return beginMove({ ...ready, pagesFollow: true });
  return state.operatorPaused ? [ready, none] : beginEpoch(ready, 'first', false);
};

/** A migration's only epoch. A VM that stopped for its disk tries that again over there. */
const beginMove = (state: PrimaryState): Step =>
  state.operatorPaused && !state.ioError
    ? finish(state, { kind: 'failed', failure: pausedByOther })
    : beginEpoch({ ...state, pending: 'switchover' }, 'request', true);

/** It would run there, which nobody asked for. */
const pausedByOther: Failure = {
  code: 'HOLDFAST_E_CANCELLED',
  message: 'the VM was paused by somebody else; it would run on the destination',
  cure: 'Resume it first (QMP cont), or let it be.',
};

const beginEpoch = (state: PrimaryState, trigger: EpochTrigger, final: boolean): Step => {
  const epoch = state.epoch + 1;
  const begin: PrimaryAction = {
    type: 'begin-epoch',
    epoch,
    installGate: !state.gateInstalled && !isMigration(state),
    takePrefix: state.prefixStale,
    final,
    trigger,
    ...following(state),
  };
  // A reset that is reported while this epoch is captured marks the prefix stale anew.
  const next = withPhase(
    { ...state, epoch, prefixStale: false },
    {
      name: 'protected',
      cycle: { at: 'capturing', epoch, final },
      due: undefined,
      lost: undefined,
    },
  );
  return [next, final ? [begin] : [{ type: 'arm-epoch' }, begin]];
};

const release = (state: PrimaryState, phase: Protected, epoch: number): Step => [
  withPhase(state, { ...phase, cycle: { at: 'releasing', epoch } }),
  [{ type: 'release', epoch }],
];

const becomeIdle = (state: PrimaryState, phase: Protected): Step => {
  const idle = withPhase(state, { ...phase, cycle: { at: 'idle' } });
  if (state.pending === 'detach') return finish(idle, { kind: 'detached' });
  if (isMigration(state)) return beginMove(idle);
  if (state.pending === 'switchover') return beginEpoch(idle, 'request', true);
  return phase.due !== undefined && !state.operatorPaused ? beginEpoch(idle, phase.due, false) : [idle, none];
};

const operatorResumed = (state: PrimaryState): Step => {
  const { phase } = state;
  if (phase.name !== 'protected' || phase.cycle.at !== 'idle' || phase.due === undefined) {
    return [state, none];
  }
  return beginEpoch(state, phase.due, false);
};

/** Nothing of ours is under way with it, and it is not us who hold it. */
const mayContinue = ({ phase, vmStopped, gateInstalled }: PrimaryState): boolean => {
  switch (phase.name) {
    case 'protected':
      return phase.cycle.at === 'idle';
    case 'syncing':
      return true;
    case 'connecting':
    case 'waiting':
      return !vmStopped && !gateInstalled; // held output is bounded only while the VM is stopped
    case 'ended':
      return false;
  }
};

const requestDetach = (state: PrimaryState): Step => {
  const { phase } = state;
  // What is under way ends first. A hand-over decides for itself: only if it fails the VM is ours to detach.
  if (phase.name === 'protected' && phase.cycle.at !== 'idle') return [{ ...state, pending: 'detach' }, none];
  // The loss's effects stop the VM; undone before they have ended, they would stop it afterwards.
  if (phase.name === 'waiting' && phase.entering) {
    return [withPhase(state, { ...phase, detachAsked: true }), none];
  }
  return finish({ ...state, pending: 'detach' }, { kind: 'detached' });
};

const requestSwitchover = (state: PrimaryState): Step => {
  const { phase } = state;
  if (phase.name !== 'protected' || state.pending !== 'none') return [state, none];
  const asked: PrimaryState = { ...state, pending: 'switchover' };
  // One ordinary epoch first: its output leaves, and only what the guest sends between the two is
  // left in the stopped VM's filters (a filter can't deliver while the VM is stopped).
  // A VM that has stopped itself sends nothing more, and would only fail once more in between.
  return phase.cycle.at === 'idle' ? beginEpoch(asked, 'request', state.ioError) : [asked, none];
};

const backupLost = (state: PrimaryState, reason: string): Step => {
  const { phase } = state;
  if (followsThere(state)) return [state, none]; // what it lacks travels by another connection, which decides
  switch (phase.name) {
    case 'connecting':
      return connectFailed(state, { code: 'HOLDFAST_E_PEER_LOST', message: reason });
    case 'syncing':
      return enterLoss(state, reason, undefined);
    case 'protected': {
      const { cycle } = phase;
      // A capture or a release is under way in QEMU: it ends first, then the loss is entered. Nobody
      // reads the disks' logs any more, though: a write that waits for room in one would keep `stop`
      // from ever being answered.
      if (cycle.at === 'capturing' || cycle.at === 'releasing') {
        return [
          withPhase(state, { ...phase, lost: phase.lost ?? reason }),
          state.hasDisks && phase.lost === undefined ? [{ type: 'stop-logs' }] : none,
        ];
      }
      if (cycle.at === 'handing-over') return enterLoss({ ...state, mustHold: true }, reason, undefined);
      return enterLoss(state, reason, cycle.at === 'sending' && !cycle.acked ? cycle.epoch : undefined);
    }
    case 'waiting':
    case 'ended':
      return [state, none];
  }
};

/**
 * Hold: the VM stops, so that held output stays within its bound, until the
 * backup is back. Release: the operator's policy grants this side the next
 * term; the output leaves and the VM runs unprotected. Before the first commit
 * nothing is held and nothing is decided: the VM just runs on.
 */
const enterLoss = (state: PrimaryState, reason: string, abortEpoch: number | undefined): Step => {
  if (isMigration(state) && !state.mustHold) {
    return giveUp(state, { code: 'HOLDFAST_E_PEER_LOST', message: reason }, abortEpoch);
  }
  const unprotected = state.committed === 0 && !state.gateInstalled;
  const grant = !unprotected && !state.mustHold && state.config.onBackupLost === 'release';
  const hold = !unprotected && !grant;
  // A detach that was asked for while the backup was there grants nothing now that it may take over:
  // it stays pending until the backup is back, or until it is asked for again.
  if (state.pending === 'detach' && !hold) return finish(state, { kind: 'detached' });
  return [
    {
      ...state,
      phase: { name: 'waiting', entering: true, detachAsked: false, reason },
      pending: state.pending === 'detach' ? 'detach' : 'none',
      term: grant ? state.term + 1 : state.term,
      gateInstalled: hold && state.gateInstalled,
      vmStopped: hold,
    },
    [{ type: 'enter-loss', abortEpoch, vm: hold ? 'stop' : 'run', openGate: grant }],
  ];
};

/** Before its hand-over a migration ends as if it had never been: the backup won't run the VM. */
const giveUp = (state: PrimaryState, failure: Failure, abortEpoch: number | undefined): Step => [
  {
    ...state,
    phase: { name: 'waiting', entering: true, detachAsked: false, reason: failure.message, failure },
    vmStopped: false,
  },
  [{ type: 'enter-loss', abortEpoch, vm: 'run', openGate: true }],
];

/** From the VM's stop on it is one transfer and one answer, each with a limit of its own: these are waited for. */
const giveUpInTime = (state: PrimaryState, failure: Failure): Step => {
  const { phase } = state;
  // Should it fail, it is not tried again.
  if (phase.name === 'protected') return [{ ...state, pending: 'detach' }, none];
  if (phase.name === 'waiting' && phase.entering) return [state, none];
  return finish(state, { kind: 'failed', failure });
};

const lossEntered = (state: PrimaryState): Step => {
  if (state.phase.name !== 'waiting') return [state, none];
  if (state.phase.failure !== undefined) {
    return finish(state, { kind: 'failed', failure: state.phase.failure });
  }
  if (state.phase.detachAsked) return finish(state, { kind: 'detached' });
  return [
    withPhase(state, { ...state.phase, entering: false }),
    [{ type: 'arm-retry', ms: state.config.retryMs }],
  ];
};

const finish = (state: PrimaryState, outcome: Outcome): Step => {
  const handedOver =
    followsThere(state) || (state.phase.name === 'protected' && state.phase.cycle.at === 'handing-over');
  const mustHold = state.mustHold || (handedOver && outcome.kind === 'failed');
  // Output may leave on the operator's word (detach), or when the policy grants it after a failure of ours.
  const release =
    outcome.kind === 'detached' ||
    (outcome.kind === 'failed' &&
      !mustHold &&
      (state.config.onBackupLost === 'release' || !state.gateInstalled));
  const vmStopped = state.vmStopped && !release;
  return [
    withPhase({ ...state, vmStopped, mustHold }, { name: 'ended', outcome }),
    [{ type: 'finish', outcome, release }],
  ];
};
