/**
 * The primary's QEMU: a guest whose whole state is the number of packets it has
 * sent, and the pair of filters that hold them. Its monitor runs commands one
 * after the other.
 */
import { PrimaryDisk } from './disk.js';
import type { World } from './world.js';

const PACKET_EVERY_MS = 5;

export class Qemu {
  readonly #world: World;
  alive = true;
  running = true;
  /** Packets sent by the guest so far: the state that a checkpoint captures. */
  sent = 0;
  gate = false;
  /** Its disk server is a process of its own: it outlives the daemon, not QEMU. */
  readonly disk = new PrimaryDisk();
  /** Output of the running epoch, and of the epoch that is not acknowledged. */
  f1: number[] = [];
  f2: number[] = [];
  /** Let go of while the VM was stopped: QEMU delivers it when the VM runs. */
  #passed: number[] = [];
  #lastCommandMs = 0;
  /** Told of the first packet of an epoch, by a gate that sees output. */
  onOutput: (() => void) | undefined;

  constructor(world: World) {
    this.#world = world;
    this.#tick();
  }

  #tick(): void {
    this.#world.clock.after(this.#world.chance.between(0.5, 1.5) * PACKET_EVERY_MS, () => {
      if (!this.alive) return;
      if (this.running) {
        this.sent += 1;
        this.disk.write(this.sent);
        if (this.gate) {
          this.f1.push(this.sent);
          if (this.f1.length === 1) this.onOutput?.();
        } else this.#world.leaves(this.sent, this.sent, 'ungated');
      }
      this.#tick();
    });
  }

  /** `done` is not called if QEMU or the caller dies before the answer. */
  command(life: { readonly alive: boolean }, effect: () => void, done: () => void = () => {}): void {
    const { clock, chance } = this.#world;
    this.#lastCommandMs = Math.max(this.#lastCommandMs, clock.nowMs) + chance.between(0.1, 0.6);
    clock.at(this.#lastCommandMs, () => {
      if (!this.alive) return;
      effect(); // also when the daemon has died meanwhile: it was written to the socket
      clock.after(0.05, () => {
        if (this.alive && life.alive) done();
      });
    });
  }

  stop(): void {
    this.running = false;
  }

  cont(): void {
    this.running = true;
    for (const packet of this.#passed.splice(0)) this.#world.leaves(packet, this.sent, 'gated');
  }

  boundary(): void {
    this.f2.push(...this.f1.splice(0));
  }

  release(): void {
    const packets = this.f2.splice(0);
    if (this.running) for (const packet of packets) this.#world.leaves(packet, this.sent, 'gated');
    else this.#passed.push(...packets);
  }

  open(): void {
    this.boundary();
    this.release();
    this.gate = false;
  }

  get heldPackets(): number {
    return this.f1.length + this.f2.length + this.#passed.length;
  }
}
