/**
 * Links and connections. A message in a direction that is cut waits (TCP
 * retransmits) until the link heals; order is kept. A process that is killed
 * closes its connections; a host that loses power says nothing at all.
 */
import type { Chance, Clock } from './clock.js';

export type Side = 'primary' | 'backup';

const other = (side: Side): Side => (side === 'primary' ? 'backup' : 'primary');

export class Network {
  readonly clock: Clock;
  readonly chance: Chance;
  /** Directions that pass, by sender. */
  readonly #up = { primary: true, backup: true };
  readonly #dead = { primary: false, backup: false };
  readonly #waiting = new Set<Pipe>();

  constructor(clock: Clock, chance: Chance) {
    this.clock = clock;
    this.chance = chance;
  }

  passes(from: Side): boolean {
    return this.#up[from] && !this.#dead.primary && !this.#dead.backup;
  }

  cut(from: Side): void {
    this.#up[from] = false;
  }

  heal(): void {
    this.#up.primary = true;
    this.#up.backup = true;
    for (const pipe of [...this.#waiting]) {
      this.#waiting.delete(pipe);
      this.clock.after(this.chance.between(1, 20), () => pipe.flush());
    }
  }

  powerLoss(side: Side): void {
    this.#dead[side] = true;
  }

  hold(pipe: Pipe): void {
    this.#waiting.add(pipe);
  }
}

/** One direction of a connection. */
class Pipe {
  readonly #network: Network;
  readonly #from: Side;
  #lastMs = 0;
  #held: (() => void)[] = [];

  constructor(network: Network, from: Side) {
    this.#network = network;
    this.#from = from;
  }

  push(deliver: () => void): void {
    const { clock, chance } = this.#network;
    const latencyMs = chance.oneIn(50) ? chance.between(5, 40) : chance.between(0.1, 1);
    this.#lastMs = Math.max(this.#lastMs, clock.nowMs + latencyMs);
    clock.at(this.#lastMs, () => {
      if (this.#held.length > 0 || !this.#network.passes(this.#from)) {
        this.#held.push(deliver);
        this.#network.hold(this);
      } else {
        deliver();
      }
    });
  }

  flush(): void {
    if (!this.#network.passes(this.#from)) {
      this.#network.hold(this);
      return;
    }
    const held = this.#held;
    this.#held = [];
    for (const deliver of held) deliver();
  }
}

export class Connection<M> {
  readonly #pipes: Record<Side, Pipe>;
  readonly #closed = { primary: false, backup: false };
  readonly #reset = { primary: false, backup: false };
  readonly onMessage: Record<Side, (message: M) => void> = { primary: () => {}, backup: () => {} };
  readonly onClosed: Record<Side, () => void> = { primary: () => {}, backup: () => {} };

  constructor(network: Network) {
    this.#pipes = { primary: new Pipe(network, 'primary'), backup: new Pipe(network, 'backup') };
  }

  isClosed(side: Side): boolean {
    return this.#closed[side];
  }

  send(from: Side, message: M): void {
    if (this.#closed[from]) return;
    const to = other(from);
    this.#pipes[from].push(() => {
      if (!this.#closed[to] && !this.#reset[from]) this.onMessage[to](message);
    });
  }

  /** Closes, and what is still under way from here is dropped (a TCP reset). */
  reset(side: Side): void {
    if (!this.#closed[side]) this.#reset[side] = true;
    this.close(side);
  }

  close(side: Side): void {
    if (this.#closed[side]) return;
    this.#closed[side] = true;
    const to = other(side);
    this.#pipes[side].push(() => {
      if (this.#closed[to]) return;
      this.#closed[to] = true;
      this.onClosed[to]();
    });
  }
}
