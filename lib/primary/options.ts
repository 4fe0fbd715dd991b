/** Options of a primary, with their defaults and limits in one place. */
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import { senderStrategies } from '../send/sender-choice.js';

const ms = (min: number, max: number) => z.number().min(min).max(max);

/** `HOST:PORT` or `[IPV6]:PORT`. */
export const hostPort = z
  .string()
  .regex(/^(\[[0-9a-fA-F:.]+\]|[^:[\]\s]+):\d{1,5}$/, 'must be HOST:PORT, or [IPV6]:PORT')
  .refine((value) => Number(value.slice(value.lastIndexOf(':') + 1)) <= 65535, 'port is over 65535');

export const parseHostPort = (value: string): { host: string; port: number } => {
  const colon = value.lastIndexOf(':');
  return { host: value.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(value.slice(colon + 1)) };
};

export const diskDir = z.string().startsWith('/', 'must be an absolute path').default('/var/lib/holdfast');

export const primarySettings = z.strictObject({
  /** Name in status output and of the admin socket. */
  name: z
    .string()
    .regex(/^[A-Za-z0-9_.-]{1,64}$/, 'must be 1 to 64 of A-Z a-z 0-9 _ . -')
    .default('primary'),
  backup: hostPort,
  /** Directory for sockets and records; on a tmpfs, so that it doesn't outlive a boot. */
  runDir: z.string().startsWith('/', 'must be an absolute path').default('/run/holdfast'),
  /** Fixed pacing: from the begin of one epoch to the begin of the next. Without it epochs follow the load. */
  intervalMs: ms(1, 60_000).optional(),
  /** From the begin of one pause to the begin of the next, at least. Shorter than any pause measured: what limits is the guest's share. */
  minIntervalMs: ms(1, 60_000).default(2),
  /**
   * And at most: an idle guest's. It bounds what a failover computes again, and ten pauses a second
   * cost an idle guest two to three percent.
   */
  maxIntervalMs: ms(1, 60_000).default(100),
  /** An epoch ends before copying what is dirty would make its pause longer than this. */
  pauseBudgetMs: ms(0.1, 60_000).default(5),
  /**
   * From the first frame that is held to its release. Default: 10 where the gate sees output; where it
   * doesn't, output is assumed to wait always, and epochs end every 25 ms unless this is given.
   */
  delayBudgetMs: ms(0.1, 60_000).optional(),
  captureMode: z.enum(['staged', 'direct', 'auto']).default('staged'),
  /** Stage, and send, what is dirty while the guest still runs, where that pays (staged capture only). */
  speculate: z.enum(['auto', 'off']).default('auto'),
  deviceState: z.enum(['xen-save', 'migrate-fd']).default('xen-save'),
  /** How pages are sent; `auto` chooses by fragment size, link and measured cost. */
  sender: z.enum(['auto', ...senderStrategies]).default('auto'),
  /** Bulk connections over which an epoch's pages are spread. */
  streams: z.number().int().min(1).max(16).default(1),
  /** The backup compares a digest of each epoch before it acknowledges. Off, TCP's checksum is all there is. */
  verify: z.boolean().default(true),
  /** What holds the guest's output; `auto`: relays where the VM has them, else QEMU's filters. */
  gate: z.enum(['auto', 'relay', 'filter-buffer', 'plug', 'none']).default('auto'),
  /** Limit of what the relays of a launched VM hold, each; at it the guest has to wait. */
  heldMiB: z.number().int().min(1).max(1_024).default(16),
  /** follow: the guest is given back the time that pauses take; qemu: it loses them. */
  guestClock: z.enum(['follow', 'qemu']).default('follow'),
  onBackupLost: z.enum(['hold', 'release']).default('hold'),
  heartbeatIntervalMs: ms(5, 10_000).default(40),
  heartbeatTimeoutMs: ms(20, 60_000).default(200),
  retryMs: ms(10, 60_000).default(1_000),
  /** An epoch not acknowledged for so long means that the backup is lost, whatever its heartbeats say. */
  ackTimeoutMs: ms(100, 600_000).default(10_000),
  connectTimeoutMs: ms(100, 60_000).default(5_000),
  stagingMiB: z.number().int().min(1).max(65_536).default(256),
  copyThreads: z.number().int().min(1).max(16).default(2),
  /** Where what is known of the disks' images is kept: on stable storage, for it must outlive a reboot. */
  diskDir: diskDir,
  /** Log of each disk of a launched VM, between the disk server and the network: a power of two. */
  ringMiB: z
    .number()
    .int()
    .min(4)
    .max(4_096)
    .refine((mib) => Number.isInteger(Math.log2(mib)), 'must be a power of two')
    .default(64),
  /** A running VM's disks that no disk server has are moved to one, without a restart. */
  moveDisks: z.boolean().default(false),
  /** Base sync ends at the latest after this many rounds. */
  baseRoundsMax: z.number().int().min(2).max(100).default(8),
  /** What differs on the standby: option values equal to, or paths below, `from` become `to`. */
  replace: z.array(z.strictObject({ from: z.string().min(1), to: z.string() })).default([]),
});

export type PrimarySettings = z.output<typeof primarySettings>;
export type PrimarySettingsInput = z.input<typeof primarySettings>;

/** Checks settings against a schema; the error names the key. */
export const checkSettings = <S extends z.ZodType>(
  schema: S,
  value: unknown,
  source: string,
): z.output<S> => {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issues = result.error.issues.map((issue) => {
    const key = issue.path.map(String).join('.');
    return key === '' ? issue.message : `${key}: ${issue.message}`;
  });
  throw new ConfigError(`${source}: ${issues.join('; ')}`, { details: { issues } });
};

/** @throws ConfigError */
export const checkHeartbeat = (
  {
    heartbeatIntervalMs,
    heartbeatTimeoutMs,
  }: Pick<PrimarySettings, 'heartbeatIntervalMs' | 'heartbeatTimeoutMs'>,
  source: string,
): void => {
  if (heartbeatTimeoutMs >= 2 * heartbeatIntervalMs) return;
  throw new ConfigError(
    `${source}: heartbeatTimeoutMs: ${heartbeatTimeoutMs} is less than twice heartbeatIntervalMs (${heartbeatIntervalMs})`,
  );
};

export const checkPrimarySettings = (value: unknown, source = 'primary settings'): PrimarySettings => {
  const settings = checkSettings(primarySettings, value, source);
  checkHeartbeat(settings, source);
  if (settings.minIntervalMs > settings.maxIntervalMs) {
    throw new ConfigError(
      `${source}: minIntervalMs: ${settings.minIntervalMs} is more than maxIntervalMs (${settings.maxIntervalMs})`,
    );
  }
  return settings;
};
