/**
 * All of a VM's RAM to another host, in turns: QEMU's own `migrate` in several
 * set-ups, and Holdfast's base sync.
 *
 *   one guest on host a, idle, its RAM filled ─┬─ migrate  ─► QEMU on host b, `-incoming`; then `cont`
 *                                              └─ base sync ─► Holdfast's backup on host b; then detach
 *
 * The guest is halted, so what is timed is how the bytes move and not how fast
 * the guest writes. Holdfast reserves its replica before the sync begins; QEMU is
 * measured both without and with its own option for that (`prealloc=on`). The first turn of
 * each contender only warms up the page tables on host a.
 */
import { rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import type { PrimaryOptions } from '../../lib/index.js';
import type { RoundStats } from '../../lib/primary/convergence.js';
import { QmpClient } from '../../lib/qmp/client.js';
import type { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import { endPair, startPair } from '../pair.js';
import { type PeerGuest, type PeerGuestOptions, startIncoming } from './flat-guest.js';

/** What one contender needed for the whole of RAM. */
export interface Transfer {
  /** Pages whose bytes travelled, and pages sent as "all zero". */
  readonly pages: number;
  readonly zeroPages: number;
  /** First page looked at to the last one received. */
  readonly syncMs: number;
  /** Bytes on the wire, protocol included. */
  readonly wireBytes: number;
}

export interface QemuMigration {
  readonly channels?: number;
  readonly zeroCopySend?: boolean;
  /** Host b's memory is populated before the migration begins. */
  readonly prealloc?: boolean;
}

const MIGRATE_PORT = 7200;
const MIGRATE_MS_MAX = 60_000;
const PAGE_BYTES = 4096;
/** More than any link has: QEMU is not to be throttled (its default is 128 MiB/s). */
const BANDWIDTH_MAX_BYTES_PER_S = 100 * 2 ** 30;

/** query-migrate, as far as it is used: QEMU's qapi/migration.json, MigrationInfo. */
const migrationInfo = z.object({
  status: z.string(),
  'error-desc': z.string().optional(),
  'total-time': z.number().optional(),
  'setup-time': z.number().optional(),
  ram: z.object({ normal: z.number(), duplicate: z.number(), transferred: z.number() }).optional(),
});

/**
 * The figures of a migration, when they are final. QEMU's migration thread says `completed` before it
 * has computed total-time, which is 0 until then (migration_completion and migration_iteration_finish
 * in its migration/migration.c). The run state `postmigrate`, from where alone `cont` is allowed, comes after.
 */
const migrationEnd = async (qmp: QmpClient): Promise<z.output<typeof migrationInfo>> => {
  const deadline = performance.now() + MIGRATE_MS_MAX;
  for (;;) {
    const { status: vm } = await qmp.execute('query-status');
    const info = migrationInfo.parse(await qmp.executeAny('query-migrate'));
    if (info.status === 'completed' && vm === 'postmigrate') return info;
    if (info.status === 'failed' || info.status === 'cancelled') {
      throw new Error(`QEMU's migration ended as ${info.status}: ${info['error-desc'] ?? 'no reason given'}`);
    }
    if (performance.now() > deadline) throw new Error(`a migration took more than ${MIGRATE_MS_MAX} ms`);
    await sleep(50);
  }
};

const transferOf = ({ ram, ...info }: z.output<typeof migrationInfo>): Transfer => {
  const totalMs = info['total-time'];
  if (ram === undefined || totalMs === undefined || totalMs === 0) {
    throw new Error('QEMU completed a migration and reports no figures for it');
  }
  return {
    pages: ram.normal,
    zeroPages: ram.duplicate,
    syncMs: totalMs - (info['setup-time'] ?? 0),
    wireBytes: ram.transferred,
  };
};

const capabilities = async (qmp: QmpClient, wanted: Readonly<Record<string, boolean>>): Promise<void> => {
  const list = Object.entries(wanted).map(([capability, state]) => ({ capability, state }));
  await qmp.execute('migrate-set-capabilities', { capabilities: list });
};

/** What both ends must agree on. That the bytes are sent without a copy concerns the sender alone. */
const configure = async (qmp: QmpClient, { channels }: QemuMigration): Promise<void> => {
  if (channels !== undefined) await capabilities(qmp, { multifd: true });
  await qmp.executeAny('migrate-set-parameters', {
    'max-bandwidth': BANDWIDTH_MAX_BYTES_PER_S,
    ...(channels === undefined ? {} : { 'multifd-channels': channels }),
  });
};

/** One `migrate` to a fresh QEMU on host b; the guest runs on host a again afterwards. */
export const migrateTurn = async (
  lab: Lab,
  guest: PeerGuest,
  options: PeerGuestOptions,
  migration: QemuMigration,
): Promise<Transfer> => {
  const destination = await startIncoming(lab, options, migration.prealloc === true);
  try {
    await using source = await QmpClient.connect(guest.observerPath);
    await using target = await QmpClient.connect(destination.observerPath);
    await configure(target, migration);
    await configure(source, migration);
    if (migration.zeroCopySend === true) await capabilities(source, { 'zero-copy-send': true });
    const uri = `tcp:${replicationLinks.aToB.to.address}:${MIGRATE_PORT}`;
    await target.execute('migrate-incoming', { uri });
    await source.execute('migrate', { uri });
    const info = await migrationEnd(source);
    await source.execute('cont');
    await capabilities(source, { 'zero-copy-send': false, multifd: false });
    return transferOf(info);
  } finally {
    await destination.process.kill();
    await rm(destination.ramPath, { force: true });
  }
};

export interface BaseSyncSettings {
  readonly sender: NonNullable<PrimaryOptions['sender']>;
  readonly streams: number;
}

/** A whole protection of the same guest; what counts is its base rounds, up to the first epoch. */
export const baseSyncTurn = async (
  lab: Lab,
  guest: PeerGuest,
  settings: BaseSyncSettings,
): Promise<Transfer> => {
  const pair = await startPair(lab, guest, { ...settings, intervalMs: 100, captureMode: 'staged' });
  const rounds = pair.primary.of('round') as unknown as RoundStats[];
  await endPair(pair);
  const sum = (part: (round: RoundStats) => number): number =>
    rounds.reduce((total, round) => total + part(round), 0);
  return {
    pages: sum(({ pages }) => pages),
    zeroPages: sum(({ zeroPages }) => zeroPages),
    syncMs: sum(({ scanMs, sendMs }) => scanMs + sendMs),
    wireBytes: sum(({ bytes }) => bytes),
  };
};

/** Page bytes per second. */
export const gbPerS = ({ pages, syncMs }: Transfer): number => (pages * PAGE_BYTES) / syncMs / 1e6;
