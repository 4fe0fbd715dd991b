/**
 * A redis client that can tell whether a failover kept its word. A program of its own, since it must live
 * in the client's namespace: `node redis-load.js '{"host":…}'`; RedisLoad (redis-load-process.ts) drives it.
 *
 * Each connection increments its own counter, one request at a time. An acknowledged increment must never
 * be taken back, so each reply must be exactly the one before it plus one. Connections are never remade:
 * an outage must be a stall, not a reset. On the line `stop`, or the end of standard input, the counters
 * are read back over the old connections and over fresh ones.
 *
 * Standard output: one JSON object per line, RedisLoadMessage.
 */

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { LatencyHistogram } from './latency-histogram.js';
import { RespConnection } from './resp.js';

export interface RedisLoadOptions {
  readonly host: string;
  readonly port: number;
  readonly connections: number;
  /** Requests per second of all connections together; 0: as fast as the replies come. */
  readonly ratePerS: number;
  /** Counters are <prefix>0, <prefix>1, …; a counter that exists goes on from its value. */
  readonly keyPrefix: string;
  readonly progressIntervalMs: number;
  readonly connectTimeoutMs: number;
  /** At stop: how long the last replies and the final reads may take. */
  readonly drainTimeoutMs: number;
}

export interface RedisLoadKey {
  readonly key: string;
  /** The counter's value by the last acknowledged increment. */
  readonly acknowledged: number;
  /** Read back at the end over the same connection; null if it is broken. */
  readonly finalOverOld: number | null;
  /** Read back at the end over a fresh connection; null if none could be made. */
  readonly finalOverFresh: number | null;
}

export interface RedisLoadBreak {
  readonly key: string;
  readonly reason: string;
  readonly atEpochMs: number;
}

export interface RedisLoadSummary {
  readonly type: 'summary';
  /** All connections survived, nothing was lost, no reply was out of sequence. */
  readonly ok: boolean;
  readonly connections: number;
  /** Increments acknowledged by this run, over all keys. */
  readonly acknowledged: number;
  /** Acknowledged increments that the final read over a fresh connection does not show. */
  readonly lost: number;
  /** Replies that were not the one before plus one, and final values that contradict; the first 20 in words. */
  readonly violationCount: number;
  readonly violations: readonly string[];
  readonly broken: readonly RedisLoadBreak[];
  readonly keys: readonly RedisLoadKey[];
  readonly durationMs: number;
  readonly latencyMsP50: number;
  readonly latencyMsP99: number;
  readonly latencyMsMax: number;
  /** Longest time in which requests were waiting and no reply came on any connection. */
  readonly longestStallMs: number;
  readonly longestStallStartEpochMs: number;
}

export type RedisLoadMessage =
  | { readonly type: 'ready' }
  | { readonly type: 'progress'; readonly acknowledged: number; readonly brokenConnections: number }
  | { readonly type: 'failed'; readonly reason: string }
  | RedisLoadSummary;

interface Counter {
  readonly key: string;
  readonly connection: RespConnection;
  acknowledged: number;
  /** An increment is under way: it may have been done although nobody was told. */
  pending: boolean;
  broken: RedisLoadBreak | undefined;
}

const violationsMax = 20;

const print = (message: RedisLoadMessage): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

const epochMs = (): number => performance.timeOrigin + performance.now();

/** Finds the longest outage: requests waiting, and no reply on any connection. */
class StallWatch {
  #outstanding = 0;
  #quietSinceMs = 0;
  #startMs = 0;
  longestMs = 0;

  sent(): void {
    if (this.#outstanding === 0) this.#quietSinceMs = performance.now();
    this.#outstanding += 1;
  }
  replied(): void {
    const now = performance.now();
    if (now - this.#quietSinceMs > this.longestMs) {
      this.longestMs = now - this.#quietSinceMs;
      this.#startMs = this.#quietSinceMs;
    }
    this.#quietSinceMs = now;
    this.#outstanding -= 1;
  }
  /** The request will never be answered. */
  broken(): void {
    this.#outstanding -= 1;
  }
  get startEpochMs(): number {
    return this.longestMs === 0 ? 0 : performance.timeOrigin + this.#startMs;
  }
}

class Load {
  readonly #options: RedisLoadOptions;
  readonly #counters: Counter[];
  readonly #firstValues: readonly number[];
  readonly #latency = new LatencyHistogram();
  readonly #stalls = new StallWatch();
  readonly #violations: string[] = [];
  readonly #startMs = performance.now();
  #violationCount = 0;
  #stopping = false;

  private constructor(options: RedisLoadOptions, counters: Counter[]) {
    this.#options = options;
    this.#counters = counters;
    this.#firstValues = counters.map((counter) => counter.acknowledged);
  }

  static async connect(options: RedisLoadOptions): Promise<Load> {
    const counters = await Promise.all(
      Array.from({ length: options.connections }, async (_, index): Promise<Counter> => {
        const connection = await RespConnection.connect(options.host, options.port, options.connectTimeoutMs);
        const key = `${options.keyPrefix}${index}`;
        const value = await connection.send('GET', key);
        return { key, connection, acknowledged: Number(value ?? 0), pending: false, broken: undefined };
      }),
    );
    return new Load(options, counters);
  }

  get acknowledged(): number {
    return this.#counters.reduce((sum, { acknowledged }, n) => sum + acknowledged - this.#firstValues[n]!, 0);
  }
  get brokenConnections(): number {
    return this.#counters.filter(({ broken }) => broken !== undefined).length;
  }

  /** Increments until stop(); settles when every connection is idle or broken. */
  async run(): Promise<void> {
    await Promise.all(this.#counters.map((counter) => this.#increment(counter)));
  }

  /** No further request; a connection that owes a reply after the drain time counts as broken. */
  stop(): void {
    this.#stopping = true;
    setTimeout(() => {
      for (const { pending, connection } of this.#counters) {
        if (pending)
          connection.destroy(new Error(`no reply within ${this.#options.drainTimeoutMs} ms of the stop`));
      }
    }, this.#options.drainTimeoutMs).unref();
  }

  async #increment(counter: Counter): Promise<void> {
    const { ratePerS, connections } = this.#options;
    const intervalMs = ratePerS === 0 ? 0 : (1000 * connections) / ratePerS;
    let dueMs = performance.now();
    while (!this.#stopping) {
      if (intervalMs > 0) {
        // A stall is not made up for: the rate is a ceiling.
        dueMs = Math.max(dueMs + intervalMs, performance.now());
        await sleep(dueMs - performance.now());
        if (this.#stopping) return;
      }
      const sentMs = performance.now();
      this.#stalls.sent();
      counter.pending = true;
      try {
        const reply = await counter.connection.send('INCR', counter.key);
        this.#stalls.replied();
        this.#latency.add(performance.now() - sentMs);
        if (reply !== counter.acknowledged + 1) {
          this.#violation(`${counter.key}: ${String(reply)} after ${counter.acknowledged}`);
        }
        if (typeof reply === 'number') counter.acknowledged = reply;
        counter.pending = false;
      } catch (error) {
        this.#stalls.broken();
        counter.broken = { key: counter.key, reason: (error as Error).message, atEpochMs: epochMs() };
        return;
      }
    }
  }

  #violation(text: string): void {
    this.#violationCount += 1;
    if (this.#violations.length < violationsMax) this.#violations.push(text);
  }

  /** Reads a counter back; null if that is not possible within the drain time. */
  async #read(connection: Promise<RespConnection>, key: string): Promise<number | null> {
    let timer: NodeJS.Timeout | undefined;
    try {
      const opened = await connection;
      timer = setTimeout(
        () =>
          opened.destroy(new Error(`no reply to the final read within ${this.#options.drainTimeoutMs} ms`)),
        this.#options.drainTimeoutMs,
      );
      const reply = await opened.send('GET', key);
      return reply === null ? 0 : Number(reply);
    } catch {
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  async #verify(counter: Counter): Promise<RedisLoadKey> {
    const { host, port, drainTimeoutMs } = this.#options;
    const { key, acknowledged, pending, broken } = counter;
    const finalOverOld = await this.#read(Promise.resolve(counter.connection), key);
    if (finalOverOld === null && broken === undefined) {
      const reason = counter.connection.broken?.message ?? 'the final read failed';
      counter.broken = { key, reason, atEpochMs: epochMs() };
    }
    counter.connection.destroy();
    const fresh = RespConnection.connect(host, port, drainTimeoutMs);
    const finalOverFresh = await this.#read(fresh, key);
    await fresh.then(
      (connection) => connection.destroy(),
      () => {},
    );
    // One increment that was never answered may have been done; nothing else may differ.
    const highest = acknowledged + (pending ? 1 : 0);
    for (const [name, value] of [
      ['old', finalOverOld],
      ['fresh', finalOverFresh],
    ] as const) {
      if (value !== null && (value < acknowledged || value > highest)) {
        this.#violation(`${key}: ${value} read over the ${name} connection, ${acknowledged} acknowledged`);
      }
    }
    if (finalOverFresh === null) this.#violation(`${key}: could not be read over a fresh connection`);
    return { key, acknowledged, finalOverOld, finalOverFresh };
  }

  /** After run(): reads everything back. */
  async summary(): Promise<RedisLoadSummary> {
    const durationMs = performance.now() - this.#startMs;
    const keys = await Promise.all(this.#counters.map((counter) => this.#verify(counter)));
    const lost = keys.reduce(
      (sum, { acknowledged, finalOverFresh }) => sum + Math.max(0, acknowledged - (finalOverFresh ?? 0)),
      0,
    );
    const broken = this.#counters.flatMap((counter) => counter.broken ?? []);
    return {
      type: 'summary',
      ok: lost === 0 && this.#violationCount === 0 && broken.length === 0,
      connections: this.#counters.length,
      acknowledged: this.acknowledged,
      lost,
      violationCount: this.#violationCount,
      violations: this.#violations,
      broken,
      keys,
      durationMs,
      latencyMsP50: this.#latency.percentileMs(0.5),
      latencyMsP99: this.#latency.percentileMs(0.99),
      latencyMsMax: this.#latency.maxMs,
      longestStallMs: this.#stalls.longestMs,
      longestStallStartEpochMs: this.#stalls.startEpochMs,
    };
  }
}

const main = async (): Promise<void> => {
  const options = JSON.parse(process.argv[2] ?? '') as RedisLoadOptions;
  const load = await Load.connect(options);
  print({ type: 'ready' });
  const progress = setInterval(() => {
    const { acknowledged, brokenConnections } = load;
    print({ type: 'progress', acknowledged, brokenConnections });
  }, options.progressIntervalMs);
  const input = createInterface({ input: process.stdin });
  input.on('line', (line) => {
    if (line.trim() === 'stop') input.close();
  });
  const stopped = new Promise<void>((resolve) => {
    input.once('close', () => {
      load.stop();
      resolve();
    });
  });
  // Both: connections that all broke must still be judged when the failover is over, not now.
  await Promise.all([load.run(), stopped]);
  clearInterval(progress);
  print(await load.summary());
  process.stdin.destroy();
};

main().catch((error: unknown) => {
  print({ type: 'failed', reason: (error as Error).message });
  process.exitCode = 1;
});
