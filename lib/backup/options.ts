/** Options of a backup, with their defaults and limits in one place. */
import { z } from 'zod';
import { checkSettings, diskDir, hostPort } from '../primary/options.js';

const ms = (min: number, max: number) => z.number().min(min).max(max);

export const backupSettings = z.strictObject({
  /** Name in status output, of the admin socket and of the replica files. */
  name: z
    .string()
    .regex(/^[A-Za-z0-9_.-]{1,64}$/, 'must be 1 to 64 of A-Z a-z 0-9 _ . -')
    .default('backup'),
  /** Control connections come here. */
  listen: hostPort,
  /** First of two consecutive ports for bulk connections; 0: any free ports. */
  bulkPort: z.number().int().min(0).max(65_534).default(0),
  runDir: z.string().startsWith('/', 'must be an absolute path').default('/run/holdfast'),
  /** Where the replica of the guest's RAM is made: a tmpfs or hugetlbfs, with room for all of it. */
  ramDir: z.string().startsWith('/', 'must be an absolute path').default('/dev/shm'),
  /** Where journals and maps of the disks' replicas are kept: on stable storage, for they must outlive a reboot. */
  diskDir,
  /** Of each disk's journal: what is received and not yet in the image. */
  journalMiB: z.number().int().min(64).max(65_536).default(512),
  /** Overwrite images that are there already, although no primary has ever filled them. */
  adoptDisks: z.boolean().default(false),
  takeover: z.enum(['auto', 'manual']).default('auto'),
  connectionGraceMs: ms(0, 600_000).default(0),
  reconnectGraceMs: ms(0, 600_000).default(5_000),
  /** QEMU binary to use instead of the one of the primary's name found on PATH. */
  qemu: z.string().startsWith('/', 'must be an absolute path').optional(),
  /** What differs here: option values equal to, or paths below, `from` become `to`; after the primary's own. */
  replace: z.array(z.strictObject({ from: z.string().min(1), to: z.string() })).default([]),
});

export type BackupSettings = z.output<typeof backupSettings>;
export type BackupSettingsInput = z.input<typeof backupSettings>;

export const checkBackupSettings = (value: unknown, source = 'backup settings'): BackupSettings =>
  checkSettings(backupSettings, value, source);
