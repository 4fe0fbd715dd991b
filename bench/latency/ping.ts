/** Echo requests from the client to the guest, one after the other, by busybox's ping. */
import type { Lab } from '../../test/lab/lab.js';
import { LatencyHistogram } from '../../test/lab/latency-histogram.js';
import { guestAddress } from '../../test/lab/network.js';
import type { Sample } from './sample.js';

/**
 * Prime, so that the requests meet every moment of an epoch of 10 or 25 ms
 * equally often; at 50 ms they would keep meeting the same one.
 */
const INTERVAL_MS = 43;
/** For a reply that is late; more is a lost one. */
const LAST_REPLY_MS = 5_000;
/** No request of a machine that is busy beyond measure takes longer on average. */
const REQUEST_MS_MAX = 1_000;

export interface Pings {
  readonly roundTripMs: readonly number[];
  /** Requests that were not answered. */
  readonly lost: number;
}

/** What busybox's ping printed. Throws on anything but its summary at the end, and on a summary it contradicts. */
export const parsePing = (output: string): Pings => {
  const roundTripMs = [...output.matchAll(/^\d+ bytes from .* seq=\d+ ttl=\d+ time=([\d.]+) ms$/gm)].map(
    ([, ms]) => Number(ms),
  );
  const summary = /^(\d+) packets transmitted, (\d+) packets received/m.exec(output);
  if (summary === null || Number(summary[2]) !== roundTripMs.length) {
    throw new Error(`ping said something else than expected: ${output.slice(-400)}`);
  }
  return { roundTripMs, lost: Number(summary[1]) - roundTripMs.length };
};

export const measurePing = async (lab: Lab, count: number): Promise<Sample> => {
  const { stdout } = await lab.client.exec(
    'busybox',
    [
      ...['ping', '-i', String(INTERVAL_MS / 1000), '-c', String(count)],
      ...['-W', String(LAST_REPLY_MS / 1000), guestAddress],
    ],
    { timeoutMs: count * REQUEST_MS_MAX + LAST_REPLY_MS },
  );
  const { roundTripMs, lost } = parsePing(stdout);
  const roundTrips = new LatencyHistogram();
  for (const ms of roundTripMs) roundTrips.add(ms);
  return { roundTrips, lost };
};
