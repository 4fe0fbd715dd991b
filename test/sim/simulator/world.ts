/**
 * What is true, as nobody inside can see it: what left, what was committed, who
 * runs; and the rules of DESIGN part 3, checked at every event.
 */
import { Chance, Clock } from './clock.js';
import { ReplicaDisk } from './disk.js';
import { Network } from './network.js';

export class Violation extends Error {}

export interface Committed {
  readonly generation: number;
  readonly epoch: number;
  /** The guest's state at the boundary. */
  readonly sent: number;
}

export class World {
  readonly clock = new Clock();
  readonly chance: Chance;
  readonly network: Network;
  readonly trace: string[] = [];
  /** On the backup's host: it outlives the daemons there. */
  readonly replica = new ReplicaDisk(this);
  /** The newest checkpoint that a living backup holds, and may run. */
  lastCommit: Committed | undefined;
  /** The guest's state in the newest checkpoint that ever was: the acknowledgement stands, also when it was dropped. */
  #sentCommitted = 0;
  /** The state that the backup's VM was resumed from. */
  takenOver: Committed | undefined;
  /** The newest packet of the primary's VM that the outside has seen. */
  lastLeft = 0;
  leftCount = 0;
  /** Split brain is the operator's own choice from here on (policy release, detach). */
  granted = false;
  #backupEverRan = false;

  constructor(seed: number) {
    this.chance = new Chance(seed);
    this.network = new Network(this.clock, this.chance);
  }

  log(who: string, what: string): void {
    this.trace.push(`${this.clock.nowMs.toFixed(2).padStart(9)} ${who.padEnd(8)} ${what}`);
  }

  violated(rule: string): never {
    this.log('RULE', rule);
    throw new Violation(rule);
  }

  /** A packet of the primary's VM reaches the outside. */
  leaves(packet: number, _sent: number, how: 'gated' | 'ungated'): void {
    if (this.lastLeft >= packet) this.violated(`packet ${packet} left after ${this.lastLeft}: order`);
    if (packet !== this.lastLeft + 1)
      this.violated(`packets ${this.lastLeft + 1} to ${packet - 1} were dropped`);
    this.lastLeft = packet;
    this.leftCount += 1;
    if (this.granted) return;
    if (how === 'gated' && packet > this.#sentCommitted) {
      this.violated(`output commit: packet ${packet} left, the newest checkpoint has ${this.#sentCommitted}`);
    }
    if (this.takenOver !== undefined && packet > this.takenOver.sent) {
      this.violated(`one active side: packet ${packet} left after a takeover at ${this.takenOver.sent}`);
    }
  }

  commits(commit: Committed): void {
    if (this.takenOver !== undefined) this.violated('a commit after the takeover');
    if (commit.sent < this.#sentCommitted) {
      this.violated(`checkpoint ${commit.sent} after ${this.#sentCommitted}`);
    }
    this.#sentCommitted = commit.sent;
    this.lastCommit = commit;
  }

  takesOver(commit: Committed): void {
    if (this.#backupEverRan) this.violated('a standby was loaded twice');
    this.#backupEverRan = true;
    this.takenOver = commit;
    if (commit !== this.lastCommit) {
      this.violated(`takeover of ${commit.sent}, the last commit is ${this.lastCommit?.sent ?? 'none'}`);
    }
    if (!this.granted && this.lastLeft > commit.sent) {
      this.violated(`takeover of ${commit.sent}, but packet ${this.lastLeft} has left`);
    }
  }
}
