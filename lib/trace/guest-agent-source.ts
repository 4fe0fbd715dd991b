/** A guest's processes by its agent: coarse, and at the guest's own cost, but without its kernel's symbols. */
import { setTimeout as delay } from 'node:timers/promises';
import { changesBetween, parseTaskStats, SAMPLE_COMMAND, type TaskSample } from './agent-samples.js';
import { GuestAgent } from './guest-agent.js';
import { type GuestChange, guestSlices } from './guest-slices.js';
import type { GuestSource } from './guest-source.js';
import { monotonicNs } from './sched-recording.js';

const CHANGES_MAX = 1_000_000;
export const AGENT_RATE_PER_S = 5;

export interface AgentSourceOptions {
  /** The agent's socket. */
  readonly path: string;
  readonly vcpus: number;
  readonly ratePerS: number;
}

interface Look {
  readonly atNs: number;
  readonly tasks: readonly TaskSample[];
}

class AgentSource implements GuestSource {
  readonly #options: AgentSourceOptions;
  readonly #stopped = new AbortController();
  /** Times on CLOCK_MONOTONIC, µs. */
  readonly #changes: GuestChange[] = [];
  #agent: GuestAgent | undefined;
  #kernel = '';
  #ended: Promise<void> = Promise.resolve();
  #looks = 0;
  #late = 0;
  #unread = 0;
  #discarded = 0;

  constructor(options: AgentSourceOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const agent = await GuestAgent.connect(this.#options.path);
    this.#agent = agent;
    try {
      this.#kernel = (await agent.run('cat /proc/version')).trim();
      const first = await this.#look(agent);
      this.#ended = this.#go(agent, first);
    } catch (error) {
      agent.close();
      throw error;
    }
  }

  async stop(): Promise<void> {
    this.#stopped.abort();
    await this.#ended;
    this.#agent?.close();
  }

  record(originNs: number, durationUs: number): ReturnType<GuestSource['record']> {
    const changes = this.#changes.map((change) => ({ ...change, atUs: change.atUs - originNs / 1e3 }));
    return {
      source: 'guest agent',
      kernel: this.#kernel,
      intervalUs: Math.round(1e6 / this.#options.ratePerS),
      looks: this.#looks,
      late: this.#late,
      unread: this.#unread,
      discarded: this.#discarded,
      slices: guestSlices(changes, durationUs),
    };
  }

  /** Never rejects: a guest that falls silent has no processes from then on, and the trace goes on. */
  async #go(agent: GuestAgent, first: Look): Promise<void> {
    const { signal } = this.#stopped;
    const intervalMs = 1e3 / this.#options.ratePerS;
    let before = first;
    while (!signal.aborted) {
      const waitMs = intervalMs - (monotonicNs() - before.atNs) / 1e6;
      if (waitMs < 0) this.#late += 1;
      await delay(Math.max(0, waitMs), undefined, { signal }).catch(() => {});
      try {
        const look = await this.#look(agent);
        this.#keep(changesBetween(before.tasks, look.tasks, this.#options.vcpus, before.atNs / 1e3));
        before = look;
      } catch {
        this.#unread += 1;
        return;
      }
    }
  }

  /** The guest looked between question and answer: half way is the best guess. */
  async #look(agent: GuestAgent): Promise<Look> {
    const askedNs = monotonicNs();
    const tasks = parseTaskStats(await agent.run(SAMPLE_COMMAND));
    this.#looks += 1;
    return { atNs: (askedNs + monotonicNs()) / 2, tasks };
  }

  #keep(changes: readonly GuestChange[]): void {
    const room = CHANGES_MAX - this.#changes.length;
    this.#changes.push(...changes.slice(0, room));
    this.#discarded += Math.max(0, changes.length - room);
  }
}

export const openGuestAgent = (options: AgentSourceOptions): GuestSource => new AgentSource(options);
