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
import { percentile } from '../../lib/stats.js';

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
  /** The downtime that its rounds had come down to: the median over the second half of them, if there were any. */
  readonly remainderMs?: number;
  readonly totalMs: number;
  readonly code: string;
  readonly message: string;
}

export type MoveReport = Moved | Stayed;

const say = (value: MoveReport | { readonly event: 'error'; readonly message: string }): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

const roundsOf = (expectedMs: readonly number[]) => ({
  rounds: expectedMs.length,
  ...(expectedMs.length === 0
    ? {}
    : { remainderMs: percentile(expectedMs.slice(Math.floor(expectedMs.length / 2)), 50) }),
});

const reasonOf = ({ code, message }: { readonly code: string; readonly message: string }) => ({
  code,
  message,
});

const byHoldfast = async ({ key, ...options }: Omit<MigrationOptions, 'key'> & { key: string }) => {
  const beginMs = performance.now();
  const expectedMs: number[] = [];
  const migration = await Migration.start({ ...options, key: Buffer.from(key, 'hex') });
  let runsThereMs: number | undefined;
  migration.on('runs-early', () => {
    runsThereMs = performance.now() - beginMs;
  });
  migration.on('round', ({ decision }) => expectedMs.push(decision.expectedDowntimeMs));
  const outcome = await migration.ended;
  const totalMs = performance.now() - beginMs;
  switch (outcome.kind) {
    case 'moved':
      return say({
        event: 'moved',
        ...outcome,
        parts: { ...outcome.downtimeParts, ...(runsThereMs === undefined ? {} : { runsThereMs }) },
      });
    case 'stayed':
      return say({ event: 'stayed', ...roundsOf(expectedMs), totalMs, ...reasonOf(outcome.failure) });
    default:
      throw new Error(`the migration ended as ${outcome.kind}`);
  }
};

const byQemu = async (move: QemuMove): Promise<void> => {
  const { policy, downtimeMs, roundsMax, timeMaxMs } = move;
  const qmp = await QmpClient.connect(move.qmp);
  const there = await QmpClient.connect(move.targetQmp);
  const beginMs = performance.now();
  const expectedMs: number[] = [];
  try {
    await using target = await openQemuTarget({ qmp: there, address: move.address });
    const moved = await migrateWithQemu({
      ...{ qmp, target, downtimeMs, policy: migrationPolicy(policy) },
      limit: { roundsMax, totalMsMax: timeMaxMs },
      onRound: ({ decision }) => void expectedMs.push(decision.expectedDowntimeMs),
    });
    await qmp.execute('quit');
    say({ event: 'moved', ...moved, rounds: moved.rounds.length, parts: {} });
  } catch (error) {
    const reason = reasonOf(error as Error & { readonly code: string });
    if (reason.code !== 'HOLDFAST_E_LIMIT') throw error;
    const totalMs = performance.now() - beginMs;
    say({ event: 'stayed', ...roundsOf(expectedMs), totalMs, ...reason });
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
