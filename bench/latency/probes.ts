/**
 * What a client notices of protection, three ways; each is measured from the
 * client's namespace, through the LAN, on the guest that is there.
 *
 *   ping      echo requests, answered by the guest's kernel: the delay of a single reply
 *   redis-1   one client, one request after the other: a chain of replies that wait
 *   redis-50  50 clients with 16 requests under way each: throughput, as redis-benchmark -P 16
 */
import { join } from 'node:path';
import { repositoryRoot } from '../../test/lab/guest.js';
import { JsonProcess } from '../../test/lab/json-process.js';
import type { Lab } from '../../test/lab/lab.js';
import { LatencyHistogram } from '../../test/lab/latency-histogram.js';
import { guestAddress } from '../../test/lab/network.js';
import { measurePing } from './ping.js';
import type { RedisClientMessage, RedisClientOptions } from './redis-client.js';
import type { Sample } from './sample.js';

export interface ProbeSize {
  readonly pings: number;
  readonly redisWarmUpMs: number;
  readonly redisMs: number;
}

export interface Probe {
  readonly name: 'ping' | 'redis-1' | 'redis-50';
  readonly params: Readonly<Record<string, string | number>>;
  measure(lab: Lab, size: ProbeSize): Promise<Sample>;
}

const REDIS_PORT = 6379;
const REDIS_KEYS = 10_000;
/** For connecting, the last replies, and Node's own start. */
const REDIS_SLACK_MS = 30_000;

const measureRedis = async (
  lab: Lab,
  load: Pick<RedisClientOptions, 'clients' | 'pipeline'>,
  { redisWarmUpMs, redisMs }: ProbeSize,
): Promise<Sample> => {
  const options: RedisClientOptions = {
    ...load,
    host: guestAddress,
    port: REDIS_PORT,
    keys: REDIS_KEYS,
    warmUpMs: redisWarmUpMs,
    measureMs: redisMs,
  };
  const script = join(repositoryRoot(), 'dist/bench/latency/redis-client.js');
  const client = new JsonProcess(await lab.client.spawn(process.execPath, [script, JSON.stringify(options)]));
  await client.ended(redisWarmUpMs + redisMs + REDIS_SLACK_MS);
  const said = client.messages.at(-1) as unknown as RedisClientMessage | undefined;
  if (said?.event !== 'measured') {
    throw new Error(`the redis clients: ${said?.message ?? client.process.stderr.slice(-400)}`);
  }
  const roundTrips = new LatencyHistogram();
  roundTrips.merge(said.roundTrips);
  return { roundTrips, lost: 0, repliesPerS: (said.replies * 1000) / said.measuredMs };
};

const redis = (clients: number, pipeline: number): Probe => ({
  name: clients === 1 ? 'redis-1' : 'redis-50',
  params: { clients, requestsUnderWay: clients * pipeline },
  measure: (lab, size) => measureRedis(lab, { clients, pipeline }, size),
});

export const probes: readonly Probe[] = [
  { name: 'ping', params: {}, measure: (lab, { pings }) => measurePing(lab, pings) },
  redis(1, 1),
  redis(50, 16),
];
