/** The two engines of `holdfast migrate`, and which settings mean nothing to QEMU's. */
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import type { AnyMigration, MigrationOptions } from '../migrate/migration.js';
import { type MigrateCommandSettings, migrateCommandSettings, migrateFlags } from './migrate-settings.js';

export type StartMigration = (options: MigrationOptions) => Promise<AnyMigration>;

/** Loads the engine; it needs the native addon. */
export const startEngine = async (engine: MigrateCommandSettings['engine']): Promise<StartMigration> => {
  switch (engine) {
    case 'holdfast': {
      const { Migration } = await import('../migrate/migration.js');
      return (options) => Migration.start(options);
    }
    case 'qemu': {
      const { QemuEngineMigration } = await import('../migrate/qemu-migration.js');
      return (options) => QemuEngineMigration.start(options);
    }
  }
};

/** Settings of how Holdfast itself sends memory and disks. */
const OF_HOLDFASTS_ENGINE = [
  'sender',
  'streams',
  'verify',
  'deviceState',
  'guestClock',
  'ackTimeoutMs',
  'moveDisks',
  'diskDir',
  'ringMiB',
  'resumeEarly',
  'fallback',
  'skipDiskPages',
] as const;

/**
 * Pure.
 * @throws ConfigError if something is asked for that the engine does not do
 */
export const checkEngine = (settings: MigrateCommandSettings): void => {
  if (settings.engine !== 'qemu') return;
  const asked: Readonly<Record<string, unknown>> = settings;
  const foreign = OF_HOLDFASTS_ENGINE.filter(
    (key) => asked[key] !== undefined && asked[key] !== defaultOf(key),
  );
  if (foreign.length === 0) return;
  const flags: Readonly<Record<string, { readonly flag: string }>> = migrateFlags;
  const names = foreign.map((key) => flags[key]?.flag.split(' ')[0] ?? key);
  throw new ConfigError(
    `--engine qemu: QEMU sends the memory by itself, and knows nothing of ${names.join(', ')}`,
    {
      cure: `Leave ${names.length === 1 ? 'it' : 'them'} out, or use Holdfast's own engine.`,
    },
  );
};

const defaultOf = (key: string): unknown => {
  const field = (migrateCommandSettings.shape as Readonly<Record<string, unknown>>)[key];
  return field instanceof z.ZodDefault ? field.def.defaultValue : undefined;
};
