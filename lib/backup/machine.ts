/**
 * The backup's decisions, pure: `step(state, event) → [state, actions]`.
 *
 *   idle ─session─► preparing ─► syncing ─first commit─► protecting
 *    ▲                                                       │ primary lost
 *    │            ┌── session (same VM) ◄──── grace ◄────────┤
 *    │            ▼                             │            │
 *    └── detached, VM ended               grace over ─► taking-over ─► active
 *
 * A session fills a *generation*: one replica, one standby, one lineage of
 * epochs. `checkpoint` is what a takeover would run; a new generation takes its
 * place only with its own first commit, so a primary that comes back and syncs
 * anew never leaves the VM without a checkpoint.
 *
 * One that may lack pages when it is handed over is run on its primary's word
 * alone: without the primary it is worth nothing.
 *
 * A migration's session hands over, or doesn't: what is committed of it is run on
 * the primary's word, or the operator's, never because the primary is gone.
 *
 * One active side: a takeover fences the receiver before anything else, so the
 * old primary gets no more acknowledgements and falls silent; a primary of an
 * older term is refused from then on.
 */

export interface BackupConfig {
  /** Take over by itself, or only on the operator's word. */
  readonly takeover: 'auto' | 'manual';
  /** After a closed connection (not after silence): how long the primary may come back before a takeover. */
  readonly connectionGraceMs: number;
  /** The same, for a primary that said it would come back. */
  readonly reconnectGraceMs: number;
}

export interface Checkpoint {
  readonly generation: number;
  readonly epoch: number;
}

export interface Failure {
  readonly code: string;
  readonly message: string;
  readonly cure?: string | undefined;
}

export type Phase =
  | { readonly name: 'idle' }
  | { readonly name: 'preparing' }
  | { readonly name: 'syncing' }
  | { readonly name: 'protecting' }
  /** The primary is gone; it may come back until the timer ends, or the operator decides. */
  | { readonly name: 'grace'; readonly reason: string }
  | { readonly name: 'taking-over'; readonly planned: boolean; readonly reason: string }
  | { readonly name: 'active'; readonly epoch: number; readonly reason: string }
  | { readonly name: 'ended'; readonly failure: Failure | undefined };

export interface VmIdentity {
  readonly vmId: string;
  readonly term: number;
}

export interface BackupState {
  readonly config: BackupConfig;
  readonly phase: Phase;
  readonly vm: VmIdentity | undefined;
  /** What a takeover would run. */
  readonly checkpoint: Checkpoint | undefined;
  /** The generation that the open session fills. */
  readonly receiving: number | undefined;
  /** The session is a migration's. */
  readonly handOverOnly: boolean;
  /** What is committed of it may lack pages. */
  readonly mayLackPages: boolean;
}

export type BackupEvent =
  | {
      readonly type: 'session-requested';
      readonly generation: number;
      readonly vmId: string;
      readonly term: number;
      readonly outputHeld: boolean;
      readonly handOverOnly: boolean;
      readonly mayLackPages?: boolean;
    }
  | { readonly type: 'prepared'; readonly generation: number }
  | { readonly type: 'prepare-failed'; readonly generation: number; readonly failure: Failure }
  | { readonly type: 'committed'; readonly generation: number; readonly epoch: number }
  | {
      readonly type: 'primary-lost';
      readonly generation: number;
      readonly silent: boolean;
      readonly reason: string;
    }
  | { readonly type: 'primary-reconnecting'; readonly generation: number }
  | { readonly type: 'vm-lost'; readonly generation: number; readonly reason: string }
  | { readonly type: 'protection-ended'; readonly generation: number; readonly reason: string }
  | {
      readonly type: 'switchover';
      readonly generation: number;
      readonly epoch: number;
      /** Pages follow; for so long a cut link is waited for, meanwhile. */
      readonly pagesWaitMs?: number;
    }
  | { readonly type: 'grace-over' }
  | { readonly type: 'takeover-requested' }
  | { readonly type: 'took-over'; readonly epoch: number }
  | { readonly type: 'takeover-failed'; readonly failure: Failure }
  | { readonly type: 'vm-exited'; readonly reason: string };

export type BackupAction =
  | { readonly type: 'prepare'; readonly generation: number }
  | { readonly type: 'accept'; readonly generation: number }
  | {
      readonly type: 'refuse';
      readonly generation: number;
      readonly failure: Failure;
      readonly term: number | undefined;
    }
  | { readonly type: 'drop-generation'; readonly generation: number }
  | { readonly type: 'arm-grace'; readonly ms: number }
  | { readonly type: 'cancel-grace' }
  | {
      readonly type: 'take-over';
      readonly generation: number;
      readonly term: number;
      readonly planned: boolean;
      /** Pages follow: see `switchover`. */
      readonly pagesWaitMs?: number;
      /** Generation to drop meanwhile: a sync that never committed. */
      readonly abandon: number | undefined;
    }
  | { readonly type: 'reply-switchover-failed'; readonly generation: number; readonly failure: Failure }
  | { readonly type: 'clean-up'; readonly reason: string };

export type Step = readonly [BackupState, readonly BackupAction[]];

export const initialState = (config: BackupConfig): BackupState => ({
  config,
  phase: { name: 'idle' },
  vm: undefined,
  checkpoint: undefined,
  receiving: undefined,
  handOverOnly: false,
  mayLackPages: false,
});

const none: readonly BackupAction[] = [];

export const step = (state: BackupState, event: BackupEvent): Step => {
  switch (event.type) {
    case 'session-requested':
      return sessionRequested(state, event);
    case 'prepared':
      return state.phase.name === 'preparing' && event.generation === state.receiving
        ? [{ ...state, phase: { name: 'syncing' } }, [{ type: 'accept', generation: event.generation }]]
        : [state, none];
    case 'prepare-failed':
      return prepareFailed(state, event.generation, event.failure);
    case 'committed':
      return committed(state, event.generation, event.epoch);
    case 'primary-lost':
      return event.generation === state.receiving
        ? primaryLost(state, event.reason, event.silent ? 0 : state.config.connectionGraceMs)
        : [state, none];
    case 'primary-reconnecting':
      return event.generation === state.receiving
        ? primaryLost(
            state,
            'the primary is reconnecting',
            Math.max(state.config.connectionGraceMs, state.config.reconnectGraceMs),
          )
        : [state, none];
    case 'vm-lost':
      // Also a migration's: its QEMU has ended, so nobody else can run what is committed.
      return event.generation === state.receiving
        ? primaryLost({ ...state, handOverOnly: false }, event.reason, 0)
        : [state, none];
    case 'protection-ended':
      return event.generation === state.receiving ? protectionEnded(state, event.reason) : [state, none];
    case 'switchover':
      return switchover(state, event);
    case 'grace-over':
      return state.phase.name === 'grace' && takesOverAlone(state)
        ? takeOver(state, state.phase.reason, false)
        : [state, none];
    case 'takeover-requested':
      return isTakeoverPossible(state) ? takeOver(state, 'the operator asked for it', false) : [state, none];
    case 'took-over':
      return state.phase.name === 'taking-over'
        ? [
            {
              ...state,
              phase: { name: 'active', epoch: event.epoch, reason: state.phase.reason },
              receiving: undefined,
            },
            none,
          ]
        : [state, none];
    case 'takeover-failed':
      return takeoverFailed(state, event.failure);
    case 'vm-exited':
      return state.phase.name === 'active'
        ? [
            { ...initialState(state.config), phase: { name: 'ended', failure: undefined } },
            [{ type: 'clean-up', reason: event.reason }],
          ]
        : [state, none];
  }
};

/** Without anybody's word, when the primary is gone. */
const takesOverAlone = ({ config, handOverOnly }: BackupState): boolean =>
  config.takeover === 'auto' && !handOverOnly;

/** A checkpoint is there and nobody runs it yet. */
export const isTakeoverPossible = (state: BackupState): boolean =>
  state.checkpoint !== undefined &&
  !state.mayLackPages &&
  (state.phase.name === 'grace' ||
    state.phase.name === 'protecting' ||
    state.phase.name === 'syncing' ||
    state.phase.name === 'preparing' ||
    (state.phase.name === 'ended' && state.phase.failure !== undefined)); // once more, on the operator's word

/** This side runs the VM, is about to, or has ended: what a primary says changes nothing any more. */
export const isDecided = (state: BackupState): boolean =>
  state.phase.name === 'taking-over' || state.phase.name === 'active' || state.phase.name === 'ended';

const sessionRequested = (
  state: BackupState,
  event: Extract<BackupEvent, { type: 'session-requested' }>,
): Step => {
  const refuse = (code: string, message: string, term?: number): Step => [
    state,
    [{ type: 'refuse', generation: event.generation, failure: { code, message }, term }],
  ];
  const { phase, vm } = state;
  if (phase.name === 'active' || phase.name === 'taking-over') {
    // A VM that went from here by a later term (switched back) is another matter: its term is newer.
    if (vm?.vmId === event.vmId) {
      return refuse('HOLDFAST_E_FENCED', `the backup took over in term ${vm.term}`, vm.term);
    }
    return refuse('HOLDFAST_E_LIMIT', 'this backup runs a VM that it took over; start another one');
  }
  if (phase.name === 'ended') return refuse('HOLDFAST_E_LIMIT', 'this backup has ended');
  if (phase.name !== 'idle' && vm?.vmId !== event.vmId) {
    return refuse('HOLDFAST_E_LIMIT', 'this backup protects another VM already');
  }
  if (phase.name !== 'idle' && phase.name !== 'grace') {
    return refuse('HOLDFAST_E_LIMIT', 'this VM has a session with this backup already');
  }
  if (vm !== undefined && event.term < vm.term) {
    return refuse('HOLDFAST_E_FENCED', `term ${event.term} is over, this is term ${vm.term}`, vm.term);
  }
  const actions: BackupAction[] = [];
  if (phase.name === 'grace') actions.push({ type: 'cancel-grace' });
  // Output was released that no checkpoint explains: running an older one would take it back.
  const voided = !event.outputHeld && state.checkpoint !== undefined;
  if (voided) actions.push({ type: 'drop-generation', generation: state.checkpoint.generation });
  actions.push({ type: 'prepare', generation: event.generation });
  return [
    {
      ...state,
      phase: { name: 'preparing' },
      vm: { vmId: event.vmId, term: event.term },
      checkpoint: voided ? undefined : state.checkpoint,
      receiving: event.generation,
      handOverOnly: event.handOverOnly,
      mayLackPages: event.mayLackPages === true,
    },
    actions,
  ];
};

const prepareFailed = (state: BackupState, generation: number, failure: Failure): Step => {
  if (generation !== state.receiving) return [state, none];
  const refuse: readonly BackupAction[] = [
    { type: 'refuse', generation, failure, term: undefined },
    { type: 'drop-generation', generation },
  ];
  if (state.checkpoint === undefined) return [initialState(state.config), refuse];
  // The older checkpoint stands; the primary lives and may try again.
  const [next, actions] = primaryLost(state, failure.message, state.config.reconnectGraceMs);
  return [next, [...refuse, ...actions.filter((action) => action.type !== 'drop-generation')]];
};

const committed = (state: BackupState, generation: number, epoch: number): Step => {
  // A loss that two paths report at once reports its last commit twice: a takeover under way stays one.
  const { name } = state.phase;
  if (generation !== state.receiving || (name !== 'syncing' && name !== 'protecting')) return [state, none];
  const older = state.checkpoint;
  const drop = older !== undefined && older.generation !== generation;
  return [
    { ...state, phase: { name: 'protecting' }, checkpoint: { generation, epoch } },
    drop ? [{ type: 'drop-generation', generation: older.generation }] : none,
  ];
};

const primaryLost = (state: BackupState, reason: string, graceMs: number): Step => {
  const { phase, checkpoint, receiving } = state;
  if (phase.name !== 'preparing' && phase.name !== 'syncing' && phase.name !== 'protecting')
    return [state, none];
  if (checkpoint === undefined || state.mayLackPages) {
    return [
      initialState(state.config),
      receiving === undefined ? none : [{ type: 'drop-generation', generation: receiving }],
    ];
  }
  if (graceMs <= 0 && takesOverAlone(state)) return takeOver(state, reason, false);
  const unfinished = receiving !== undefined && receiving !== checkpoint.generation;
  const actions: BackupAction[] = unfinished ? [{ type: 'drop-generation', generation: receiving }] : [];
  if (takesOverAlone(state)) actions.push({ type: 'arm-grace', ms: graceMs });
  return [{ ...state, phase: { name: 'grace', reason }, receiving: undefined }, actions];
};

const protectionEnded = (state: BackupState, reason: string): Step => {
  const { phase } = state;
  if (phase.name === 'taking-over' || phase.name === 'active' || phase.name === 'ended') return [state, none];
  const generations = new Set([state.checkpoint?.generation, state.receiving]);
  const drops: BackupAction[] = [];
  for (const generation of generations) {
    if (generation !== undefined) drops.push({ type: 'drop-generation', generation });
  }
  return [initialState(state.config), [...drops, { type: 'clean-up', reason }]];
};

const switchover = (
  state: BackupState,
  { generation, epoch, pagesWaitMs }: Extract<BackupEvent, { type: 'switchover' }>,
): Step => {
  const failed = (message: string): Step => [
    state,
    [{ type: 'reply-switchover-failed', generation, failure: { code: 'HOLDFAST_E_PROTOCOL', message } }],
  ];
  if (state.phase.name !== 'protecting' || generation !== state.receiving) {
    return failed(`no protected session to switch over (${state.phase.name})`);
  }
  if (state.checkpoint?.epoch !== epoch) {
    return failed(`the last committed epoch is ${state.checkpoint?.epoch ?? 0}, not ${epoch}`);
  }
  return takeOver(state, 'planned switchover', true, pagesWaitMs);
};

const takeOver = (state: BackupState, reason: string, planned: boolean, pagesWaitMs?: number): Step => {
  const { checkpoint, vm, receiving } = state;
  if (checkpoint === undefined || vm === undefined) return [state, none];
  const term = vm.term + 1;
  const abandon = receiving !== undefined && receiving !== checkpoint.generation ? receiving : undefined;
  return [
    { ...state, vm: { ...vm, term }, phase: { name: 'taking-over', planned, reason } },
    [
      { type: 'cancel-grace' },
      {
        type: 'take-over',
        generation: checkpoint.generation,
        term,
        planned,
        abandon,
        ...(pagesWaitMs === undefined ? {} : { pagesWaitMs }),
      },
    ],
  ];
};

const takeoverFailed = (state: BackupState, failure: Failure): Step => {
  if (state.phase.name !== 'taking-over') return [state, none];
  const generation = state.checkpoint?.generation;
  if (state.phase.planned && generation !== undefined) {
    // The primary still has the VM, stopped: it goes on there, with a new sync.
    return [
      initialState(state.config),
      [
        { type: 'reply-switchover-failed', generation, failure },
        { type: 'drop-generation', generation },
      ],
    ];
  }
  // The replica file is kept: it may be all that is left of the VM.
  return [{ ...state, phase: { name: 'ended', failure } }, none];
};
