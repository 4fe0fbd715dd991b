/**
 * The floor: epochs without anything of Holdfast's in them.
 *
 *   every 20 ms:  stop ─► xen-save-devices-state ─► cont
 *
 * What a probe keeps beside them, no checkpoint of a running VM on stock QEMU can give back: neither the time in
 * which the guest stands still, nor the requests that `stop` waits for, nor what starts cold after each `cont`.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpClient } from '../../lib/qmp/client.js';
import { saveDeviceStateRequest } from '../../lib/qmp/recipes.js';
import { eventMs } from '../event-time.js';

export interface BareEpoch {
  readonly pauseMs: number;
  readonly intervalMs: number;
  /** Within the pause, so long the guest's clock stood still: QEMU stops it with STOP and starts it with RESUME. */
  readonly clockStoppedMs: number;
}

/**
 * Of the time that really passed, the share that the guest's clock shows. What a guest measures with it is this much
 * too fast; one that Holdfast protects has its clock set right after each pause.
 */
export const clockShare = (epochs: readonly BareEpoch[]): number => {
  const sum = (of: (epoch: BareEpoch) => number): number =>
    epochs.reduce((total, epoch) => total + of(epoch), 0);
  return 1 - sum(({ clockStoppedMs }) => clockStoppedMs) / sum(({ intervalMs }) => intervalMs);
};

export class BareEpochs {
  readonly #qmp: QmpClient;
  readonly #statePath: string;
  readonly #intervalMs: number;
  readonly #epochs: BareEpoch[] = [];
  #ending = false;
  #running: Promise<void> = Promise.resolve();

  private constructor(qmp: QmpClient, statePath: string, intervalMs: number) {
    this.#qmp = qmp;
    this.#statePath = statePath;
    this.#intervalMs = intervalMs;
  }

  /** @param statePath where the device state is written, on a tmpfs */
  static async start(qmpPath: string, statePath: string, intervalMs: number): Promise<BareEpochs> {
    const epochs = new BareEpochs(await QmpClient.connect(qmpPath), statePath, intervalMs);
    epochs.#running = epochs.#run();
    epochs.#running.catch(() => {}); // end() tells
    return epochs;
  }

  /** Those that have ended, oldest first. */
  get epochs(): readonly BareEpoch[] {
    return this.#epochs;
  }

  /**
   * QEMU flushes the disks at each `stop`. While a VM is protected its disk server answers these flushes at once
   * and pays them beside the guest (docs/disk.md, "Flushes"); an unprotected server knows of no `stop`, and the
   * floor would wait for the disk 50 times a second. So QEMU keeps these to itself, together with the guest's own.
   */
  async flushes(isOn: boolean): Promise<void> {
    for (const { device } of await this.#qmp.execute('query-block')) {
      const line = `qemu-io ${device} "reopen -c ${isOn ? 'writeback' : 'unsafe'}"`;
      const answer = await this.#qmp.execute('human-monitor-command', { 'command-line': line });
      if (answer !== '') throw new Error(`QEMU does not change how ${device} is flushed: ${answer}`);
    }
  }

  /** Settles when the VM runs, for good. @throws what broke the loop off */
  async end(): Promise<void> {
    this.#ending = true;
    try {
      await this.#running;
    } finally {
      await this.#qmp[Symbol.asyncDispose]();
    }
  }

  async #run(): Promise<void> {
    let beganMs = performance.now();
    let [stoppedAtMs, resumedAtMs] = [0, 0];
    this.#qmp.on('STOP', (event) => {
      stoppedAtMs = eventMs(event);
    });
    this.#qmp.on('RESUME', (event) => {
      resumedAtMs = eventMs(event);
    });
    while (!this.#ending) {
      const dueMs = beganMs + this.#intervalMs;
      // The timer's grain is a millisecond.
      await sleep(Math.max(0, Math.round(dueMs - performance.now())));
      const startMs = performance.now();
      await Promise.all(this.#qmp.pipeline([{ execute: 'stop' }, saveDeviceStateRequest(this.#statePath)]));
      await this.#qmp.execute('cont');
      this.#epochs.push({
        pauseMs: performance.now() - startMs,
        intervalMs: startMs - beganMs,
        clockStoppedMs: resumedAtMs - stoppedAtMs,
      });
      beganMs = startMs;
    }
  }
}
