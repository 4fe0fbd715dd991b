/** Drives redis-load.ts, which runs in the client's namespace as a process of its own. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { repositoryRoot } from './guest.js';
import type { LabHost } from './lab.js';
import { guestAddress } from './network.js';
import type { LabProcess } from './process.js';
import type { RedisLoadMessage, RedisLoadOptions, RedisLoadSummary } from './redis-load.js';
import { type WaitOptions, waitFor } from './wait.js';

export type { RedisLoadSummary } from './redis-load.js';

const defaults: RedisLoadOptions = {
  host: guestAddress,
  port: 6379,
  connections: 4,
  ratePerS: 0,
  keyPrefix: 'counter',
  progressIntervalMs: 50,
  connectTimeoutMs: 10_000,
  drainTimeoutMs: 15_000,
};

export class RedisLoad {
  readonly process: LabProcess;
  readonly #connections: number;
  readonly #drainTimeoutMs: number;
  #ready = false;
  #acknowledged = 0;
  #brokenConnections = 0;
  #failure: string | undefined;
  #summary: RedisLoadSummary | undefined;

  private constructor(loadProcess: LabProcess, options: RedisLoadOptions) {
    this.process = loadProcess;
    this.#connections = options.connections;
    this.#drainTimeoutMs = options.drainTimeoutMs;
    createInterface({ input: loadProcess.child.stdout }).on('line', (line) =>
      this.#receive(JSON.parse(line) as RedisLoadMessage),
    );
  }

  /** Starts the load in `client`'s namespace; settles when every connection is made and incrementing begins. */
  static async start(client: LabHost, options: Partial<RedisLoadOptions> = {}): Promise<RedisLoad> {
    const program = join(repositoryRoot(), 'dist/test/lab/redis-load.js');
    if (!existsSync(program)) throw new Error(`${program} is missing: run \`npm run setup\``);
    const all = { ...defaults, ...options };
    const loadProcess = await client.spawn(process.execPath, [program, JSON.stringify(all)]);
    const load = new RedisLoad(loadProcess, all);
    await load.#until('the redis load to connect', () => load.#ready, {
      timeoutMs: all.connectTimeoutMs + 10_000,
    });
    return load;
  }

  /** Increments acknowledged so far, as of the last progress report. */
  get acknowledged(): number {
    return this.#acknowledged;
  }
  get brokenConnections(): number {
    return this.#brokenConnections;
  }

  /** Waits until `count` further increments have been acknowledged: the guest answers, now. */
  async advance(count: number, wait: WaitOptions = {}): Promise<void> {
    const goal = this.#acknowledged + count;
    await this.#until(
      `${count} more increments`,
      () => {
        if (this.#acknowledged >= goal) return true;
        if (this.#brokenConnections === this.#connections)
          throw new Error('all connections of the redis load broke');
        return undefined;
      },
      wait,
    );
  }

  /** Stops sending, has every counter read back, and returns what happened. */
  async stop(): Promise<RedisLoadSummary> {
    this.process.child.stdin.end('stop\n');
    // The last replies, the final reads over old and then over fresh connections.
    const timeoutMs = 4 * this.#drainTimeoutMs + 5000;
    return await this.#until('the summary of the redis load', () => this.#summary, { timeoutMs });
  }

  async #until<T>(what: string, probe: () => T | undefined | false, wait: WaitOptions): Promise<T> {
    let endedMs: number | undefined;
    return await waitFor(
      what,
      () => {
        const value = probe();
        if (value !== undefined && value !== false) return value;
        if (this.#failure !== undefined) throw new Error(`redis load: ${this.#failure}`);
        // The last lines may still be on their way through the pipe.
        if (!this.process.running) endedMs ??= performance.now();
        if (endedMs !== undefined && performance.now() - endedMs > 1000) {
          throw new Error(`the redis load ended while waiting for ${what}: ${this.process.stderr}`);
        }
        return undefined;
      },
      wait,
    );
  }

  #receive(message: RedisLoadMessage): void {
    switch (message.type) {
      case 'ready':
        this.#ready = true;
        break;
      case 'progress':
        this.#acknowledged = message.acknowledged;
        this.#brokenConnections = message.brokenConnections;
        break;
      case 'failed':
        this.#failure = message.reason;
        break;
      case 'summary':
        this.#acknowledged = message.acknowledged;
        this.#summary = message;
        break;
    }
  }
}
