/**
 * The control connection of a migration's first attempt, made while the VM is still being examined: neither
 * waits for the other. Nothing is asked of the backup before the VM has passed.
 */
import { type ControlChannel, connectControl, type HostPort } from '../control/channel.js';
import { CancelledError } from '../errors.js';

export class Dial {
  readonly #abort = new AbortController();
  #channel: Promise<ControlChannel> | undefined;

  constructor(address: HostPort, key: Uint8Array, timeoutMs: number) {
    this.#channel = connectControl(address, key, { timeoutMs, signal: this.#abort.signal });
    this.#channel.catch(() => {}); // whoever takes it hears of it
  }

  /** Whether it was made. */
  get reached(): Promise<boolean> {
    return Promise.resolve(this.#channel).then(
      (channel) => channel !== undefined,
      () => false,
    );
  }

  /**
   * The connection, once; undefined if there is none any more: then another is to be made. Whether its peer is
   * there still shows when it is used.
   * @throws what connectControl() throws; CancelledError
   */
  async take(signal: AbortSignal): Promise<ControlChannel | undefined> {
    const dialled = this.#channel;
    this.#channel = undefined;
    const abort = (): void => this.#abort.abort();
    signal.addEventListener('abort', abort, { once: true });
    try {
      const channel = await dialled;
      if (!signal.aborted) return channel?.isClosed === true ? undefined : channel;
      await channel?.close();
      throw new CancelledError('connecting to the backup was cancelled');
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /** For one that was not taken. */
  async close(): Promise<void> {
    this.#abort.abort();
    const dialled = this.#channel;
    this.#channel = undefined;
    const channel = await dialled?.catch(() => undefined);
    await channel?.close();
  }
}
