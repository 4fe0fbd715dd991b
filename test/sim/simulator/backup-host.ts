/** The effects of lib/backup/backup.ts and the receiver, in virtual time, around the real machine. */
import {
  type BackupAction,
  type BackupEvent,
  type BackupState,
  initialState,
  isTakeoverPossible,
  step,
} from '../../../lib/backup/machine.js';
import { type DiskMessage, DiskSession } from './disk.js';
import { Heart } from './heart.js';
import type { Connection } from './network.js';
import { type Committed, Violation, type World } from './world.js';

export type ControlMessage =
  | {
      readonly type: 'session';
      readonly outputHeld: boolean;
      readonly handOverOnly: boolean;
      readonly term: number;
    }
  | {
      readonly type: 'session-ready';
      readonly accept: (bulk: Connection<BulkMessage>) => boolean;
      readonly acceptDisks: (stream: Connection<DiskMessage>) => void;
    }
  | { readonly type: 'session-refused'; readonly fenced: boolean; readonly term: number }
  | { readonly type: 'heartbeat' | 'detach' | 'reconnecting' | 'vm-lost' | 'takeover-failed' | 'failure' }
  | { readonly type: 'switchover'; readonly epoch: number }
  | { readonly type: 'took-over'; readonly term: number; readonly epoch: number };

export type BulkMessage =
  | { readonly type: 'round-ok' }
  /** A round of the base sync: the guest's memory up to this packet. */
  | { readonly type: 'round'; readonly sent: number }
  /** Sent ahead, for an epoch to come: what the guest wrote after `after`, up to `sent`. */
  | { readonly type: 'slice'; readonly epoch: number; readonly after: number; readonly sent: number }
  | {
      readonly type: 'epoch';
      readonly epoch: number;
      readonly after: number;
      readonly sent: number;
      readonly verify: () => void;
    }
  | { readonly type: 'ack'; readonly epoch: number };

export interface BackupOptions {
  readonly takeover: 'auto' | 'manual';
  readonly connectionGraceMs: number;
  /** For proving that the rules are checked: takes over without fencing the receiver. */
  readonly fences: boolean;
  readonly disks: boolean;
  /** For proving that the rules are checked: commits without the disk's part. */
  readonly waitsForDisks: boolean;
}

interface Session {
  readonly generation: number;
  readonly control: Connection<ControlMessage>;
  bulk: Connection<BulkMessage> | undefined;
  heart: Heart | undefined;
  committed: Committed | undefined;
  /** The guest's memory is complete up to this packet: in the replica, and with the slices of the open epoch. */
  complete: number;
  open: { readonly epoch: number; readonly complete: number } | undefined;
  readonly disk: DiskSession;
  diskStream: Connection<DiskMessage> | undefined;
  /** All of it is there but the disk's part. */
  waiting: Extract<BulkMessage, { type: 'epoch' }> | undefined;
  fenced: boolean;
  over: boolean;
}

export class BackupHost {
  readonly world: World;
  readonly life = { alive: true };
  readonly #options: BackupOptions;
  readonly #sessions = new Map<number, Session>();
  /** An earlier daemon took over, and its VM runs here: known from its record. */
  readonly #runsVmInTerm: number | undefined;
  #nextGeneration: number;
  #graceTimer = 0;
  #eventMs = 0;
  state: BackupState;

  constructor(
    world: World,
    options: BackupOptions,
    firstGeneration: number,
    runsVmInTerm: number | undefined,
  ) {
    this.world = world;
    this.#options = options;
    this.#nextGeneration = firstGeneration;
    this.#runsVmInTerm = runsVmInTerm;
    this.state = initialState({
      takeover: options.takeover,
      connectionGraceMs: options.connectionGraceMs,
      reconnectGraceMs: 400,
    });
  }

  dispatch(event: BackupEvent): void {
    if (!this.life.alive) return;
    const [next, actions] = step(this.state, event);
    this.state = next;
    this.world.log(
      'backup',
      `${event.type} → ${next.phase.name}${actions.length > 0 ? `: ${actions.map((action) => action.type).join(', ')}` : ''}`,
    );
    for (const action of actions) this.#perform(action);
  }

  /** SIGKILL of the daemon: staging, device states and waiting standbys go with it; a VM that runs, runs on. */
  kill(): void {
    this.life.alive = false;
    for (const session of this.#sessions.values()) {
      session.heart?.stop();
      session.control.close('backup');
      session.bulk?.close('backup');
      session.diskStream?.close('backup');
      this.world.replica.letGo(session); // its memory is gone; the image stays
    }
    if (this.world.takenOver === undefined) this.world.lastCommit = undefined;
  }

  operatorTakesOver(): void {
    if (!isTakeoverPossible(this.state)) return;
    let left = this.#sessions.size;
    for (const session of [...this.#sessions.values()]) {
      this.#settle(session, () => {
        left -= 1;
        if (left === 0) this.dispatch({ type: 'takeover-requested' });
      });
    }
  }

  accept(control: Connection<ControlMessage>): void {
    let session: Session | undefined;
    control.onMessage.backup = (message) => {
      if (!this.life.alive) return;
      if (session !== undefined) {
        session.heart?.heard();
        this.#onMessage(session, message);
      } else if (message.type === 'session') {
        session = this.#beginSession(control, message);
      }
    };
    control.onClosed.backup = () => {
      if (session !== undefined) this.#onLost(session, false);
    };
  }

  #after(delayMs: number, run: () => void): void {
    this.world.clock.after(delayMs, () => {
      if (this.life.alive) run();
    });
  }

  /** The receiver's events and fence answers reach the event loop late, but in order. */
  #inOrder(run: () => void): void {
    this.#eventMs = Math.max(this.#eventMs, this.world.clock.nowMs + this.world.chance.between(0, 3));
    this.world.clock.at(this.#eventMs, () => {
      if (this.life.alive) run();
    });
  }

  #beginSession(
    control: Connection<ControlMessage>,
    { outputHeld, handOverOnly, term }: Extract<ControlMessage, { type: 'session' }>,
  ): Session {
    const generation = this.#nextGeneration++;
    const session: Session = {
      generation,
      control,
      bulk: undefined,
      heart: undefined,
      committed: undefined,
      complete: 0,
      open: undefined,
      disk: new DiskSession(),
      diskStream: undefined,
      waiting: undefined,
      fenced: false,
      over: false,
    };
    this.#sessions.set(generation, session);
    this.#after(0.2, () => {
      if (session.over) {
        this.#drop(generation);
      } else if (this.#runsVmInTerm !== undefined && this.#runsVmInTerm >= term) {
        this.#refuse(session, true, this.#runsVmInTerm);
      } else {
        this.dispatch({ type: 'session-requested', generation, vmId: 'vm', term, outputHeld, handOverOnly });
      }
    });
    return session;
  }

  #onMessage(session: Session, message: ControlMessage): void {
    const { generation } = session;
    switch (message.type) {
      case 'detach':
        session.over = true;
        this.dispatch({ type: 'protection-ended', generation, reason: 'detached' });
        return;
      case 'reconnecting':
        this.#settle(session, () => {
          session.over = true;
          this.dispatch({ type: 'primary-reconnecting', generation });
        });
        return;
      case 'vm-lost':
        session.over = true;
        this.#settle(session, () => this.dispatch({ type: 'vm-lost', generation, reason: 'told' }));
        return;
      case 'switchover':
        this.#settle(session, () => this.dispatch({ type: 'switchover', generation, epoch: message.epoch }));
        return;
      default:
        return;
    }
  }

  #onLost(session: Session, silent: boolean): void {
    if (session.over || !this.life.alive) return;
    session.over = true;
    session.heart?.stop();
    this.#settle(session, () => {
      this.dispatch({
        type: 'primary-lost',
        generation: session.generation,
        silent,
        reason: silent ? 'silent' : 'closed',
      });
      session.control.close('backup');
    });
  }

  #settle(session: Session, then: () => void): void {
    if (this.#options.fences) session.fenced = true;
    this.#inOrder(() => {
      const epoch = session.committed?.epoch ?? 0;
      if (epoch > 0) this.dispatch({ type: 'committed', generation: session.generation, epoch });
      then();
    });
  }

  #perform(action: BackupAction): void {
    const { chance } = this.world;
    switch (action.type) {
      case 'prepare':
        this.#after(chance.between(5, 60), () => {
          const { generation } = action;
          if (this.#options.disks && this.world.replica.isFaulty) {
            const failure = {
              code: 'HOLDFAST_E_DISK',
              message: 'no space in the file system of the replica',
            };
            this.dispatch({ type: 'prepare-failed', generation, failure });
          } else if (chance.oneIn(30)) {
            const failure = { code: 'HOLDFAST_E_NO_SPACE', message: 'tmpfs full' };
            this.dispatch({ type: 'prepare-failed', generation, failure });
          } else {
            this.dispatch({ type: 'prepared', generation });
          }
        });
        return;
      case 'accept':
        this.#accept(action.generation);
        return;
      case 'refuse': {
        const session = this.#sessions.get(action.generation);
        if (session !== undefined)
          this.#refuse(session, action.failure.code === 'HOLDFAST_E_FENCED', action.term ?? 0);
        return;
      }
      case 'drop-generation':
        this.#drop(action.generation);
        return;
      case 'arm-grace': {
        const timer = ++this.#graceTimer;
        this.#after(action.ms, () => {
          if (timer === this.#graceTimer) this.dispatch({ type: 'grace-over' });
        });
        return;
      }
      case 'cancel-grace':
        this.#graceTimer += 1;
        return;
      case 'take-over':
        this.#takeOver(action);
        return;
      case 'reply-switchover-failed':
        this.#sessions.get(action.generation)?.control.send('backup', { type: 'takeover-failed' });
        return;
      case 'clean-up':
        return;
    }
  }

  #accept(generation: number): void {
    const session = this.#sessions.get(generation);
    if (session === undefined) return;
    session.heart = new Heart(
      this.world,
      this.life,
      () => session.control.send('backup', { type: 'heartbeat' }),
      () => this.#onLost(session, true),
    );
    session.control.send('backup', {
      type: 'session-ready',
      accept: (bulk) => {
        if (!this.life.alive || session.fenced || !this.#sessions.has(generation)) return false;
        session.bulk = bulk;
        bulk.onMessage.backup = (message) => this.#receive(session, bulk, message);
        return true;
      },
      acceptDisks: (stream) => {
        session.diskStream = stream;
        stream.onMessage.backup = (message) => this.#receiveDisk(session, message);
        stream.send('backup', { type: 'state', syncId: this.world.replica.syncId, marked: [] });
      },
    });
  }

  /** The replica's file system is full, or fails: nothing more is received. */
  diskFails(): void {
    this.world.replica.isFaulty = true;
    for (const session of this.#sessions.values()) {
      if (session.over || session.fenced) continue;
      session.diskStream?.close('backup');
      session.bulk?.close('backup');
      session.control.send('backup', { type: 'failure' });
    }
  }

  #receiveDisk(session: Session, message: DiskMessage): void {
    if (!this.life.alive || session.fenced || this.world.replica.isFaulty) return;
    session.disk.receive(this.world.replica, message);
    if (message.type === 'boundary') this.#commitIfComplete(session);
  }

  #receive(session: Session, bulk: Connection<BulkMessage>, message: BulkMessage): void {
    if (!this.life.alive || session.fenced || (this.#options.disks && this.world.replica.isFaulty)) return;
    session.heart?.heard();
    if (message.type === 'round') {
      session.complete = message.sent;
      bulk.send('backup', { type: 'round-ok' });
    }
    if (message.type !== 'slice' && message.type !== 'epoch') return;
    const { epoch, after, sent } = message;
    if (session.open !== undefined && session.open.epoch !== epoch) {
      this.world.violated(`epoch ${epoch} began, with slices of epoch ${session.open.epoch} left open`);
    }
    const complete = session.open?.complete ?? session.complete;
    if (after > complete) {
      this.world.violated(`writes ${complete + 1} to ${after} are missing in epoch ${epoch}`);
    }
    if (message.type === 'slice') {
      session.open = { epoch, complete: Math.max(complete, sent) };
      return;
    }
    message.verify();
    session.open = undefined;
    session.complete = sent;
    session.waiting = message;
    this.#commitIfComplete(session);
  }

  /** Memory and disk are one step: committed, acknowledged, going to be applied. */
  #commitIfComplete(session: Session): void {
    const { world } = this;
    const { waiting, bulk, disk } = session;
    if (waiting === undefined || bulk === undefined) return;
    const { epoch, sent } = waiting;
    if (this.#options.disks) {
      if (disk.boundaryEpoch !== epoch && this.#options.waitsForDisks) return;
      world.replica.commit(disk, session, sent);
    }
    session.waiting = undefined;
    session.committed = { generation: session.generation, epoch, sent };
    world.commits(session.committed);
    bulk.send('backup', { type: 'ack', epoch });
    this.#inOrder(() => this.dispatch({ type: 'committed', generation: session.generation, epoch }));
  }

  #refuse(session: Session, fenced: boolean, term: number): void {
    session.over = true;
    session.control.send('backup', { type: 'session-refused', fenced, term });
    this.#drop(session.generation);
  }

  #drop(generation: number): void {
    const session = this.#sessions.get(generation);
    if (session === undefined) return;
    this.#sessions.delete(generation);
    session.over = true;
    session.fenced = true;
    session.heart?.stop();
    session.control.close('backup');
    session.bulk?.close('backup');
    session.diskStream?.close('backup');
    this.world.replica.letGo(session);
    if (
      this.world.lastCommit !== undefined &&
      this.world.lastCommit === session.committed &&
      this.world.takenOver === undefined
    ) {
      this.world.lastCommit = undefined;
    }
  }

  #takeOver(action: Extract<BackupAction, { type: 'take-over' }>): void {
    const { world } = this;
    const session = this.#sessions.get(action.generation);
    const checkpoint = session?.committed;
    if (session === undefined || checkpoint === undefined) {
      throw new Violation('a takeover without a checkpoint');
    }
    session.over = true;
    if (!action.planned) {
      session.heart?.stop();
      for (const each of this.#sessions.values()) {
        each.control.send('backup', { type: 'session-refused', fenced: true, term: action.term });
      }
    }
    this.#after(world.chance.between(5, 20), () => {
      if (world.chance.oneIn(15)) {
        this.dispatch({
          type: 'takeover-failed',
          failure: { code: 'HOLDFAST_E_STATE_LOAD', message: 'exited' },
        });
        return;
      }
      if (this.#options.disks) world.replica.check(checkpoint.sent, 'takeover');
      world.log('backup', `RUNS epoch ${checkpoint.epoch} at ${checkpoint.sent}`);
      world.takesOver(checkpoint);
      this.dispatch({ type: 'took-over', epoch: checkpoint.epoch });
      if (action.planned) {
        session.control.send('backup', {
          type: 'took-over',
          term: action.term,
          epoch: checkpoint.epoch,
        });
      }
      if (action.abandon !== undefined) this.#drop(action.abandon);
    });
  }
}
