/**
 * Asks hosts what they have for a VM, and measures the way to them (enquiry-messages.ts).
 *
 *   all at once    connect, offer, echoes there and back
 *   one by one     a probe: bytes over a connection like a migration's, for a quarter of a second. Two at once
 *                  would share this host's link, and each would seem as slow as the other
 */
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { type ControlChannel, connectControl, type HostPort } from '../control/channel.js';
import type { ControlMessage } from '../control/messages.js';
import { connectWithToken } from '../control/token-stream.js';
import { type HoldfastError, LimitError, PeerLostError, ProtocolError, toHoldfastError } from '../errors.js';
import type { TargetCandidate, TargetOffer } from './choose-target.js';
import { timeText } from './words.js';

/** For everything but the probe: who takes longer is no good destination now. */
export const ANSWER_MS_MAX = 3_000;
/** For the probe, with its connection. */
export const PROBE_MS_MAX = 3_000;
const ECHOES = 5;
/** One is written at a time: larger than what a fast link takes between two turns of the event loop. */
const CHUNK_BYTES = 1 << 20;

type Offer = Extract<ControlMessage, { type: 'offer' }>;

export interface AskedTarget {
  readonly candidate: TargetCandidate;
  /** Why nothing is known of it. */
  readonly failure?: HoldfastError;
}

export interface Asking {
  /** As the operator named it. */
  readonly name: string;
  readonly address: HostPort;
}

/** Never rejects for a host's sake; in the order asked. @throws CancelledError */
export const askTargets = async (
  targets: readonly Asking[],
  key: Uint8Array,
  options: { readonly answerMsMax?: number; readonly signal?: AbortSignal | undefined } = {},
): Promise<readonly AskedTarget[]> => {
  const { answerMsMax = ANSWER_MS_MAX, signal } = options;
  const enquiries = await Promise.all(
    targets.map(({ name, address }) =>
      open(address, key, answerMsMax, signal).catch((error) => silent(name, error)),
    ),
  );
  const asked: AskedTarget[] = [];
  try {
    for (const [index, enquiry] of enquiries.entries()) {
      const { name } = targets[index]!;
      asked.push(enquiry instanceof Enquiry ? await enquiry.measure(name) : enquiry);
      signal?.throwIfAborted();
    }
  } finally {
    await Promise.all(enquiries.map((each) => (each instanceof Enquiry ? each.close() : undefined)));
  }
  return asked;
};

const silent = (name: string, error: unknown): AskedTarget => {
  const failure = toHoldfastError(error);
  return { candidate: { name, silence: failure.message }, failure };
};

const open = async (
  address: HostPort,
  key: Uint8Array,
  answerMsMax: number,
  signal: AbortSignal | undefined,
): Promise<Enquiry> => {
  const startMs = performance.now();
  const channel = await connectControl(address, key, {
    timeoutMs: answerMsMax,
    ...(signal === undefined ? {} : { signal }),
  });
  const leftMs = Math.max(1, answerMsMax - (performance.now() - startMs));
  try {
    return await within(leftMs, 'it does not answer', Enquiry.open(channel, address.host));
  } catch (error) {
    await channel.close();
    throw error;
  }
};

class Enquiry {
  readonly #channel: ControlChannel;
  readonly #host: string;
  readonly #offer: Offer;
  readonly #roundTripMs: number;

  private constructor(channel: ControlChannel, host: string, offer: Offer, roundTripMs: number) {
    this.#channel = channel;
    this.#host = host;
    this.#offer = offer;
    this.#roundTripMs = roundTripMs;
  }

  static async open(channel: ControlChannel, host: string): Promise<Enquiry> {
    channel.start();
    channel.send({ type: 'enquiry' });
    const offer = await answer(channel, 'offer');
    if (offer.occupied !== undefined) throw new LimitError(offer.occupied);
    return new Enquiry(channel, host, offer, await roundTripMs(channel));
  }

  async measure(name: string): Promise<AskedTarget> {
    const { freeBytes, idleCpus } = this.#offer;
    try {
      const linkRate = await within(PROBE_MS_MAX, 'the probe did not get through', this.#probe());
      const offer: TargetOffer = { name, freeBytes, idleCpus, roundTripMs: this.#roundTripMs, linkRate };
      return { candidate: offer };
    } catch (error) {
      return silent(name, error);
    }
  }

  async close(): Promise<void> {
    await this.#channel.close();
  }

  /** Bytes per millisecond, as they arrive there. */
  async #probe(): Promise<number> {
    const { probePort } = this.#offer;
    if (probePort === undefined) throw new ProtocolError('it offers no port for a probe');
    const address = { host: this.#host, port: probePort };
    const socket = await connectWithToken(address, this.#channel.bulkToken, { timeoutMs: PROBE_MS_MAX });
    try {
      const probed = answer(this.#channel, 'probed');
      // The other side has the clock: it ends the connection when it has seen enough.
      await Promise.all([probed, sendUntilClosed(socket)]);
      const { bytes, ms } = await probed;
      return ms > 0 ? bytes / ms : 0;
    } finally {
      socket.destroy();
    }
  }
}

/** Of several, the shortest: what is beyond it is somebody's queue. */
const roundTripMs = async (channel: ControlChannel): Promise<number> => {
  let shortestMs = Number.POSITIVE_INFINITY;
  for (let sequence = 0; sequence < ECHOES; sequence += 1) {
    const startMs = performance.now();
    channel.send({ type: 'echo', sequence });
    await answer(channel, 'echo');
    shortestMs = Math.min(shortestMs, performance.now() - startMs);
  }
  return shortestMs;
};

/** The next chunk in a turn of its own: a fast link takes each at once, and nobody would see the end. */
const sendUntilClosed = (socket: Socket): Promise<void> =>
  new Promise((resolve) => {
    const chunk = Buffer.alloc(CHUNK_BYTES, 0xa5);
    const send = (): void => {
      if (!socket.destroyed) socket.write(chunk, (error) => void (error || setImmediate(send)));
    };
    socket.once('close', () => resolve());
    socket.resume(); // so that its end is seen
    if (socket.destroyed) resolve();
    send();
  });

/** The next message of a type. @throws the error that the other side reports, or that ended the connection */
const answer = <T extends ControlMessage['type']>(
  channel: ControlChannel,
  type: T,
): Promise<Extract<ControlMessage, { type: T }>> =>
  new Promise((resolve, reject) => {
    const settle = (): void => {
      channel.off('message', onMessage);
      channel.off('closed', onClosed);
    };
    const onMessage = (message: ControlMessage): void => {
      if (message.type === type) {
        settle();
        resolve(message as Extract<ControlMessage, { type: T }>);
      } else if (message.type === 'failure' || message.type === 'session-refused') {
        settle();
        reject(Object.assign(new Error(message.message), { code: message.code }));
      }
    };
    const onClosed = (error: Error): void => {
      settle();
      reject(error);
    };
    channel.on('message', onMessage);
    channel.on('closed', onClosed);
  });

const within = async <T>(ms: number, what: string, work: Promise<T>): Promise<T> => {
  const over = new AbortController();
  work.catch(() => {}); // it may fail after the time is up
  const late = delay(ms, undefined, { signal: over.signal }).then(() => {
    throw new PeerLostError(`${what} within ${timeText(ms)}`);
  });
  late.catch(() => {}); // aborted
  try {
    return await Promise.race([work, late]);
  } finally {
    over.abort();
  }
};
