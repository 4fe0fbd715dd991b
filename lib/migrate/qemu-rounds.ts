/**
 * Cuts QEMU's migration counters into rounds. QEMU begins a round with each synchronisation of its dirty bitmap,
 * counts these (`dirty-sync-count`), and says MIGRATION_PASS after each (ram.c, migration_bitmap_sync). Pure.
 *
 *   query-migrate   1 … 1 … 1 … 2 … 2 … 3        two synchronisations between two looks are one round
 *   rounds          └─── first ─┴─ second ┴ …
 */
import type { CommandAnswer } from '../qmp/commands.js';
import type { MigrationRound } from './policy.js';

export type QemuMigrationView = CommandAnswer<'query-migrate'>;
export type QemuRamCounters = NonNullable<QemuMigrationView['ram']>;

type Boundary = Pick<QemuRamCounters, 'transferred' | 'duplicate' | 'normal' | 'dirty-sync-count'> & {
  readonly atMs: number;
};

export class QemuRounds {
  #begin: Boundary;

  /** `atMs`: when the migration began. The first synchronisation is the begin of the first round. */
  constructor(atMs: number) {
    this.#begin = { atMs, transferred: 0, duplicate: 0, normal: 0, 'dirty-sync-count': 1 };
  }

  /** @returns the round that has ended since the last look, if one has. */
  observe(ram: QemuRamCounters, atMs: number): MigrationRound | undefined {
    const begin = this.#begin;
    if (ram['dirty-sync-count'] <= begin['dirty-sync-count']) return undefined;
    this.#begin = { ...ram, atMs };
    return {
      pages: ram.normal - begin.normal,
      zeroPages: ram.duplicate - begin.duplicate,
      bytes: ram.transferred - begin.transferred,
      roundMs: atMs - begin.atMs,
      dirtyPages: Math.round(ram.remaining / ram['page-size']),
    };
  }
}
