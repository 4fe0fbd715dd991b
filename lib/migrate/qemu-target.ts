/**
 * The destination of a migration by QEMU's own engine: a QEMU with the source's machine that somebody started
 * with `-incoming defer`.
 *
 *   openQemuTarget ─► listens on TCP ─► loads what arrives ─► paused ─┬─ resume()   it runs
 *                                                                     └─ abandon()  it ends
 *
 * QEMU would run the VM as soon as it has loaded it, before the source knows: if the connection broke in between,
 * the source would run it, too (migration_completion() takes a broken return path for a failure). So the
 * destination is told to stay paused: `stop` before anything has arrived clears QEMU's autostart (qmp_stop). It is
 * resume(), after the source's `completed`, that makes it the VM's place.
 */
import { QmpError } from '../errors.js';
import type { QmpClient } from '../qmp/client.js';
import { ANNOUNCE, type MigrationCapabilities } from '../qmp/recipes.js';
import type { QemuMigrationView } from './qemu-rounds.js';
import { prepareTarget } from './qemu-settings.js';
import type { MigrationTarget } from './target.js';

const QUIT_MS = 3_000;

export interface QemuTargetOptions {
  /** Connected to the destination's monitor; stays the caller's. */
  readonly qmp: QmpClient;
  /** Where QEMU listens; the source must be able to reach it by this address. */
  readonly address: string;
  /** Default 0: QEMU chooses. */
  readonly port?: number;
}

/**
 * Makes a QEMU ready for `migrate-incoming`: it will load, and then stay paused until it is told to run the VM.
 * @returns how its capabilities stood before
 * @throws QmpError if it refuses, or was not started with `-incoming defer`.
 */
export const holdIncoming = async (qmp: QmpClient): Promise<MigrationCapabilities> => {
  const { status } = await qmp.execute('query-status');
  if (status !== 'inmigrate') {
    throw new QmpError(`the destination QEMU is not waiting for a VM: it is ${status}`, {
      cure: 'Start it with the command line of the source and `-incoming defer`.',
      details: { status },
    });
  }
  const before = await prepareTarget(qmp);
  await qmp.execute('stop');
  return before;
};

/** @throws QmpError if QEMU refuses, as it does when it was not started with `-incoming defer`. */
export const openQemuTarget = async ({
  qmp,
  address,
  port = 0,
}: QemuTargetOptions): Promise<MigrationTarget> => {
  await holdIncoming(qmp);
  const host = address.includes(':') ? `[${address}]` : address;
  await qmp.execute('migrate-incoming', { uri: `tcp:${host}:${port}` });
  const uri = `tcp:${host}:${listeningPort(await qmp.execute('query-migrate')) ?? port}`;

  const abandon = async (): Promise<void> => {
    // It may have ended by itself: QEMU 7.2 does when the stream breaks.
    if (!qmp.open) return;
    await qmp.execute('quit', undefined, { timeoutMs: QUIT_MS }).catch(() => {});
  };
  let resumed = false;
  return {
    uri,
    resume: async () => {
      if (!qmp.open) throw new QmpError('the destination QEMU was lost before it could run the VM');
      // The second command repeats what QEMU announced before the VM ran; nobody needs to wait for it.
      const [running] = qmp.pipeline([
        { execute: 'cont' },
        { execute: 'announce-self', arguments: ANNOUNCE },
      ]);
      await running;
      resumed = true;
    },
    abandon,
    [Symbol.asyncDispose]: async () => {
      if (!resumed) await abandon();
    },
  };
};

const listeningPort = (view: QemuMigrationView): string | undefined =>
  view['socket-address']?.find(({ port }) => port !== undefined)?.port;
