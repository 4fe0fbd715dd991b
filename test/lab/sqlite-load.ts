/**
 * A client of the guest's sqlwriter that can tell whether a failover kept its word. A program of its own,
 * since it must live in the client's namespace: `node sqlite-load.js '{"host":…}'`; SqliteLoad
 * (sqlite-load-process.ts) drives it.
 *
 * It inserts rows with increasing numbers, one transaction at a time, and now and then deletes all but the
 * newest. So the rows of the database must always be an unbroken run, from the first that it kept to the
 * last that was acknowledged, or one more if an insertion was never answered. The connection is never
 * remade. On the line `stop`, or the end of standard input, the database is checked (integrity_check, every
 * row's content) over the old connection and over a fresh one.
 *
 * Standard output: one JSON object per line, SqliteLoadMessage.
 */

import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { LatencyHistogram } from './latency-histogram.js';

export interface SqliteLoadOptions {
  readonly host: string;
  readonly port: number;
  /** Transactions per second; 0: as fast as the answers come. */
  readonly ratePerS: number;
  /** Rows are deleted after each so many insertions, but for as many that stay. */
  readonly pruneEvery: number;
  readonly progressIntervalMs: number;
  readonly connectTimeoutMs: number;
  /** At stop: how long the last answer and each check may take. */
  readonly drainTimeoutMs: number;
}

/** The rows of the database: numbers `first` to `last`; 0 and 0 if there are none. */
export interface SqliteRows {
  readonly rows: number;
  readonly first: number;
  readonly last: number;
}

export interface SqliteLoadSummary {
  readonly event: 'summary';
  /** The connection survived and nothing was lost, damaged or out of sequence. */
  readonly ok: boolean;
  /** Insertions acknowledged by this run. */
  readonly acknowledged: number;
  /** Acknowledged insertions that the final check over a fresh connection does not show. */
  readonly lost: number;
  readonly violations: readonly string[];
  /** What was there when this run began. */
  readonly begun: SqliteRows;
  /** As the check over a fresh connection found them; null if there was none. */
  readonly found: SqliteRows | null;
  readonly latencyMsP50: number;
  readonly latencyMsP99: number;
  readonly latencyMsMax: number;
}

export type SqliteLoadMessage =
  | { readonly event: 'ready' }
  | { readonly event: 'progress'; readonly acknowledged: number; readonly broken: string | null }
  | { readonly event: 'failed'; readonly reason: string }
  | SqliteLoadSummary;

const answerCharactersMax = 4096;

/** One connection to sqlwriter: a request a line, an answer a line, in order, no reconnection. */
class Writer {
  readonly #socket: Socket;
  #received = '';
  #waiting: { resolve: (line: string) => void; reject: (error: Error) => void } | undefined;
  #broken: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('error', (error) => this.destroy(error));
    socket.on('close', () => this.destroy(new Error('the guest closed the connection')));
  }

  static async connect(host: string, port: number, timeoutMs: number): Promise<Writer> {
    const socket = connect({ host, port, noDelay: true });
    const timer = setTimeout(
      () => socket.destroy(new Error(`no connection within ${timeoutMs} ms`)),
      timeoutMs,
    );
    try {
      await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
      return new Writer(socket);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Resolves with the words after `ok`; rejects on `error …` and when the connection breaks. */
  async ask(request: string): Promise<readonly number[]> {
    if (this.#broken !== undefined) throw this.#broken;
    const line = await new Promise<string>((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#socket.write(`${request}\n`);
    });
    const [verdict, ...numbers] = line.split(' ');
    if (verdict !== 'ok') throw new Error(`${request}: ${line}`);
    return numbers.map(Number);
  }

  destroy(reason = new Error('closed by this side')): void {
    this.#broken ??= reason;
    this.#socket.destroy();
    this.#waiting?.reject(this.#broken);
    this.#waiting = undefined;
  }

  #receive(text: string): void {
    this.#received += text;
    const end = this.#received.indexOf('\n');
    if (end < 0 && this.#received.length <= answerCharactersMax) return;
    const line = this.#received.slice(0, end);
    this.#received = this.#received.slice(end + 1);
    if (end < 0 || this.#received !== '' || this.#waiting === undefined) {
      this.destroy(new Error('an answer that nobody asked for'));
      return;
    }
    const { resolve } = this.#waiting;
    this.#waiting = undefined;
    resolve(line);
  }
}

const checked = async (writer: Writer): Promise<SqliteRows> => {
  const [rows = 0, first = 0, last = 0] = await writer.ask('check');
  return { rows, first, last };
};

class Load {
  readonly #options: SqliteLoadOptions;
  readonly #writer: Writer;
  readonly #latency = new LatencyHistogram();
  readonly #violations: string[] = [];
  readonly #begun: SqliteRows;
  /** Highest number acknowledged, and the request that is not answered yet. */
  #last: number;
  #first: number;
  #pending: { readonly kind: 'insert' | 'prune'; readonly id: number } | undefined;
  #broken: string | undefined;
  #stopping = false;

  private constructor(options: SqliteLoadOptions, writer: Writer, begun: SqliteRows) {
    this.#options = options;
    this.#writer = writer;
    this.#begun = begun;
    this.#first = Math.max(begun.first, 1);
    this.#last = begun.last;
  }

  static async connect(options: SqliteLoadOptions): Promise<Load> {
    const writer = await Writer.connect(options.host, options.port, options.connectTimeoutMs);
    return new Load(options, writer, await checked(writer));
  }

  get acknowledged(): number {
    return this.#last - this.#begun.last;
  }
  get broken(): string | null {
    return this.#broken ?? null;
  }

  /** Inserts until stop(). */
  async run(): Promise<void> {
    const { ratePerS, pruneEvery } = this.#options;
    const intervalMs = ratePerS === 0 ? 0 : 1000 / ratePerS;
    let dueMs = performance.now();
    try {
      while (!this.#stopping) {
        // A stall is not made up for: the rate is a ceiling.
        dueMs = Math.max(dueMs + intervalMs, performance.now());
        if (intervalMs > 0) await sleep(dueMs - performance.now());
        await this.#do('insert', this.#last + 1);
        this.#last += 1;
        if (this.#last % pruneEvery === 0 && this.#last - pruneEvery > this.#first) {
          await this.#do('prune', this.#last - pruneEvery);
          this.#first = this.#last - pruneEvery;
        }
      }
    } catch (error) {
      this.#broken = (error as Error).message;
    }
  }

  /** No further request; a connection that owes an answer after the drain time counts as broken. */
  stop(): void {
    this.#stopping = true;
    const { drainTimeoutMs } = this.#options;
    setTimeout(() => {
      if (this.#pending !== undefined) {
        this.#writer.destroy(new Error(`no answer within ${drainTimeoutMs} ms of the stop`));
      }
    }, drainTimeoutMs).unref();
  }

  async #do(kind: 'insert' | 'prune', id: number): Promise<void> {
    const sentMs = performance.now();
    this.#pending = { kind, id };
    const [answered] = await this.#writer.ask(`${kind} ${id}`);
    if (answered !== id) this.#violations.push(`${kind} ${id} was answered ${answered}`);
    this.#pending = undefined;
    this.#latency.add(performance.now() - sentMs);
  }

  /** What the database has now; null if it can't be had, or is damaged: then that is a violation. */
  async #check(name: string, connected: Promise<Writer>): Promise<SqliteRows | null> {
    let timer: NodeJS.Timeout | undefined;
    try {
      const writer = await connected;
      const late = new Error(`no answer within ${this.#options.drainTimeoutMs} ms`);
      timer = setTimeout(() => writer.destroy(late), this.#options.drainTimeoutMs);
      const found = await checked(writer);
      writer.destroy();
      this.#compare(name, found);
      return found;
    } catch (error) {
      this.#violations.push(`check over the ${name} connection: ${(error as Error).message}`);
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  #compare(name: string, { rows, first, last }: SqliteRows): void {
    const lasts = [this.#last, ...(this.#pending?.kind === 'insert' ? [this.#pending.id] : [])];
    const firsts = [this.#first, ...(this.#pending?.kind === 'prune' ? [this.#pending.id] : [])];
    const expected = this.#last === 0 && last === 0 ? rows === 0 : rows === last - first + 1;
    if (expected && lasts.includes(last) && (last === 0 || firsts.includes(first))) return;
    this.#violations.push(
      `over the ${name} connection: ${rows} rows from ${first} to ${last}, not from ${firsts.join(' or ')}` +
        ` to ${lasts.join(' or ')}`,
    );
  }

  /** After run(): has everything checked. */
  async summary(): Promise<SqliteLoadSummary> {
    const { host, port, drainTimeoutMs } = this.#options;
    await this.#check('old', Promise.resolve(this.#writer));
    const found = await this.#check('fresh', Writer.connect(host, port, drainTimeoutMs));
    const violations = [
      ...this.#violations,
      ...(this.#broken === undefined ? [] : [`the connection broke: ${this.#broken}`]),
    ];
    return {
      event: 'summary',
      ok: violations.length === 0,
      acknowledged: this.acknowledged,
      lost: Math.max(0, this.#last - Math.max(this.#begun.last, found?.last ?? 0)),
      violations,
      begun: this.#begun,
      found,
      latencyMsP50: this.#latency.percentileMs(0.5),
      latencyMsP99: this.#latency.percentileMs(0.99),
      latencyMsMax: this.#latency.maxMs,
    };
  }
}

const print = (message: SqliteLoadMessage): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

const main = async (): Promise<void> => {
  const options = JSON.parse(process.argv[2] ?? '') as SqliteLoadOptions;
  const load = await Load.connect(options);
  print({ event: 'ready' });
  const progress = setInterval(() => {
    const { acknowledged, broken } = load;
    print({ event: 'progress', acknowledged, broken });
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
  // Both: a connection that broke must still be judged when the failover is over, not now.
  await Promise.all([load.run(), stopped]);
  clearInterval(progress);
  print(await load.summary());
  process.stdin.destroy();
};

main().catch((error: unknown) => {
  print({ event: 'failed', reason: (error as Error).message });
  process.exitCode = 1;
});
