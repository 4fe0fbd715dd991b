/**
 * QEMU's migration capabilities and parameters: set for one migration, and as they were afterwards. Only what a
 * QEMU knows is set; the list differs between 7.2 and 10.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { TimeoutError } from '../errors.js';
import type { QmpClient } from '../qmp/client.js';
import type { MigrationCapabilities, RecipeOptions } from '../qmp/recipes.js';

/** What would change the stream, who decides, or how it ends, whatever an operator's last migration left on. */
const PLAIN = {
  'x-ignore-shared': false,
  multifd: false,
  'zero-copy-send': false,
  compress: false,
  'postcopy-ram': false,
  'pause-before-switchover': false,
  'background-snapshot': false,
  'x-colo': false,
} as const;

/** With `return-path` the source counts as completed only once the destination has loaded everything. */
const SOURCE = { ...PLAIN, events: true, 'return-path': true } as const;

/** With `late-block-activate` the disks stay the source's until the VM runs on the destination. */
const TARGET = { ...PLAIN, events: true, 'return-path': true, 'late-block-activate': true } as const;

export interface QemuMigrationSettings {
  readonly capabilities: MigrationCapabilities;
  readonly parameters: { readonly 'max-bandwidth': number; readonly 'downtime-limit': number };
}

const setCapabilities = async (
  qmp: QmpClient,
  wanted: Readonly<Record<string, boolean>>,
  options: RecipeOptions,
): Promise<MigrationCapabilities> => {
  const before = await qmp.execute('query-migrate-capabilities', undefined, options);
  const touched = before.filter(({ capability }) => capability in wanted);
  const capabilities = touched.map(({ capability }) => ({ capability, state: wanted[capability]! }));
  await qmp.execute('migrate-set-capabilities', { capabilities }, options);
  return touched;
};

/** @returns how it stood before, for restoreSource(). */
export const prepareSource = async (
  qmp: QmpClient,
  parameters: QemuMigrationSettings['parameters'],
  options: RecipeOptions = {},
): Promise<QemuMigrationSettings> => {
  const before = await qmp.execute('query-migrate-parameters', undefined, options);
  // Refused while another migration is under way, which so is left alone.
  const capabilities = await setCapabilities(qmp, SOURCE, options);
  const settings = { capabilities, parameters: before };
  try {
    await qmp.execute('migrate-set-parameters', parameters, options);
  } catch (error) {
    if (qmp.open) await restoreSource(qmp, settings, options);
    throw error;
  }
  return settings;
};

/** Undoes prepareSource(). No migration may be under way. */
export const restoreSource = async (
  qmp: QmpClient,
  before: QemuMigrationSettings,
  options: RecipeOptions = {},
): Promise<void> => {
  await qmp.execute('migrate-set-parameters', before.parameters, options);
  await qmp.execute('migrate-set-capabilities', { capabilities: before.capabilities }, options);
};

/** @returns how they stood before, for restoreMigrationCapabilities(). */
export const prepareTarget = (qmp: QmpClient, options: RecipeOptions = {}): Promise<MigrationCapabilities> =>
  setCapabilities(qmp, TARGET, options);

/** migrate_cancel shuts the connection down; QEMU's threads need some moments. */
const LEFT_ENDS_MS_MAX = 10_000;
const LEFT_POLL_MS = 10;
const UNDER_WAY: ReadonlySet<string> = new Set(['setup', 'active', 'device', 'cancelling', 'wait-unplug']);

/** Ends a migration that a killed command left under way. It may turn out to have completed. */
export const endLeftMigration = async (qmp: QmpClient): Promise<void> => {
  const isUnderWay = async (): Promise<boolean> =>
    UNDER_WAY.has((await qmp.execute('query-migrate')).status ?? 'none') ||
    (await qmp.execute('query-status')).status === 'finish-migrate';
  if (!(await isUnderWay())) return;
  await qmp.execute('migrate_cancel');
  const deadlineMs = performance.now() + LEFT_ENDS_MS_MAX;
  while (await isUnderWay()) {
    if (performance.now() > deadlineMs) {
      throw new TimeoutError('a migration that an earlier command began does not end', {
        cure: 'Look at `query-migrate` of this QEMU.',
      });
    }
    await delay(LEFT_POLL_MS);
  }
};
