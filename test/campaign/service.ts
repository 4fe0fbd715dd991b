/**
 * What a campaign's guest serves, how it comes to run, and how its clients are judged: redis in memory
 * (here), or redis, SQLite and files on a disk (disk-service.ts).
 */

import { bootRedisGuest, type RunningVm } from '../e2e/support/lab.js';
import type { Lab } from '../lab/lab.js';
import { RedisLoad, type RedisLoadSummary } from '../lab/redis-load-process.js';

/** Spare time for a machine that is busy with other things. */
export const PATIENCE_MS = 60_000;
/** Increments per connection and more before the failure, and after it. */
const PROGRESS_INCREMENTS = 20;

export interface LoadResult {
  readonly acknowledged: number;
  readonly lost: number;
  /** Longest time in which a client waited and no answer came. */
  readonly clientStallMs: number;
  readonly violations: readonly string[];
}

/** The clients of one trial. */
export interface ServiceLoad {
  /** The guest answers, now. */
  advance(): Promise<void>;
  /** Everything is read back and judged, also against what the last trial left. */
  stop(): Promise<LoadResult>;
}

export interface Service {
  /** On host a, before the first trial; undefined if the first `holdfast primary` launches the VM. */
  boot(): Promise<RunningVm | undefined>;
  /** QEMU's command line, where boot() leaves it to be launched, and until it serves. */
  readonly commandLine: readonly string[];
  ready(): Promise<void>;
  primaryArgs(from: 'a' | 'b'): readonly string[];
  backupArgs(to: 'a' | 'b'): readonly string[];
  startLoad(): Promise<ServiceLoad>;
  /** After the last trial; the VM is of no further use then. Returns violations. */
  finish(vm: RunningVm): Promise<readonly string[]>;
}

export const violationsOf = (summary: RedisLoadSummary): string[] => [
  ...summary.violations,
  ...summary.broken.map(({ key, reason }) => `the connection of ${key} broke: ${reason}`),
  ...(summary.lost > 0 ? [`${summary.lost} acknowledged increments lost`] : []),
  ...(summary.ok || summary.violations.length + summary.broken.length + summary.lost > 0
    ? []
    : ['the redis load reports a failure']),
];

/** The redis clients of the trials, one after the other: between two of them nothing may be lost either. */
export class RedisClients {
  readonly #lab: Lab;
  /** Sum of the counters when the last trial had ended. */
  #counted = 0;

  constructor(lab: Lab) {
    this.#lab = lab;
  }

  async startLoad(): Promise<ServiceLoad> {
    const load = await RedisLoad.start(this.#lab.client, { drainTimeoutMs: PATIENCE_MS });
    return {
      advance: async () => await load.advance(PROGRESS_INCREMENTS, { timeoutMs: PATIENCE_MS }),
      stop: async () => {
        const summary = await load.stop();
        const { acknowledged, lost, longestStallMs } = summary;
        const violations = [...violationsOf(summary), ...this.#continuity(summary)];
        return { acknowledged, lost, clientStallMs: longestStallMs, violations };
      },
    };
  }

  #continuity(summary: RedisLoadSummary): string[] {
    const begin = summary.keys.reduce((sum, key) => sum + key.acknowledged, -summary.acknowledged);
    const expected = this.#counted;
    this.#counted = summary.keys.reduce((sum, key) => sum + (key.finalOverFresh ?? 0), 0);
    return begin === expected
      ? []
      : [`the counters began at ${begin} in total, the last trial left ${expected}`];
  }
}

export class MemoryService implements Service {
  readonly commandLine = [];
  readonly #lab: Lab;
  readonly #clients: RedisClients;

  constructor(lab: Lab) {
    this.#lab = lab;
    this.#clients = new RedisClients(lab);
  }

  async boot(): Promise<RunningVm> {
    return await bootRedisGuest(this.#lab);
  }

  async ready(): Promise<void> {}

  primaryArgs(): readonly string[] {
    return [];
  }

  backupArgs(): readonly string[] {
    return [];
  }

  async startLoad(): Promise<ServiceLoad> {
    return await this.#clients.startLoad();
  }

  async finish(): Promise<readonly string[]> {
    return [];
  }
}
