/**
 * The gate made of a relay process per network backend (docs/relay.md): QEMU hands each frame to the
 * relay over a Unix socket, and the relay to the tap, when it may.
 *
 *   guest ──► QEMU -netdev stream ──► relay [ running epoch | before the boundary ] ──► tap
 *                                       ▲ hold, boundary, release, open    │ output
 *                                       └────────── this gate ◄────────────┘
 *
 * The relays are processes of their own and outlive this one: a daemon that is killed leaves the output
 * held, one that detaches leaves relays that pass everything on.
 */
import type { Logger } from '../log.js';
import type { QmpRequest } from '../qmp/commands.js';
import type { GateStats, OutputGate } from './gate.js';
import type { RelayStats } from './relay-control.js';
import type { VmRelay } from './relay-files.js';
import { type ReachRelay, RelayLink } from './relay-link.js';
import type { wantHeld } from './relay-process.js';

/** Whoever looks at the counters finds them no older than this, from the second look on. */
const STATS_AGE_MAX_MS = 250;

export interface RelayGateOptions {
  readonly relays: readonly VmRelay[];
  readonly log: Logger;
  /** How a relay is reached, and told that it must hold whoever starts it; for tests. */
  readonly reach?: ReachRelay | undefined;
  readonly want?: typeof wantHeld | undefined;
}

export class RelayGate implements OutputGate {
  readonly kind = 'relay';
  readonly seesOutput = true;
  readonly #links: readonly RelayLink[];
  #installed = false;
  #listener: () => void = () => {};
  #outputSeen = false;
  #stats: GateStats | undefined;
  #statsMs = Number.NEGATIVE_INFINITY;

  constructor({ relays, ...options }: RelayGateOptions) {
    this.#links = relays.map(
      (relay) => new RelayLink({ relay, ...options, onOutput: () => this.#onOutput() }),
    );
  }

  get installed(): boolean {
    return this.#installed;
  }

  /** A daemon that died between two relays left some of them holding: then all must. */
  async adopt(): Promise<boolean> {
    const holding = await Promise.all(this.#links.map((link) => link.connect()));
    if (holding.includes(true)) await this.install();
    await this.#refreshStats();
    return this.#installed;
  }

  async install(): Promise<void> {
    if (this.#installed) return;
    await this.#each((link) => link.hold());
    this.#installed = true;
  }

  async prepare(): Promise<void> {
    if (this.#installed) await this.#each((link) => link.prepare());
  }

  boundaryCommands(): readonly QmpRequest[] {
    return [];
  }

  /** VM stopped: no frame can come between the relays' answers and the VM's resume. */
  async boundary(): Promise<void> {
    if (!this.#installed) return;
    const frames = await this.#each((link) => link.boundary());
    this.#outputSeen = false;
    // Known anew for each epoch: by it the pacing tells a reply from a stream.
    if (this.#stats)
      this.#stats = { ...this.#stats, heldFrames: frames.reduce((sum, each) => sum + each, 0) };
  }

  async release(): Promise<void> {
    if (this.#installed) await this.#each((link) => link.release());
  }

  async open(): Promise<void> {
    await this.#each((link) => link.open());
    this.#installed = false;
  }

  onOutput(listener: () => void): void {
    this.#listener = listener;
    if (this.#outputSeen) listener();
  }

  stats(): GateStats | undefined {
    if (performance.now() - this.#statsMs > STATS_AGE_MAX_MS) void this.#refreshStats();
    return this.#stats;
  }

  async close(): Promise<void> {
    await this.#each((link) => link.close());
  }

  /** Several backends, one epoch: the first of them counts. */
  #onOutput(): void {
    if (this.#outputSeen) return;
    this.#outputSeen = true;
    this.#listener();
  }

  async #refreshStats(): Promise<void> {
    this.#statsMs = performance.now();
    const known = (await Promise.all(this.#links.map((link) => link.stats()))).filter(
      (stats) => stats !== undefined,
    );
    const sum = (count: (stats: RelayStats) => number): number =>
      known.reduce((total, stats) => total + count(stats), 0);
    this.#stats = {
      heldFrames: sum(({ heldFrames }) => heldFrames),
      heldBytes: sum(({ heldBytes }) => heldBytes),
      heldBytesMax: sum(({ heldBytesPeak }) => heldBytesPeak),
      backPressure: sum(({ stalls }) => stalls),
      stalledMs: sum(({ stalledMs }) => stalledMs),
      droppedFrames: sum(({ droppedFrames }) => droppedFrames),
    };
  }

  /** All of them to their end, then the first failure: nothing is under way afterwards. */
  async #each<Result>(work: (link: RelayLink) => Promise<Result>): Promise<Result[]> {
    const outcomes = await Promise.allSettled(this.#links.map(work));
    return outcomes.map((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason;
      return outcome.value;
    });
  }
}
