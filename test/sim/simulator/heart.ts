/** Heartbeats and the judgement on silence, as lib/control/liveness.ts has them. */
import type { World } from './world.js';

export const HEARTBEAT_MS = 40;
export const SILENCE_MS = 200;

export class Heart {
  readonly #world: World;
  #heardMs: number;
  #stopped = false;

  constructor(
    world: World,
    life: { readonly alive: boolean },
    beat: () => void,
    onSilent: (reason: string) => void,
  ) {
    this.#world = world;
    this.#heardMs = world.clock.nowMs;
    const turn = (): void => {
      if (this.#stopped || !life.alive) return;
      beat();
      if (world.clock.nowMs - this.#heardMs > SILENCE_MS) {
        this.#stopped = true;
        onSilent('silent');
      } else {
        world.clock.after(HEARTBEAT_MS, turn);
      }
    };
    world.clock.after(HEARTBEAT_MS, turn);
  }

  heard(): void {
    this.#heardMs = this.#world.clock.nowMs;
  }

  stop(): void {
    this.#stopped = true;
  }
}
