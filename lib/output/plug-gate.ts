/**
 * The gate made of the kernel's plug qdisc (net/sched/sch_plug.c), for VMs whose
 * network backends are taps. What the guest sends is redirected from its tap to
 * an ifb of ours (native/output/tap_detour.h), whose qdisc holds it:
 *
 *   leaves ◄── [ released ] [ last epoch ] [ current epoch ] ◄── guest
 *                   ▲ release ┘    ▲ boundary ┘
 *
 * The kernel remembers one last epoch. A second boundary before its release
 * would forget how many frames it has, and as many would lag behind for ever.
 * So the boundary of the epoch after one that was given up is left out: the
 * release that explains both lets the older one's frames go, and the next
 * release all that came since. Nothing leaves early, some of it an epoch late.
 *
 * The qdisc drops what comes beyond its limit. QEMU holds the guest back before
 * that if it is told to: -netdev tap,…,sndbuf=BYTES, with less than the limit.
 */
import { type HoldfastError, toHoldfastError, UnsupportedHostError } from '../errors.js';
import type { Logger } from '../log.js';
import type { GateStats, OutputGate } from './gate.js';
import type { Plug, PlugBinding, PlugStats } from './plug-binding.js';

/** Of each tap. Small frames take ten times as much of the kernel's memory. */
export const PLUG_HELD_BYTES_MAX = 64 * 2 ** 20;

export interface PlugGateOptions {
  readonly native: Pick<PlugBinding, 'Plug'>;
  /** Tap devices of all of the VM's network backends, in this network namespace. */
  readonly taps: readonly string[];
  readonly log: Pick<Logger, 'warn'>;
  readonly heldBytesMax?: number;
}

const NOTHING: PlugStats = { heldFrames: 0, heldBytes: 0, droppedFrames: 0 };

export class PlugGate implements OutputGate {
  readonly kind = 'plug';
  readonly seesOutput = false;
  readonly #taps: readonly string[];
  readonly #log: Pick<Logger, 'warn'>;
  readonly #heldBytesMax: number;
  readonly #plug: Plug;
  #installed = false;
  /** The kernel may have a last epoch that was not released. */
  #lastEpochIsHeld = false;
  #known = NOTHING;
  #mostHeldBytes = 0;
  /** Each call decides by what the one before it did. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @throws UnsupportedHostError if libnl-route-3 is not installed. */
  constructor({ native, taps, log, heldBytesMax = PLUG_HELD_BYTES_MAX }: PlugGateOptions) {
    this.#taps = taps;
    this.#log = log;
    this.#heldBytesMax = heldBytesMax;
    try {
      this.#plug = new native.Plug({ taps, heldBytesMax });
    } catch (error) {
      throw explained(error);
    }
  }

  get installed(): boolean {
    return this.#installed;
  }

  adopt(): Promise<boolean> {
    return this.#inTurn(async () => {
      this.#installed = await this.#plug.adopt();
      // Whether the last one was released died with who knew it: as if it were not, which is late at worst.
      this.#lastEpochIsHeld = this.#installed;
      return this.#installed;
    });
  }

  install(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#installed) return;
      await this.#plug.install();
      this.#installed = true;
      this.#lastEpochIsHeld = false;
      this.#known = NOTHING;
    });
  }

  boundaryCommands(): readonly [] {
    return [];
  }

  boundary(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#installed || this.#lastEpochIsHeld) return;
      // Also if it fails: with several taps some may have passed theirs.
      this.#lastEpochIsHeld = true;
      this.#learn(await this.#plug.buffer());
    });
  }

  release(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#installed || !this.#lastEpochIsHeld) return;
      this.#learn(await this.#plug.releaseOne());
      this.#lastEpochIsHeld = false;
    });
  }

  open(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#plug.remove();
      this.#installed = false;
      this.#lastEpochIsHeld = false;
      this.#known = { ...NOTHING, droppedFrames: this.#known.droppedFrames };
    });
  }

  /** The kernel tells nobody that a frame came. */
  onOutput(): void {}

  stats(): GateStats {
    return { ...this.#known, heldBytesMax: this.#mostHeldBytes, backPressure: 0, stalledMs: 0 };
  }

  async close(): Promise<void> {
    await this.#plug.close();
  }

  #learn(stats: PlugStats): void {
    if (stats.droppedFrames > this.#known.droppedFrames) {
      this.#log.warn(
        { taps: this.#taps, droppedFrames: stats.droppedFrames, heldBytesMax: this.#heldBytesMax },
        'the plug qdisc is full and drops what the guest sends: make the epochs shorter, or let QEMU hold the guest back (-netdev tap,…,sndbuf=…)',
      );
    }
    this.#known = stats;
    this.#mostHeldBytes = Math.max(this.#mostHeldBytes, stats.heldBytes);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work).catch((error: unknown) => {
      throw explained(error);
    });
    this.#turn = done.catch(() => {});
    return done;
  }
}

const explained = (error: unknown): HoldfastError => {
  const known = toHoldfastError(error, 'gate: plug');
  if (!(known instanceof UnsupportedHostError)) return known;
  return new UnsupportedHostError(known.message, {
    cause: error,
    cure: '`holdfast doctor` tells what this host lacks, `ip link` and `tc qdisc show` what others do with the taps. --gate filter-buffer needs neither.',
    details: known.details,
  });
};
