/**
 * Load on the guest's redis, as redis-benchmark makes it: so many clients, each
 * with so many SETs under way. A program of its own, since it must live in the
 * client's namespace: `node redis-client.js '<RedisClientOptions as JSON>'`.
 *
 *   connect all ─► send ─► (warm-up) ─► count replies, time round trips ─► stop sending ─► await the last replies
 *
 * Each reply must be `+OK`. A round trip is that of a whole batch, from its only
 * write to its last reply; with one request under way it is that request's.
 *
 * Standard output: one JSON object, RedisClientMessage.
 */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type LatencyBuckets, LatencyHistogram } from '../../test/lab/latency-histogram.js';
import { encodeCommand } from '../../test/lab/resp.js';

export interface RedisClientOptions {
  readonly host: string;
  readonly port: number;
  readonly clients: number;
  /** Requests under way on each connection. */
  readonly pipeline: number;
  /** Different keys that are written. */
  readonly keys: number;
  readonly warmUpMs: number;
  readonly measureMs: number;
}

export type RedisClientMessage =
  | {
      readonly event: 'measured';
      /** Within `measuredMs`. */
      readonly replies: number;
      readonly measuredMs: number;
      readonly roundTrips: LatencyBuckets;
    }
  | { readonly event: 'failed'; readonly message: string };

const CONNECT_TIMEOUT_MS = 10_000;
/** For the replies under way when the measuring ends. */
const DRAIN_TIMEOUT_MS = 10_000;
/** Batches made beforehand, from which each client takes in turn: making them costs the load nothing. */
const BATCHES = 256;
const REPLY = '+OK\r\n';
/** More than a socket yields at once, in any phase of a reply. */
const okReplies = Buffer.from(REPLY.repeat(1 << 14));

const batchesOf = ({ pipeline, keys }: RedisClientOptions): Buffer[] =>
  Array.from({ length: BATCHES }, (_, batch) => {
    const commands = Array.from({ length: pipeline }, (_, n) => {
      const key = (batch * pipeline + n) % keys;
      return encodeCommand(['SET', `bench:${key}`, `value-${batch}`]);
    });
    return Buffer.from(commands.join(''));
  });

const connectTo = async ({ host, port }: RedisClientOptions): Promise<Socket> => {
  const socket = connect({ host, port, noDelay: true });
  await once(socket, 'connect', { signal: AbortSignal.timeout(CONNECT_TIMEOUT_MS) });
  return socket;
};

class Load {
  readonly #options: RedisClientOptions;
  readonly #batches: readonly Buffer[];
  #roundTrips = new LatencyHistogram();
  #replies = 0;
  #batchesSent = 0;
  #stopping = false;

  constructor(options: RedisClientOptions) {
    this.#options = options;
    this.#batches = batchesOf(options);
  }

  async measure(): Promise<RedisClientMessage> {
    const { clients, warmUpMs, measureMs } = this.#options;
    const sockets = await Promise.all(Array.from({ length: clients }, () => connectTo(this.#options)));
    const finished = Promise.all(sockets.map((socket) => this.#run(socket)));
    // Before #stopping is set it settles only by a failure, which ends the measuring at once.
    await Promise.race([finished, sleep(warmUpMs)]);
    this.#roundTrips = new LatencyHistogram();
    const repliesBefore = this.#replies;
    const startMs = performance.now();
    await Promise.race([finished, sleep(measureMs)]);
    const replies = this.#replies - repliesBefore;
    const measuredMs = performance.now() - startMs;
    this.#stopping = true;
    const late = sleep(DRAIN_TIMEOUT_MS, undefined, { ref: false }).then(() => {
      throw new Error(`replies are missing ${DRAIN_TIMEOUT_MS} ms after the last request`);
    });
    await Promise.race([finished, late]);
    for (const socket of sockets) socket.destroy();
    return { event: 'measured', replies, measuredMs, roundTrips: this.#roundTrips.buckets };
  }

  /** One client; settles when its last reply after the end has come. */
  #run(socket: Socket): Promise<void> {
    const expected = this.#options.pipeline * REPLY.length;
    let received = 0;
    let sentMs = 0;
    const send = (): void => {
      received = 0;
      sentMs = performance.now();
      socket.write(this.#batches[this.#batchesSent++ % BATCHES]!);
    };
    return new Promise((resolve, reject) => {
      socket.on('error', reject);
      socket.on('end', () => reject(new Error('redis closed a connection')));
      socket.on('data', (chunk: Buffer) => {
        const phase = received % REPLY.length;
        const right = chunk.equals(okReplies.subarray(phase, phase + chunk.length));
        if (!right || received + chunk.length > expected) {
          reject(new Error(`redis answered ${JSON.stringify(chunk.toString('latin1', 0, 80))}`));
          return;
        }
        const before = Math.floor(received / REPLY.length);
        received += chunk.length;
        this.#replies += Math.floor(received / REPLY.length) - before;
        if (received < expected) return;
        this.#roundTrips.add(performance.now() - sentMs);
        if (this.#stopping) resolve();
        else send();
      });
      send();
    });
  }
}

const print = (message: RedisClientMessage): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

new Load(JSON.parse(process.argv[2] ?? '{}') as RedisClientOptions)
  .measure()
  .then(print, (error: unknown) => {
    print({ event: 'failed', message: error instanceof Error ? error.message : String(error) });
    process.exit(1);
  });
