/**
 * A backup's answers to whoever looks for a place for a VM (enquiry-messages.ts). Nothing here changes what the
 * backup is there for: one that has a VM already says so, and takes no probe.
 */
import { type EventEmitter, once } from 'node:events';
import type { Socket } from 'node:net';
import type { ControlChannel } from '../control/channel.js';
import type { ControlMessage } from '../control/messages.js';
import { listenForToken, type TokenListener } from '../control/token-stream.js';
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { type HostLoad, hostLoad } from './host-load.js';

/** One that asks is done within a second or two. */
const ENQUIRY_MS_MAX = 20_000;
/** That ask at the same time; more are closed. */
const ENQUIRIES_MAX = 4;
/** Of a probe, from its first bytes on: long enough for TCP to find the link's rate, and for a shaper's burst to be spent. */
export const PROBE_MS = 250;
export const PROBE_BYTES_MAX = 128 << 20;

export interface EnquiryDeskOptions {
  /** Where probes come, and the first of their two ports; 0: any. */
  readonly host: string;
  readonly bulkPort: number;
  readonly ramDir: string;
  /** Why no VM can come now; undefined: one can. */
  readonly occupied: () => string | undefined;
  readonly log: Logger;
}

export class EnquiryDesk {
  readonly #options: EnquiryDeskOptions;
  readonly #open = new Set<ControlChannel>();

  constructor(options: EnquiryDeskOptions) {
    this.#options = options;
  }

  /** The channel's first message was an enquiry; it is this desk's from now on. */
  take(channel: ControlChannel): void {
    if (this.#open.has(channel)) return;
    channel.removeAllListeners('message');
    if (this.#open.size >= ENQUIRIES_MAX) {
      void channel.close();
      return;
    }
    this.#open.add(channel);
    void this.#answer(channel).finally(() => this.#open.delete(channel));
  }

  async close(): Promise<void> {
    await Promise.all([...this.#open].map((channel) => channel.close()));
  }

  async #answer(channel: ControlChannel): Promise<void> {
    const { host, bulkPort, ramDir, occupied, log } = this.#options;
    const closed = once(channel as EventEmitter, 'closed');
    const overdue = setTimeout(() => void channel.close(), ENQUIRY_MS_MAX);
    channel.on('message', (message: ControlMessage) => {
      if (message.type === 'echo') channel.send(message);
    });
    let listener: TokenListener | undefined;
    try {
      const load = await hostLoad(ramDir);
      const why = occupied();
      if (why === undefined) listener = await listenOnEither({ host, bulkPort, token: channel.bulkToken });
      channel.send(offerOf(load, why, listener?.port));
      void listener?.accepted.then(
        async (socket) => {
          channel.send({ type: 'probed', ...(await receiveProbe(socket)) });
        },
        () => {}, // it went without one
      );
      await closed;
    } catch (error) {
      const failure = toHoldfastError(error, 'answering an enquiry');
      log.warn({ code: failure.code, err: failure.message }, 'enquiry');
      channel.send({ type: 'failure', code: failure.code, message: failure.message });
    } finally {
      clearTimeout(overdue);
      listener?.close();
      await channel.close();
    }
  }
}

const offerOf = (
  { freeBytes, cpus, idleCpus }: HostLoad,
  occupied: string | undefined,
  probePort: number | undefined,
): ControlMessage => ({
  type: 'offer',
  freeBytes,
  cpus,
  idleCpus,
  ...(occupied === undefined ? {} : { occupied }),
  ...(probePort === undefined ? {} : { probePort }),
});

/** The two ports are what a firewall lets through; another enquiry may have the first. */
const listenOnEither = async (options: {
  readonly host: string;
  readonly bulkPort: number;
  readonly token: Uint8Array;
}): Promise<TokenListener> => {
  const { host, bulkPort, token } = options;
  if (bulkPort === 0) return await listenForToken({ host, port: 0 }, token);
  return await listenForToken({ host, port: bulkPort }, token).catch(() =>
    listenForToken({ host, port: bulkPort + 1 }, token),
  );
};

/** Counts from the first bytes on, which only start the clock. Ends the connection. */
const receiveProbe = (socket: Socket): Promise<{ bytes: number; ms: number }> =>
  new Promise((resolve) => {
    let startedMs: number | undefined;
    let lastMs = 0;
    let bytes = 0;
    const end = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ bytes, ms: startedMs === undefined ? 0 : lastMs - startedMs });
    };
    // Of one that connects and sends nothing, too.
    const timer = setTimeout(end, PROBE_MS * 4);
    socket.on('data', (chunk: Buffer) => {
      lastMs = performance.now();
      if (startedMs === undefined) {
        startedMs = lastMs;
        return;
      }
      bytes += chunk.length;
      if (lastMs - startedMs >= PROBE_MS || bytes >= PROBE_BYTES_MAX) end();
    });
    socket.once('close', end);
    socket.resume();
  });
