/** Settings of checkpoints on disk, with their defaults and limits in one place. */
import { z } from 'zod';
import { checkSettings, primarySettings } from '../primary/options.js';

const { runDir, stagingMiB, copyThreads } = primarySettings.shape;

export const checkpointSettings = z.strictObject({
  /** Directory of the checkpoints; made if it is not there. */
  dir: z.string().min(1),
  /** So many can be restored, older ones go; without it all stay. */
  keep: z.number().int().min(1).max(100_000).optional(),
  /** For what QEMU saves in the pause; on a tmpfs. */
  runDir,
  stagingMiB,
  copyThreads,
});
export type CheckpointSettings = z.output<typeof checkpointSettings>;
export type CheckpointSettingsInput = z.input<typeof checkpointSettings>;

/** @throws ConfigError */
export const checkCheckpointSettings = (value: unknown): CheckpointSettings =>
  checkSettings(checkpointSettings, value, 'checkpoint settings');
