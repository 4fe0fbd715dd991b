/**
 * An ordinary migration, without shared RAM, into a file.
 *
 *   VM may run     prepare: the file is there, QEMU has it, capabilities are set
 *   VM stopped     run: the devices, and what of QEMU's memory is not shared (ROMs)
 *   VM may run     dispose: capabilities as they were, the file is complete
 *
 * In three parts, for what is done before the stop and after `cont` is no time of the guest's.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpError } from '../errors.js';
import type { QmpClient } from './client.js';
import type { QmpEvent } from './commands.js';
import {
  enableMigrationCapabilities,
  expectEvent,
  type MigrationCapabilities,
  migrationEnded,
  migrationError,
  type RecipeOptions,
  restoreMigrationCapabilities,
} from './recipes.js';

const MIGRATE_TIMEOUT_MS = 30_000;
/** The wait is for one short critical section of another thread: asked again at once, but not for ever. */
const FINALIZED_ASKED_AT_ONCE_MAX = 20;
const FINALIZED_POLL_MS = 1;

export interface MigrateToFileOptions extends RecipeOptions {
  /** True if the caller has enabled them, and will restore them: saves two commands. */
  readonly capabilitiesEnabled?: boolean;
}

let descriptorsNamed = 0;

export class FileMigration implements AsyncDisposable {
  readonly #qmp: QmpClient;
  readonly #file: FileHandle;
  readonly #name: string;
  readonly #limits: RecipeOptions & { readonly timeoutMs: number };
  #before: MigrationCapabilities = [];
  /** QEMU has the descriptor under its name; a migration takes it. */
  #isPassed = false;
  #disposed: Promise<void> | undefined;

  private constructor(qmp: QmpClient, file: FileHandle, options: RecipeOptions) {
    this.#qmp = qmp;
    this.#file = file;
    this.#name = `holdfast-${++descriptorsNamed}`;
    this.#limits = { timeoutMs: options.timeoutMs ?? MIGRATE_TIMEOUT_MS, signal: options.signal };
  }

  /** The VM may run. @throws QmpError when QEMU refuses, as while a migration is under way */
  static async prepare(
    qmp: QmpClient,
    path: string,
    options: MigrateToFileOptions = {},
  ): Promise<FileMigration> {
    const file = await open(path, 'w', 0o600);
    const migration = new FileMigration(qmp, file, options);
    try {
      await migration.#prepare(options.capabilitiesEnabled === true);
    } catch (error) {
      await migration[Symbol.asyncDispose]();
      throw error;
    }
    return migration;
  }

  async #prepare(capabilitiesEnabled: boolean): Promise<void> {
    if (!capabilitiesEnabled) this.#before = await enableMigrationCapabilities(this.#qmp, this.#limits);
    await this.#qmp.passDescriptor(this.#name, this.#file.fd, this.#limits);
    this.#isPassed = true;
  }

  /**
   * The VM is stopped; it is then in `postmigrate`, and `cont` resumes it. Once.
   * @throws QmpError when QEMU refuses or the migration fails.
   */
  async run(): Promise<void> {
    // Listen before asking: a small migration is over within the command's round trip.
    const ended = expectEvent(this.#qmp, 'MIGRATION', { ...this.#limits, where: migrationEnded });
    try {
      await this.#qmp.execute('migrate', { uri: `fd:${this.#name}` }, this.#limits);
      this.#isPassed = false;
      const event = await this.#orCancelled(ended.event);
      if (event.data.status !== 'completed') {
        throw new QmpError(`QEMU's migration to a file ended as ${event.data.status}`, {
          details: { command: 'migrate', desc: await migrationError(this.#qmp) },
        });
      }
      await this.#finalized();
    } finally {
      ended.giveUp();
    }
  }

  /** The VM may run. Of the stream, in bytes. */
  async size(): Promise<number> {
    return (await this.#file.stat()).size;
  }

  /** The VM may run. Idempotent. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  async #dispose(): Promise<void> {
    await this.#file.close();
    if (!this.#qmp.open) return;
    if (this.#isPassed) await this.#qmp.execute('closefd', { fdname: this.#name }).catch(() => {});
    if (this.#before.length === 0) return;
    // What was captured is good also if QEMU should refuse this.
    await restoreMigrationCapabilities(this.#qmp, this.#before, this.#limits).catch(() => {});
  }

  async #orCancelled(ended: Promise<QmpEvent>): Promise<QmpEvent> {
    try {
      return await ended;
    } catch (error) {
      if (this.#qmp.open) await this.#qmp.execute('migrate_cancel').catch(() => {});
      throw error;
    }
  }

  /**
   * QEMU's migration thread says `completed` a moment before it moves the VM from finish-migrate to postmigrate
   * (migration_completion, migration_iteration_finish), and in between `cont` is refused.
   */
  async #finalized(): Promise<void> {
    const deadlineMs = performance.now() + this.#limits.timeoutMs;
    for (let asked = 1; ; asked += 1) {
      const { status } = await this.#qmp.execute('query-status', undefined, this.#limits);
      if (status !== 'finish-migrate') return;
      if (performance.now() > deadlineMs) {
        throw new QmpError("QEMU completed a migration to a file, but doesn't finalize it", {
          details: { command: 'migrate' },
        });
      }
      if (asked >= FINALIZED_ASKED_AT_ONCE_MAX) await delay(FINALIZED_POLL_MS);
    }
  }
}

/**
 * All three parts at once: the VM must be stopped. Repeatable.
 *
 * @returns the length of the stream, in bytes.
 * @throws QmpError when QEMU refuses or the migration fails.
 */
export const migrateToFile = async (
  qmp: QmpClient,
  path: string,
  options: MigrateToFileOptions = {},
): Promise<number> => {
  await using migration = await FileMigration.prepare(qmp, path, options);
  await migration.run();
  return await migration.size();
};
