/**
 * One migration by one of the two engines, as a process on the source's host. What it comes to is a JSON line
 * on stdout: MoveReport, or `error` for what is no result of a migration.
 *
 *   node role.js holdfast '<MigrationOptions as JSON, key in hexadecimal>'
 *   node role.js qemu '<QemuMove as JSON>'
 */
import { Migration, type MigrationOptions, QmpClient } from '../../lib/index.js';
import { type MigrationPolicyName, migrationPolicy } from '../../lib/migrate/policies.js';
import { migrateWithQemu } from '../../lib/migrate/qemu-engine.js';
import { openQemuTarget } from '../../lib/migrate/qemu-target.js';

/** A migration by QEMU's own engine. */
export interface QemuMove {
  /** QMP sockets of the source and of the QEMU that waits with `-incoming defer`. */
  readonly qmp: string;
  readonly targetQmp: string;
  /** Where the target listens. */
  readonly address: string;
  readonly policy: MigrationPolicyName;
  readonly downtimeMs: number;
  readonly roundsMax: number;
  readonly timeMaxMs: number;
}

export interface Moved {
  readonly event: 'moved';
  readonly totalMs: number;
  readonly downtimeMs: number;
  readonly rounds: number;
  /** What of the downtime is known, by name; all in milliseconds. */
  readonly parts: Readonly<Record<string, number>>;
}

export interface Stayed {
  readonly event: 'stayed';
  readonly rounds: number;
  readonly totalMs: number;
  readonly code: string;
  readonly message: string;
}

export type MoveReport = Moved | Stayed;

const say = (value: MoveReport | { readonly event: 'error'; readonly message: string }): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

const byHoldfast = async ({ key, ...options }: Omit<MigrationOptions, 'key'> & { key: string }) => {
  const beginMs = performance.now();
  let rounds = 0;
  const migration = await Migration.start({ ...options, key: Buffer.from(key, 'hex') });
  migration.on('round', ({ round }) => {
    rounds = round;
  });
  const outcome = await migration.ended;
  const totalMs = performance.now() - beginMs;
  switch (outcome.kind) {
    case 'moved':
      return say({ event: 'moved', ...outcome, parts: { ...outcome.downtimeParts } });
    case 'stayed':
      return say({
        event: 'stayed',
        rounds,
        totalMs,
        code: outcome.failure.code,
        message: outcome.failure.message,
      });
    default:
      throw new Error(`the migration ended as ${outcome.kind}`);
  }
};

const byQemu = async (move: QemuMove): Promise<void> => {
  const { policy, downtimeMs, roundsMax, timeMaxMs } = move;
  const qmp = await QmpClient.connect(move.qmp);
  const there = await QmpClient.connect(move.targetQmp);
  const beginMs = performance.now();
  let rounds = 0;
  try {
    await using target = await openQemuTarget({ qmp: there, address: move.address });
    const moved = await migrateWithQemu({
      ...{ qmp, target, downtimeMs, policy: migrationPolicy(policy) },
      limit: { roundsMax, totalMsMax: timeMaxMs },
      onRound: ({ number }) => {
        rounds = number;
      },
    });
    await qmp.execute('quit');
    say({ event: 'moved', ...moved, rounds: moved.rounds.length, parts: {} });
  } catch (error) {
    const { code, message } = error as Error & { readonly code?: string };
    if (code !== 'HOLDFAST_E_LIMIT') throw error;
    say({ event: 'stayed', rounds, totalMs: performance.now() - beginMs, code, message });
  }
};

const [engine, json = '{}'] = process.argv.slice(2);
const options: unknown = JSON.parse(json);
const carryOut = (): Promise<void> =>
  engine === 'qemu'
    ? byQemu(options as QemuMove)
    : byHoldfast(options as Omit<MigrationOptions, 'key'> & { key: string });
carryOut()
  .catch((error: unknown) => {
    say({ event: 'error', message: error instanceof Error ? error.message : String(error) });
    process.exitCode = 1;
  })
  .finally(() => process.exit());
