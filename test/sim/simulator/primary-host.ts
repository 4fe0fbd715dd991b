/** The effects of lib/primary/primary.ts, in virtual time, around the real machine. */

import { planDisk } from '../../../lib/primary/disk-plan.js';
import { LoadModel } from '../../../lib/primary/load-model.js';
import {
  initialState,
  type PrimaryAction,
  type PrimaryEvent,
  type PrimaryState,
  step,
} from '../../../lib/primary/machine.js';
import { MapWindows } from '../../../lib/primary/map-windows.js';
import { Pace } from '../../../lib/primary/pace.js';
import type { BackupHost, BulkMessage, ControlMessage } from './backup-host.js';
import { type DiskMessage, NEVER_SYNCED } from './disk.js';
import { Heart } from './heart.js';
import { Connection } from './network.js';
import type { Qemu } from './qemu.js';
import type { World } from './world.js';

export interface PrimaryOptions {
  readonly onBackupLost: 'hold' | 'release';
  readonly pacing: 'fixed' | 'load' | 'assumed';
  readonly disks: boolean;
  /** The VM is to move, not to be protected. */
  readonly migrates: boolean;
  /** For proving that the rules are checked: the maps forget what was written, acknowledged or not. */
  readonly forgetsMarks?: boolean | undefined;
  /** For proving that the rules are checked: the pages of a capture that failed count as sent. */
  readonly forgets?: boolean | undefined;
  /** For proving that the rules are checked: changes what the machine asked for. */
  readonly tamper?:
    | ((actions: readonly PrimaryAction[], event: PrimaryEvent) => readonly PrimaryAction[])
    | undefined;
}

interface Captured {
  readonly epoch: number;
  readonly mode: 'staged' | 'direct';
  readonly after: number;
  readonly sent: number;
}

/** The disk's part of a session, as lib/primary/disks.ts has it. */
interface DiskSession {
  readonly stream: Connection<DiskMessage>;
  readonly syncId: string;
  readonly windows: MapWindows;
  state: Extract<DiskMessage, { type: 'state' }> | undefined;
  onState: () => void;
  isSynced: boolean;
}

const RETRY_MS = 60;
/** Of lib/primary/map-windows.ts, whose second is too long for a run. */
const MAP_TIME_SCALE = 20;

export class PrimaryHost {
  readonly world: World;
  readonly qemu: Qemu;
  readonly #options: PrimaryOptions;
  readonly #backup: () => BackupHost | undefined;
  readonly life = { alive: true };
  state: PrimaryState;
  #control: Connection<ControlMessage> | undefined;
  #bulk: Connection<BulkMessage> | undefined;
  #heart: Heart | undefined;
  #captured: Captured | undefined;
  #sending: Captured | undefined;
  readonly #load = new LoadModel();
  readonly #pace: Pace;
  #paceTimer = 0;
  #armed = false;
  #resumedMs = 0;
  #pauseStartMs = 0;
  /** The guest's memory is with the backup up to this packet, in its replica and ahead of the coming epoch. */
  #complete = 0;
  #ahead = 0;
  /** A slice is under way; what waits for its end. */
  #slicing = false;
  #sliceTimer = 0;
  #afterSlice: (() => void) | undefined;
  #diskSession: DiskSession | undefined;
  #sessions = 0;
  /** Effects that drive the VM: one ends before finish() leaves it for good. */
  #busy = 0;
  #drivingVm = false;

  constructor(
    world: World,
    qemu: Qemu,
    options: PrimaryOptions,
    backup: () => BackupHost | undefined,
    adopted: boolean,
  ) {
    this.world = world;
    this.qemu = qemu;
    this.#options = options;
    this.#backup = backup;
    this.state = initialState(
      {
        onBackupLost: options.onBackupLost,
        retryMs: RETRY_MS,
        captureFailuresMax: 3,
        purpose: options.migrates
          ? { kind: 'migrate', afterRound: (rounds) => (rounds.length >= 2 ? 'stop-and-copy' : 'next-round') }
          : { kind: 'protect', convergence: (rounds) => rounds.length >= 2 },
      },
      {
        term: 1,
        hasDisks: options.disks,
        gateAdopted: qemu.gate,
        operatorPaused: false,
        vmStopped: adopted && !qemu.running,
      },
    );
    this.#pace = new Pace(
      {
        intervalMs: options.pacing === 'fixed' ? 25 : undefined,
        minIntervalMs: 2,
        maxIntervalMs: 60,
        pauseBudgetMs: 5,
        seesOutput: options.pacing === 'load',
        stagingPages: 1_000,
      },
      this.#load,
    );
    qemu.onOutput = () => {
      if (!this.life.alive) return;
      this.#pace.outputWaits(this.world.clock.nowMs);
      this.#replan();
    };
    this.dispatch({ type: 'start' });
  }

  get ended(): boolean {
    return this.state.phase.name === 'ended';
  }

  dispatch(event: PrimaryEvent): void {
    if (!this.life.alive) return;
    const before = this.state;
    const [next, asked] = step(this.state, event);
    const actions = this.#options.tamper?.(asked, event) ?? asked;
    this.state = next;
    if (event.type !== 'tick' || next.phase !== before.phase) {
      this.world.log(
        'primary',
        `${event.type} → ${describe(next)}${actions.length > 0 ? `: ${actions.map((action) => action.type).join(', ')}` : ''}`,
      );
    }
    for (const action of actions) this.#perform(action);
  }

  /** SIGKILL: the kernel closes the connections, QEMU runs on. */
  kill(): void {
    this.life.alive = false;
    this.qemu.disk.logs(false); // the disk server has lost its controller
    this.#diskSession?.stream.close('primary');
    this.#heart?.stop();
    this.#control?.close('primary');
    this.#bulk?.close('primary');
  }

  qemuDied(): void {
    this.#after(this.world.chance.between(0.1, 1), () =>
      this.dispatch({ type: 'vm-gone', ended: false, reason: 'killed' }),
    );
  }

  operatorPauses(): boolean {
    if (this.#drivingVm || !this.qemu.running) return false;
    this.qemu.stop();
    this.dispatch({ type: 'vm-paused' });
    return true;
  }

  /** Between our stop and our cont; an operator who starts the VM then breaks the checkpoint (docs/safety.md). */
  get inPause(): boolean {
    return this.#drivingVm;
  }

  operatorResumes(): void {
    this.qemu.cont();
    this.dispatch({ type: 'vm-resumed' });
  }

  #after(delayMs: number, run: () => void): void {
    this.world.clock.after(delayMs, () => {
      if (this.life.alive) run();
    });
  }

  #perform(action: PrimaryAction): void {
    switch (action.type) {
      case 'connect':
        this.#connect(action.outputHeld, action.term);
        return;
      case 'copy-disks':
        if (action.resume) this.#cont(() => this.#copyDisks());
        else this.#copyDisks();
        return;
      case 'stop-logs':
        this.qemu.disk.logs(false);
        return;
      case 'base-round':
        if (action.prefixAhead) this.#takePrefixAhead(() => this.#baseRound(false));
        else this.#baseRound(action.resume);
        return;
      case 'arm-epoch':
        this.#pace.began(this.world.clock.nowMs);
        this.#armed = true;
        this.#replan();
        return;
      case 'arm-retry':
        this.#after(action.ms, () => this.dispatch({ type: 'retry' }));
        return;
      case 'begin-epoch':
        if (this.#slicing) this.#afterSlice = () => this.#beginEpoch(action.epoch, action.installGate);
        else this.#beginEpoch(action.epoch, action.installGate);
        return;
      case 'resume':
      case 'resume-after-failed-handover':
        this.#cont(() => {
          this.#resumedMs = this.world.clock.nowMs;
          this.#pace.resumed(this.#resumedMs);
          this.#replan();
          this.dispatch({ type: 'resumed' });
        });
        return;
      case 'take-prefix':
        throw new Error('no simulated VM moves before its memory');
      case 'continue-vm':
        throw new Error('no disk of a simulated VM is ever full');
      case 'send':
        this.#send();
        return;
      case 'release':
        this.#drive((done) =>
          this.qemu.command(
            this.life,
            () => this.qemu.release(),
            () => {
              done();
              this.#learn();
              this.dispatch({ type: 'released', epoch: action.epoch });
              this.#speculate();
            },
          ),
        );
        return;
      case 'hand-over':
        this.#control?.send('primary', { type: 'switchover', epoch: action.epoch });
        return;
      case 'enter-loss':
        this.#enterLoss(action);
        return;
      case 'finish':
        this.#finish(action.outcome.kind, action.release);
        return;
    }
  }

  #replan(): void {
    const { clock } = this.world;
    const timer = ++this.#paceTimer;
    if (!this.#armed) return;
    const { atMs, trigger } = this.#pace.deadline();
    this.#after(Math.max(0, atMs - clock.nowMs), () => {
      if (timer !== this.#paceTimer) return;
      this.#armed = false;
      this.dispatch({ type: 'tick', trigger });
    });
  }

  #disarm(): void {
    this.#armed = false;
    this.#paceTimer += 1;
  }

  #learn(): void {
    const { nowMs } = this.world.clock;
    this.#load.observe({
      pauseMs: Math.max(0, this.#resumedMs - this.#pauseStartMs),
      deviceMs: 1,
      scanMs: 0.4,
      copyMs: 1,
      pausePages: 1,
      dirtyPages: 1,
      ranMs: 5,
      releaseDelayMs: nowMs - this.#pauseStartMs,
      sentPages: 1,
      sendMs: 1,
      ackMs: 1,
      heldFrames: this.world.chance.oneIn(2) ? 1 : 20,
    });
  }

  get #isIdle(): boolean {
    const { phase, operatorPaused } = this.state;
    return phase.name === 'protected' && phase.cycle.at === 'idle' && !operatorPaused && !this.#slicing;
  }

  /** Slices of the coming epoch at any time while nothing else is under way, one at a time. */
  #speculate(): void {
    const { world, qemu } = this;
    if (!this.#isIdle) return;
    const timer = ++this.#sliceTimer;
    this.#after(world.chance.between(0, 15), () => {
      const bulk = this.#bulk;
      if (timer !== this.#sliceTimer || !this.#isIdle || bulk === undefined || !qemu.alive) return;
      const slice = { epoch: this.state.epoch + 1, after: this.#ahead, sent: qemu.sent };
      this.#slicing = true;
      this.#drive((done) =>
        this.#after(world.chance.between(0.1, 3), () => {
          done();
          this.#slicing = false;
          if (this.#bulk === bulk) {
            this.#ahead = slice.sent;
            bulk.send('primary', { type: 'slice', ...slice });
          }
          const next = this.#afterSlice;
          this.#afterSlice = undefined;
          if (next !== undefined) next();
          else this.#speculate();
        }),
      );
    });
  }

  #drive(effect: (done: () => void) => void): void {
    this.#busy += 1;
    effect(() => {
      this.#busy -= 1;
    });
  }

  #connect(outputHeld: boolean, term: number): void {
    const { network, chance } = this.world;
    const backup = this.#backup();
    const fail = (message: string): void =>
      this.dispatch({ type: 'connect-failed', failure: { code: 'HOLDFAST_E_CONNECT', message } });
    const reachable = network.passes('primary') && network.passes('backup');
    if (backup === undefined || !reachable) {
      this.#after(reachable ? 1 : 150, () => fail('not reached'));
      return;
    }
    this.#after(chance.between(0.5, 3), () => {
      if (!backup.life.alive) return fail('gone');
      const control = new Connection<ControlMessage>(network);
      let answered = false;
      const giveUp = (message: string): void => {
        if (answered) return;
        answered = true;
        control.close('primary');
        fail(message);
      };
      control.onClosed.primary = () => giveUp('closed');
      control.onMessage.primary = (message) => {
        if (answered) return;
        if (message.type === 'session-refused') {
          answered = true;
          control.close('primary');
          if (message.fenced) this.dispatch({ type: 'fenced', term: message.term, message: 'refused' });
          else fail('refused');
        } else if (message.type === 'session-ready') {
          answered = true;
          this.#useControl(control);
          this.#connectBulk(control, message);
        }
      };
      backup.accept(control);
      control.send('primary', {
        type: 'session',
        outputHeld: outputHeld && this.qemu.gate,
        handOverOnly: this.#options.migrates,
        term,
      });
      this.#after(400, () => giveUp('no answer'));
    });
  }

  #connectBulk(
    control: Connection<ControlMessage>,
    { accept, acceptDisks }: Extract<ControlMessage, { type: 'session-ready' }>,
  ): void {
    const { network, chance } = this.world;
    this.#after(chance.between(0.5, 3), () => {
      if (this.#control !== control) return; // lost meanwhile, and said so
      if (this.ended) {
        this.#disconnect(); // the engine is closed: connecting fails
        return;
      }
      const bulk = new Connection<BulkMessage>(network);
      if (!network.passes('primary') || !network.passes('backup') || !accept(bulk)) {
        this.#disconnect();
        this.dispatch({ type: 'connect-failed', failure: { code: 'HOLDFAST_E_CONNECT', message: 'bulk' } });
        return;
      }
      this.#bulk = bulk;
      bulk.onClosed.primary = () => {
        if (this.#bulk === bulk) this.dispatch({ type: 'backup-lost', reason: 'bulk closed' });
      };
      bulk.onMessage.primary = (message) => {
        if (this.#bulk !== bulk) return;
        if (message.type === 'round-ok') {
          this.dispatch({
            type: 'round-done',
            round: { pages: 10, zeroPages: 0, bytes: 1, roundMs: 2, dirtyPages: 1, scanMs: 1, sendMs: 1 },
          });
        } else if (message.type === 'ack' && this.#sending?.epoch === message.epoch) {
          this.#complete = this.#sending.sent;
          this.#ahead = this.#complete;
          this.#sending = undefined;
          this.dispatch({ type: 'acked', epoch: message.epoch });
          this.#diskAcknowledged();
        }
      };
      if (this.#options.disks) this.#connectDisks(acceptDisks);
      this.dispatch({ type: 'connected' });
    });
  }

  #connectDisks(accept: (stream: Connection<DiskMessage>) => void): void {
    this.#sessions += 1;
    const session: DiskSession = {
      stream: new Connection<DiskMessage>(this.world.network),
      syncId: `${this.world.clock.nowMs}/${this.#sessions}`,
      windows: new MapWindows(),
      state: undefined,
      onState: () => {},
      isSynced: false,
    };
    this.#diskSession = session;
    session.stream.onMessage.primary = (message) => {
      if (message.type !== 'state' || this.#diskSession !== session) return;
      session.state = message;
      session.onState();
    };
    accept(session.stream);
  }

  /** The log on; then block by block, each after what was logged before it is read. */
  #copyDisks(): void {
    const session = this.#diskSession;
    if (session === undefined) return;
    if (session.state === undefined) {
      session.onState = () => this.#copyDisks();
      return;
    }
    const { disk } = this.qemu;
    const { syncId, marked } = session.state;
    const plan = planDisk({
      id: 'vda',
      syncId,
      ...{ trusted: true, fresh: syncId === NEVER_SYNCED, markedBytes: marked.length },
      localSyncId: disk.syncId,
      ...{ localTrusted: true, localMarkedBytes: disk.marked.length },
    });
    disk.logs(true);
    this.#ship(session);
    const blocks = plan.what === 'all' ? disk.allBlocks() : [...new Set([...disk.marked, ...marked])];
    this.world.log('primary', `copies ${plan.what}: ${blocks.length} blocks`);
    const next = (index: number): void =>
      this.#after(this.world.chance.between(0.1, 2), () => {
        if (this.#diskSession !== session || !this.qemu.alive) return;
        this.#shipLog(session);
        const block = blocks[index];
        if (block === undefined) {
          session.stream.send('primary', { type: 'synced', syncId: session.syncId });
          this.dispatch({ type: 'disks-copied' });
          return;
        }
        session.stream.send('primary', { type: 'base', block, packet: disk.content[block]! });
        next(index + 1);
      });
    next(0);
  }

  /** All the time, as the guest writes. */
  #ship(session: DiskSession): void {
    this.#after(this.world.chance.between(0.5, 10), () => {
      if (this.#diskSession !== session) return;
      this.#shipLog(session);
      this.#ship(session);
    });
  }

  #shipLog(session: DiskSession): void {
    for (const packet of this.qemu.disk.log.splice(0))
      session.stream.send('primary', { type: 'log', packet });
  }

  #diskAcknowledged(): void {
    const session = this.#diskSession;
    const { disk } = this.qemu;
    const nowMs = this.world.clock.nowMs * MAP_TIME_SCALE;
    if (session === undefined || !session.windows.isDue(this.#pauseStartMs * MAP_TIME_SCALE, nowMs)) return;
    this.#after(this.world.chance.between(0.1, 1), () => {
      if (!session.isSynced) disk.syncId = session.syncId;
      session.isSynced = true;
      disk.rotate();
      session.windows.rotated(this.world.clock.nowMs * MAP_TIME_SCALE);
    });
  }

  #useControl(control: Connection<ControlMessage>): void {
    this.#control = control;
    const lost = (reason: string): void => {
      if (this.#control === control) this.dispatch({ type: 'backup-lost', reason });
    };
    const heart = new Heart(
      this.world,
      this.life,
      () => control.send('primary', { type: 'heartbeat' }),
      lost,
    );
    this.#heart = heart;
    control.onClosed.primary = () => lost('control closed');
    control.onMessage.primary = (message) => {
      heart.heard();
      if (message.type === 'took-over') {
        const { term, epoch } = message;
        this.dispatch({ type: 'took-over', term, epoch, resumeMs: 5, downtimeMs: 9 });
      } else if (message.type === 'takeover-failed') {
        this.dispatch({ type: 'takeover-failed', failure: { code: 'HOLDFAST_E_STATE_LOAD', message: 'no' } });
      } else if (message.type === 'session-refused' && message.fenced) {
        this.dispatch({ type: 'fenced', term: message.term, message: 'told' });
      } else if (message.type === 'failure') {
        this.dispatch({ type: 'backup-lost', reason: 'failure reported' });
      }
    };
  }

  #disconnect(): void {
    this.#heart?.stop();
    this.#heart = undefined;
    this.#control?.close('primary');
    this.#control = undefined;
    this.#bulk?.reset('primary'); // what it holds by reference must not leave any more
    this.#bulk = undefined;
    this.qemu.disk.logs(false);
    this.#diskSession?.stream.reset('primary');
    this.#diskSession = undefined;
    this.#sending = undefined;
  }

  #baseRound(resume: boolean): void {
    const round = (): void =>
      this.#after(this.world.chance.between(3, 20), () => {
        this.#complete = this.qemu.sent;
        this.#ahead = this.#complete;
        this.#bulk?.send('primary', { type: 'round', sent: this.#complete });
      });
    if (resume) this.#cont(round);
    else round();
  }

  #takePrefixAhead(done: () => void): void {
    this.#drivingVm = true;
    this.#drive((driven) =>
      this.qemu.command(
        this.life,
        () => this.qemu.stop(),
        () =>
          this.#after(this.world.chance.between(1, 5), () => {
            driven();
            this.#cont(done);
          }),
      ),
    );
  }

  #cont(done: () => void): void {
    this.#drive((driven) =>
      this.qemu.command(
        this.life,
        () => this.qemu.cont(),
        () => {
          this.#drivingVm = false;
          driven();
          done();
        },
      ),
    );
  }

  #beginEpoch(epoch: number, installGate: boolean): void {
    const { world, qemu } = this;
    if (this.#captured !== undefined)
      world.violated(`epoch ${epoch} begun, ${this.#captured.epoch} is not acknowledged`);
    this.#drivingVm = true;
    const pauseStartMs = world.clock.nowMs;
    this.#drive((done) => {
      qemu.command(this.life, () => qemu.stop());
      qemu.command(
        this.life,
        () => {
          if (qemu.gate) qemu.boundary();
        },
        () => {
          this.#after(world.chance.between(0.5, 4), () => {
            if (world.chance.oneIn(60)) {
              // Its pages, also those of its slices, go with the next.
              this.#ahead = this.#options.forgets === true ? qemu.sent : this.#complete;
              this.#cont(() => {
                done();
                this.dispatch({
                  type: 'capture-failed',
                  epoch,
                  failure: { code: 'HOLDFAST_E_QMP', message: 'save' },
                });
              });
              return;
            }
            const captured = (): void => {
              const mode = world.chance.oneIn(3) ? 'direct' : 'staged';
              this.#captured = { epoch, mode, after: this.#ahead, sent: qemu.sent };
              this.#pauseStartMs = pauseStartMs;
              if (this.#diskSession !== undefined) this.#shipLog(this.#diskSession);
              if (this.#options.forgetsMarks === true) qemu.disk.rotate();
              this.#pace.captured(pauseStartMs);
              done();
              this.dispatch({ type: 'captured', epoch, mode });
            };
            if (!installGate) captured();
            else
              qemu.command(
                this.life,
                () => {
                  qemu.gate = true;
                },
                captured,
              );
          });
        },
      );
    });
  }

  #send(): void {
    const { world, qemu } = this;
    const sending = this.#captured;
    const bulk = this.#bulk;
    if (sending === undefined) return;
    this.#captured = undefined;
    this.#sending = sending;
    world.clock.after(
      world.chance.oneIn(10) ? world.chance.between(20, 80) : world.chance.between(0.5, 8),
      () => {
        if (this.#sending !== sending || bulk === undefined) return;
        this.#diskSession?.stream.send('primary', {
          type: 'boundary',
          epoch: sending.epoch,
          packet: sending.sent,
        });
        bulk.send('primary', {
          type: 'epoch',
          epoch: sending.epoch,
          after: sending.after,
          sent: sending.sent,
          verify: () => {
            if (sending.mode === 'direct' && this.life.alive && qemu.alive && qemu.sent !== sending.sent) {
              world.violated(`torn pages: the VM ran while epoch ${sending.epoch} was sent directly`);
            }
          },
        });
      },
    );
  }

  #enterLoss(action: Extract<PrimaryAction, { type: 'enter-loss' }>): void {
    const { qemu, life } = this;
    this.#disarm();
    // The operator's policy; a migration that was not handed over needs none.
    if (action.openGate && !this.#options.migrates) this.world.granted = true;
    this.#control?.send('primary', { type: action.openGate ? 'detach' : 'reconnecting' });
    this.#disconnect();
    this.#captured = undefined;
    this.#drive((done) => {
      const entered = (): void => {
        done();
        this.dispatch({ type: 'loss-entered' });
      };
      this.#after(this.world.chance.between(0.1, 2), () => {
        if (action.vm === 'stop') {
          this.#drivingVm = true;
          // Stopped; whoever starts it from here on is the operator, and is noticed.
          qemu.command(
            life,
            () => qemu.stop(),
            () => {
              this.#drivingVm = false;
            },
          );
        } else if (!this.state.operatorPaused) {
          this.#drivingVm = true;
          qemu.command(
            life,
            () => qemu.cont(),
            () => {
              this.#drivingVm = false;
            },
          );
        }
        qemu.command(
          life,
          () => {
            if (action.openGate) qemu.open();
          },
          entered,
        );
      });
    });
  }

  #finish(kind: string, release: boolean): void {
    const { qemu, life } = this;
    this.#disarm();
    if (kind === 'detached' || (kind === 'failed' && release)) {
      // The operator's word, or policy. A migration is theirs to end, unless it may be over.
      if (!this.#options.migrates || this.state.mustHold) this.world.granted = true;
      this.#control?.send('primary', { type: 'detach' });
    }
    if (kind === 'vm-lost') this.#control?.send('primary', { type: 'vm-lost' });
    this.#disconnect();
    const leave = (): void => {
      if (!qemu.alive) return;
      if (this.#busy > 0) {
        this.#after(0.5, leave); // what drives the VM ends first
        return;
      }
      if (kind === 'switched-over') {
        qemu.command(life, () => {
          qemu.alive = false;
        });
      } else if (release) {
        qemu.command(life, () => {
          if (!this.state.operatorPaused) qemu.cont();
          qemu.open();
        });
      } else {
        qemu.command(life, () => qemu.stop());
      }
    };
    leave();
  }
}

const describe = (state: PrimaryState): string =>
  state.phase.name === 'protected'
    ? `${state.phase.cycle.at} ${state.epoch}`
    : state.phase.name === 'ended'
      ? `ended ${state.phase.outcome.kind}`
      : state.phase.name;
