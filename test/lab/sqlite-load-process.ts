/** Drives sqlite-load.ts, which runs in the client's namespace as a process of its own. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { repositoryRoot } from './guest.js';
import { JsonProcess } from './json-process.js';
import type { LabHost } from './lab.js';
import { guestAddress } from './network.js';
import type { SqliteLoadOptions, SqliteLoadSummary } from './sqlite-load.js';
import { type WaitOptions, waitFor } from './wait.js';

export type { SqliteLoadSummary } from './sqlite-load.js';

const defaults: SqliteLoadOptions = {
  host: guestAddress,
  port: 2223,
  ratePerS: 0,
  pruneEvery: 40,
  progressIntervalMs: 50,
  connectTimeoutMs: 10_000,
  drainTimeoutMs: 15_000,
};

export class SqliteLoad {
  readonly process: JsonProcess;
  readonly #drainTimeoutMs: number;

  private constructor(started: JsonProcess, drainTimeoutMs: number) {
    this.process = started;
    this.#drainTimeoutMs = drainTimeoutMs;
  }

  /** Starts the load in `client`'s namespace; settles when the database has been checked and inserting begins. */
  static async start(client: LabHost, options: Partial<SqliteLoadOptions> = {}): Promise<SqliteLoad> {
    const program = join(repositoryRoot(), 'dist/test/lab/sqlite-load.js');
    if (!existsSync(program)) throw new Error(`${program} is missing: run \`npm run setup\``);
    const all = { ...defaults, ...options };
    const started = new JsonProcess(await client.spawn(process.execPath, [program, JSON.stringify(all)]));
    const load = new SqliteLoad(started, all.drainTimeoutMs);
    await load.#until('the SQLite load to connect', () => started.of('ready').length > 0, {
      timeoutMs: all.connectTimeoutMs + 10_000,
    });
    return load;
  }

  /** Insertions acknowledged so far, as of the last progress report. */
  get acknowledged(): number {
    return Number(this.process.of('progress').at(-1)?.acknowledged ?? 0);
  }

  /** Waits until `count` further insertions have been acknowledged. */
  async advance(count: number, wait: WaitOptions = {}): Promise<void> {
    const goal = this.acknowledged + count;
    await this.#until(
      `${count} more insertions`,
      () => {
        const broken = this.process.of('progress').at(-1)?.broken ?? null;
        if (broken !== null) throw new Error(`the connection of the SQLite load broke: ${broken}`);
        return this.acknowledged >= goal;
      },
      wait,
    );
  }

  /** Stops inserting, has the database checked, and returns what happened. */
  async stop(): Promise<SqliteLoadSummary> {
    this.process.process.child.stdin.end('stop\n');
    // The last answer, then the checks over the old and over a fresh connection.
    return await this.#until(
      'the summary of the SQLite load',
      () => this.process.of('summary')[0] as unknown as SqliteLoadSummary | undefined,
      { timeoutMs: 4 * this.#drainTimeoutMs + 5000 },
    );
  }

  async #until<T>(what: string, probe: () => T | undefined | false, wait: WaitOptions): Promise<T> {
    return await waitFor(
      what,
      () => {
        const failed = this.process.of('failed')[0];
        if (failed !== undefined) throw new Error(`SQLite load: ${failed.reason}`);
        return probe();
      },
      wait,
    );
  }
}
