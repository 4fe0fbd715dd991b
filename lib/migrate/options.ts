/** Options of a migration, with their defaults and limits in one place. */
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import {
  checkHeartbeat,
  checkSettings,
  hostPort,
  type PrimarySettings,
  primarySettings,
} from '../primary/options.js';
import { migrationLimit } from './migration-limit.js';
import { migrationPolicyNames } from './policies.js';

const shared = primarySettings.pick({
  runDir: true,
  deviceState: true,
  sender: true,
  streams: true,
  verify: true,
  guestClock: true,
  heartbeatIntervalMs: true,
  retryMs: true,
  connectTimeoutMs: true,
  diskDir: true,
  ringMiB: true,
  moveDisks: true,
  replace: true,
});

export const migrationSettings = shared.extend({
  /** Name in status output and of the admin socket. */
  name: primarySettings.shape.name.unwrap().default('migration'),
  /** Where a `holdfast backup` waits for the VM. */
  to: hostPort,
  /** When to stop the VM and move it. */
  policy: z.enum(migrationPolicyNames).default('auto'),
  /** What the policies aim at: from the VM's stop here until it runs there. */
  downtimeMs: z.number().min(1).max(600_000).default(300),
  /**
   * Whether the VM may run over there before its memory is there, which then follows: `never`; `auto`, when the
   * policy says so; `now`, without a round before. Until all of it is there, it is lost if the source dies.
   */
  resumeEarly: z.enum(['never', 'auto', 'now']).default('never'),
  /** For so long a cut link is waited for while memory follows; then the VM over there is ended. */
  earlyWaitMs: z.number().min(1_000).max(3_600_000).default(30_000),
  /**
   * With `resumeEarly`: a directory of checkpoints of the VM, as the destination sees it. Should the source be lost
   * before all of its memory has come, the VM over there goes on from the newest one.
   */
  fallback: z.string().startsWith('/', 'must be an absolute path, on the destination').max(4096).optional(),
  /** A migration that has not converged by then is given up. */
  roundsMax: z.number().int().min(1).max(10_000).default(migrationLimit.roundsMax),
  timeMaxMs: z.number().min(1_000).max(86_400_000).default(migrationLimit.totalMsMax),
  /** Pages whose content is on a disk that both hosts have are read there, and not sent. */
  skipDiskPages: z.boolean().default(false),
  /** Longer than a primary's: rounds fill the link, and before the hand-over a loss costs nobody anything. */
  heartbeatTimeoutMs: primarySettings.shape.heartbeatTimeoutMs.unwrap().default(2_000),
  /** Limit of the one transfer for which the VM stands still. */
  ackTimeoutMs: primarySettings.shape.ackTimeoutMs.unwrap().default(60_000),
});

export type MigrationSettings = z.output<typeof migrationSettings>;
export type MigrationSettingsInput = z.input<typeof migrationSettings>;

/** @throws ConfigError */
export const checkMigrationSettings = (value: unknown): MigrationSettings => {
  const settings = checkSettings(migrationSettings, value, 'migration settings');
  checkHeartbeat(settings, 'migration settings');
  if (settings.fallback !== undefined) checkFallback(settings);
  return settings;
};

const checkFallback = ({ resumeEarly, moveDisks }: MigrationSettings): void => {
  if (resumeEarly === 'never') {
    throw new ConfigError('fallback: without resumeEarly nothing is lost with the source', {
      cure: 'Leave --fallback out, or give --resume-early, too.',
    });
  }
  if (moveDisks) {
    throw new ConfigError('fallback: a VM with replicated disks (moveDisks) cannot go on from a checkpoint', {
      cure: 'Leave --fallback out, or --resume-early.',
    });
  }
};

/** A migration's settings as those of the session that it is. */
export const asPrimarySettings = ({
  to,
  policy: _policy,
  downtimeMs: _downtimeMs,
  roundsMax: _roundsMax,
  timeMaxMs: _timeMaxMs,
  skipDiskPages: _skipDiskPages,
  resumeEarly: _resumeEarly,
  earlyWaitMs: _earlyWaitMs,
  fallback: _fallback,
  ...settings
}: MigrationSettings): Partial<PrimarySettings> & { readonly backup: string } => ({
  ...settings,
  backup: to,
  // The VM stands still until all of it is there: nothing is to be staged, and nothing to be held.
  captureMode: 'direct',
  speculate: 'off',
  gate: 'none',
  onBackupLost: 'hold',
});
