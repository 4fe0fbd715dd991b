/** A numbered stream of datagrams from the guest to the client, and what of it has arrived. */

import { join } from 'node:path';
import { repositoryRoot } from '../../lab/guest.js';
import { guestOutput } from '../../lab/guest-shell.js';
import { type JsonMessage, JsonProcess } from '../../lab/json-process.js';
import type { Lab } from '../../lab/lab.js';
import { lanAddresses } from '../../lab/network.js';

const PORT = 9514;

/** Slow enough for what was held for a second to fit into a socket's buffer when it comes at once. */
const INTERVAL_US = 10_000;

export class GuestOutput {
  readonly #lab: Lab;
  readonly #sink: JsonProcess;
  #markers = 0;

  private constructor(lab: Lab, sink: JsonProcess) {
    this.#lab = lab;
    this.#sink = sink;
  }

  /** Starts the sink in the client's namespace and the stream in the guest; settles when the first ones are here. */
  static async start(lab: Lab): Promise<GuestOutput> {
    const program = join(repositoryRoot(), 'dist/test/e2e/support/lab-datagrams.js');
    const sink = new JsonProcess(
      await lab.client.spawn(process.execPath, [program, lanAddresses.c, String(PORT)]),
    );
    await sink.message('listening');
    // One shell counts, one logger hands each line to syslogd, and that sends it as a datagram of its own.
    await guestOutput(
      lab.client,
      `syslogd -R ${lanAddresses.c}:${PORT}
      (n=0; while :; do n=$((n+1)); echo $n; usleep ${INTERVAL_US}; done | logger) > /dev/null 2>&1 &`,
    );
    await sink.message('datagram', { count: 20 });
    return new GuestOutput(lab, sink);
  }

  /** Numbers that have arrived, in the order of arrival. */
  get numbers(): number[] {
    return this.#sink.of('datagram').map(({ number }) => number as number);
  }

  /** Everything that has left host `from` until now has arrived when this settles; returns how many that are. */
  async settled(from: 'a' | 'b'): Promise<number> {
    this.#markers += 1;
    const name = `m${this.#markers}`;
    const send = `printf 'marker ${name}' > /dev/udp/${lanAddresses.c}/${PORT}`;
    await this.#lab.host(from).exec('bash', ['-c', send]);
    const isMarker = (message: JsonMessage): boolean => message.name === name;
    await this.#sink.until(`marker ${name}`, () => this.#sink.of('marker').some(isMarker));
    const { messages } = this.#sink;
    return messages.slice(0, messages.findIndex(isMarker)).filter(({ event }) => event === 'datagram').length;
  }

  /** Settles when `count` more have arrived than now. */
  async advance(count: number): Promise<void> {
    await this.#sink.message('datagram', { count: this.numbers.length + count });
  }
}
