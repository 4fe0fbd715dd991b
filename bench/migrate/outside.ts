/**
 * For how long a client gets no answer from the guest, by the client's clock alone: it asks every few
 * milliseconds (echo requests), and what is asked of a guest that stands still is lost.
 */
import type { Lab } from '../../test/lab/lab.js';
import { guestAddress } from '../../test/lab/network.js';
import type { LabProcess } from '../../test/lab/process.js';

const INTERVAL_MS = 5;

/** The longest time between two requests that were answered; undefined of less than two. */
export const longestGapMs = (output: string): number | undefined => {
  const answered = [...output.matchAll(/ seq=(\d+) ttl/g)].map(([, sequence]) => Number(sequence));
  let gap: number | undefined;
  for (const [index, sequence] of answered.entries()) {
    const before = answered[index - 1];
    // 16 bits; and an answer that comes late is no gap.
    if (before !== undefined) gap = Math.max(gap ?? 0, (sequence - before) & 0xffff);
  }
  return gap === undefined ? undefined : gap * INTERVAL_MS;
};

export class OutsideWatch {
  readonly #ping: LabProcess;

  private constructor(ping: LabProcess) {
    this.#ping = ping;
  }

  static async start(lab: Lab): Promise<OutsideWatch> {
    const args = ['ping', '-i', String(INTERVAL_MS / 1_000), guestAddress];
    return new OutsideWatch(await lab.client.spawn('busybox', args));
  }

  async stop(): Promise<number | undefined> {
    await this.#ping.kill('SIGINT');
    return longestGapMs(this.#ping.stdout);
  }
}
