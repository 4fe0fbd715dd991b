/**
 * What Holdfast asks of QEMU, as short recipes over the QMP client.
 *
 * Capture, VM stopped:
 *   stop ─► saveDeviceState ─► cont                 every epoch (default path)
 *   stop ─► file-migration.ts ─► cont               the prefix; or every epoch (second path)
 *
 * Take-over:
 *   standby with -incoming defer ─► prepareIncoming ─► prefix + state[8:] is
 *   written to the socket ─► waitRunning ─► announceSelf
 *
 * `xen-load-devices-state` is not here on purpose: it aborts QEMU.
 */

import { QmpConnectionError, StandbyError } from '../errors.js';
import type { QmpClient, QmpWaitOptions } from './client.js';
import type { CommandAnswer, QmpEvent } from './commands.js';

const RUNNING_TIMEOUT_MS = 10_000;

export interface RecipeOptions {
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes vCPUs and devices, without RAM, to `path` (as QEMU may open it: a file on a tmpfs, or /proc/PID/fd/N of a
 * memfd). The VM should be stopped. `live` must be false: true inactivates the disks, and a second save then aborts 7.2.
 */
export const saveDeviceStateRequest = (path: string) =>
  ({ execute: 'xen-save-devices-state', arguments: { filename: path, live: false } }) as const;

export const saveDeviceState = async (
  qmp: QmpClient,
  path: string,
  options: RecipeOptions = {},
): Promise<void> => {
  const request = saveDeviceStateRequest(path);
  await qmp.execute(request.execute, request.arguments, options);
};

export type MigrationCapabilities = CommandAnswer<'query-migrate-capabilities'>;

/**
 * MIGRATION events, and leaving shared RAM out of the stream; one stream, and one way, whatever the last migration
 * of the VM left: a file can't take several, and gives no answers. zero-copy-send goes with multifd.
 */
const CAPABILITIES_NEEDED = [
  { capability: 'events', state: true },
  { capability: 'x-ignore-shared', state: true },
  { capability: 'multifd', state: false },
  { capability: 'return-path', state: false },
  { capability: 'zero-copy-send', state: false },
] as const;

const ENABLE_CAPABILITIES = [
  { execute: 'query-migrate-capabilities' },
  { execute: 'migrate-set-capabilities', arguments: { capabilities: [...CAPABILITIES_NEEDED] } },
] as const;

const isNeeded = ({ capability }: { readonly capability: string }): boolean =>
  CAPABILITIES_NEEDED.some((needed) => needed.capability === capability);

/**
 * Sets what a FileMigration and prepareIncoming() need. Returns how it stood before: an operator's own
 * migration of the VM to another host would lose all RAM if x-ignore-shared stayed on, so it must not.
 */
export const enableMigrationCapabilities = async (
  qmp: QmpClient,
  options: RecipeOptions = {},
): Promise<MigrationCapabilities> => {
  const [before] = await Promise.all(qmp.pipeline(ENABLE_CAPABILITIES, options));
  return before.filter(isNeeded);
};

/** Undoes enableMigrationCapabilities(). No migration may be under way. */
export const restoreMigrationCapabilities = async (
  qmp: QmpClient,
  before: MigrationCapabilities,
  options: RecipeOptions = {},
): Promise<void> => {
  await qmp.execute('migrate-set-capabilities', { capabilities: before }, options);
};

interface ExpectedEvent {
  readonly event: Promise<QmpEvent>;
  /** Ends the wait, with its timer and listener, if nobody needs it any more. */
  readonly giveUp: () => void;
}

/** once(), for a wait that may turn out not to be needed. */
export const expectEvent = (qmp: QmpClient, name: string, options: QmpWaitOptions): ExpectedEvent => {
  const controller = new AbortController();
  const signals = [controller.signal, ...(options.signal === undefined ? [] : [options.signal])];
  const event = qmp.once(name, { ...options, signal: AbortSignal.any(signals) });
  event.catch(() => {});
  return { event, giveUp: () => controller.abort() };
};

/** @param status of a migration: the event's, or query-migrate's */
export const hasMigrationEnded = (status: unknown): boolean =>
  status === 'completed' || status === 'failed' || status === 'cancelled';

export const migrationEnded = ({ data }: QmpEvent): boolean => hasMigrationEnded(data.status);

export const migrationError = async (qmp: QmpClient): Promise<string> => {
  const answer = await qmp.execute('query-migrate').catch(() => undefined);
  return answer?.['error-desc'] ?? 'QEMU gave no reason';
};

/**
 * Makes a standby (started with `-incoming defer`) listen on a Unix socket for
 * its device state. It takes one connection and loads once per process.
 *
 * @returns what restoreMigrationCapabilities() needs once it runs.
 */
export const prepareIncoming = async (
  qmp: QmpClient,
  unixPath: string,
  options: RecipeOptions = {},
): Promise<MigrationCapabilities> => {
  const [before] = await Promise.all(
    qmp.pipeline(
      [...ENABLE_CAPABILITIES, { execute: 'migrate-incoming', arguments: { uri: `unix:${unixPath}` } }],
      options,
    ),
  );
  return before.filter(isNeeded);
};

/**
 * Settles when the standby runs the VM. Call it at any time: before, while or
 * after the state is written. A VM that was loaded paused is resumed.
 *
 * @throws StandbyError the state was not accepted, QEMU ended, or the deadline passed.
 */
export const waitRunning = async (qmp: QmpClient, options: RecipeOptions = {}): Promise<void> => {
  const timeoutMs = options.timeoutMs ?? RUNNING_TIMEOUT_MS;
  const limits = { timeoutMs, signal: options.signal };
  // Events before the query, so that nothing falls between them.
  const loaded = expectEvent(qmp, '*', {
    ...limits,
    where: (event) => event.event === 'RESUME' || (event.event === 'MIGRATION' && migrationEnded(event)),
  });
  try {
    const asked = qmp.execute('query-status', undefined, limits);
    asked.catch(() => {}); // a standby that loads answers after its RESUME, up to a millisecond: nobody waits for it
    const first = await Promise.race([asked, loaded.event]);
    if ('running' in first && first.running) return;
    if (!('running' in first) || first.status === 'inmigrate') {
      const event = await loaded.event;
      if (event.event === 'RESUME') return;
      if (event.data.status !== 'completed') {
        throw new StandbyError('the standby QEMU did not accept the device state', {
          details: { desc: await migrationError(qmp) },
        });
      }
    }
    const after = await qmp.execute('query-status', undefined, limits);
    if (!after.running) await qmp.execute('cont', undefined, limits);
  } catch (error) {
    // A bad stream makes QEMU 7.2 exit: the lost connection is how that shows.
    if (error instanceof QmpConnectionError) {
      throw new StandbyError(`the standby QEMU did not resume: ${error.message}`, { cause: error });
    }
    throw error;
  } finally {
    loaded.giveUp();
  }
};

/** QEMU's own defaults (migration parameters announce-*), in milliseconds. */
export const ANNOUNCE = { initial: 50, max: 550, rounds: 5, step: 100 } as const;

/** Repeats the guest's announcement (RARP) on every NIC, so that switches learn its new place. */
export const announceSelf = async (qmp: QmpClient, options: RecipeOptions = {}): Promise<void> => {
  await qmp.execute('announce-self', ANNOUNCE, options);
};

export interface VmStatus {
  readonly running: boolean;
  /** QEMU's RunState: running, paused, postmigrate, inmigrate, … */
  readonly status: string;
  readonly version: string;
  readonly accelerator: 'kvm' | 'tcg';
  readonly vcpus: number;
}

/** The VM's state in brief, in one round trip. */
export const queryVm = async (qmp: QmpClient, options: RecipeOptions = {}): Promise<VmStatus> => {
  const [status, kvm, cpus] = await Promise.all(
    qmp.pipeline(
      [{ execute: 'query-status' }, { execute: 'query-kvm' }, { execute: 'query-cpus-fast' }],
      options,
    ),
  );
  return {
    running: status.running,
    status: status.status,
    version: versionText(qmp.greeting.version),
    accelerator: kvm.enabled ? 'kvm' : 'tcg',
    vcpus: cpus.length,
  };
};

/** `7.2.22`, from a greeting or query-version. */
export const versionText = (version: CommandAnswer<'query-version'>): string =>
  `${version.qemu.major}.${version.qemu.minor}.${version.qemu.micro}`;
