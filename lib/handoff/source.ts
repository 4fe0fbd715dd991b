/**
 * P, the QEMU that has the VM: stopped, its device state given away, ended; or running on as if nothing had been.
 *
 *   stop ─► migrate (device state alone: RAM is the file that both have mapped) ─► completed ─► killed
 *     └──────────┴── anything fails: migrate_cancel, cont
 *
 * A VM that somebody else has stopped meanwhile is left so: only our own stop is undone.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { QmpConnectionError, QmpError, StandbyError, TimeoutError, toHoldfastError } from '../errors.js';
import { prepareSource, type QemuMigrationSettings, restoreSource } from '../migrate/qemu-settings.js';
import type { QmpClient } from '../qmp/client.js';
import type { CommandAnswer, QmpEvent } from '../qmp/commands.js';
import { hasMigrationEnded } from '../qmp/recipes.js';

/** The state of the devices is some hundred kilobytes, over a socket of this host. */
const MIGRATE_TIMEOUT_MS = 15_000;
const CANCEL_MS_MAX = 10_000;
const POLL_MS = 1;
/** As good as none: QEMU's limits are meant for networks. */
const UNLIMITED = { 'max-bandwidth': 2 ** 40, 'downtime-limit': 2_000_000 } as const;

type MigrationView = CommandAnswer<'query-migrate'>;

export class HandoffSource {
  readonly qmp: QmpClient;
  readonly wasRunning: boolean;
  #before: QemuMigrationSettings | undefined;
  /** What was not, is an operator's: a migration under way, a VM that is paused. */
  #touched = false;

  constructor(qmp: QmpClient, wasRunning: boolean) {
    this.qmp = qmp;
    this.wasRunning = wasRunning;
  }

  async prepare(): Promise<void> {
    this.#before = await prepareSource(this.qmp, UNLIMITED, { ignoreShared: true });
  }

  /** @throws QmpError, also if it doesn't run any more */
  async stop(): Promise<void> {
    this.#touched = true;
    if (!this.wasRunning) return;
    // In one go, so that the answer is about right before our stop.
    const [asked, stopped] = this.qmp.pipeline([{ execute: 'query-status' }, { execute: 'stop' }]);
    const { running, status } = await asked;
    if (running) return void (await stopped);
    this.#touched = false;
    await stopped;
    // From 9.0 on QEMU stops a guest that sleeps, too; before, it minds neither command.
    if (status === 'suspended') await this.qmp.execute('cont');
    throw wasStopped(status);
  }

  /** A short stop of its own; the VM runs again when it settles. What it throws leaves that to goOn(). */
  async pauseFor(work: () => Promise<unknown>): Promise<void> {
    await this.stop();
    await work();
    await this.qmp.execute('cont');
    this.#touched = false;
  }

  /**
   * Settles when the other side has loaded everything (capability return-path).
   *
   * @param targetLost settles when the other side has ended
   * @throws QmpError, StandbyError the state did not arrive; QmpConnectionError this QEMU was lost.
   */
  async giveStateTo(uri: string, targetLost: Promise<unknown>): Promise<void> {
    const waiting = new AbortController();
    const ended = this.qmp.once('MIGRATION', {
      timeoutMs: MIGRATE_TIMEOUT_MS,
      signal: waiting.signal,
      where: (event) => hasMigrationEnded(event.data.status),
    });
    const lost = targetLost.then((): QmpEvent => {
      throw new StandbyError('the new QEMU ended while it loaded the state of the VM');
    });
    for (const promise of [ended, lost]) promise.catch(() => {}); // one of them is not awaited
    try {
      await this.qmp.execute('migrate', { uri });
      const { data } = await Promise.race([ended, lost]);
      if (data.status !== 'completed') throw await this.#failed(String(data.status));
    } finally {
      waiting.abort();
    }
  }

  /** The VM goes on here, as it was. Only when the other side has certainly ended. @throws TimeoutError, QmpError */
  async goOn(): Promise<void> {
    if (this.#touched) {
      const status = await this.#endMigration();
      // QEMU doesn't resume by itself a VM that was stopped before.
      if (this.wasRunning && status !== 'running') await this.#resume(status);
      this.#touched = false;
    }
    if (this.#before !== undefined) await restoreSource(this.qmp, this.#before);
    this.#before = undefined;
  }

  /** Undefined where it can't be asked any more. */
  async status(): Promise<string | undefined> {
    return (await this.qmp.execute('query-status').catch(() => undefined))?.status;
  }

  async #resume(status: string): Promise<void> {
    try {
      await this.qmp.execute('cont');
    } catch (error) {
      throw new QmpError(
        `the VM is still in the QEMU that had it, and stands still (${status}): ${toHoldfastError(error).message}`,
        { cause: error, cure: '`cont` there resumes it.', details: { command: 'cont', status } },
      );
    }
  }

  /** @returns the run state, once QEMU has made up its mind */
  async #endMigration(): Promise<string> {
    const deadlineMs = performance.now() + CANCEL_MS_MAX;
    const view = await this.qmp.execute('query-migrate');
    if (isUnderWay(view)) await this.qmp.execute('migrate_cancel');
    for (;;) {
      const [now, { status }] = [
        await this.qmp.execute('query-migrate'),
        await this.qmp.execute('query-status'),
      ];
      if (!isUnderWay(now) && status !== 'finish-migrate') return status;
      if (performance.now() > deadlineMs) {
        throw new TimeoutError(
          `QEMU did not end its migration within ${CANCEL_MS_MAX} ms of migrate_cancel`,
          {
            cure: 'The VM is still in the QEMU that had it: `cont` there resumes it.',
          },
        );
      }
      await delay(POLL_MS);
    }
  }

  async #failed(status: string): Promise<QmpError> {
    const view = await this.qmp.execute('query-migrate');
    const desc = view['error-desc'] ?? 'QEMU gave no reason; the log of the new one may';
    return new QmpError(`giving the state of the VM to the new QEMU ${status}: ${desc}`, {
      cure: 'Both need the same machine, devices and RAM.',
      details: { command: 'migrate', status, desc },
    });
  }
}

const wasStopped = (status: string): QmpError =>
  new QmpError(
    `the VM does not run any more (${status}), by somebody else's doing or its own; it was left so`,
    {
      cure: 'Try again when it runs.',
      details: { command: 'stop', status },
    },
  );

/** Whether this QEMU's monitor, rather than anything it said, is what failed. */
export const isLost = (error: unknown, qmp: QmpClient): boolean =>
  error instanceof QmpConnectionError && !qmp.open;

const isUnderWay = ({ status }: MigrationView): boolean =>
  status !== undefined && status !== 'none' && !hasMigrationEnded(status);
