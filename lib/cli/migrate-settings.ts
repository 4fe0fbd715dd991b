/** Settings and flags of `holdfast migrate`: those of a primary that a move has use for, and its own. */
import { z } from 'zod';
import { migrationSettings } from '../migrate/options.js';
import { migrationPolicyNames } from '../migrate/policies.js';
import { hostPort } from '../primary/options.js';
import { daemonKeys, type Flag, primaryFlags } from './settings.js';
import { durationText, parseDurationMs, parseInteger, parseSwitch, switchText } from './values.js';

/** They are asked at the same time. */
const TARGETS_MAX = 16;

export const migrateCommandSettings = migrationSettings.extend({
  ...daemonKeys,
  /** One, or several of which the best is chosen. */
  to: z.preprocess(
    (value) => (typeof value === 'string' ? [value] : value),
    z.array(hostPort).min(1).max(TARGETS_MAX),
  ),
  /** Who sends the memory. */
  engine: z.enum(['holdfast', 'qemu']).default('holdfast'),
  /** QMP socket of the VM. */
  qmp: z.string().min(1).optional(),
  /** Name under which Holdfast launched it. */
  vm: z.string().min(1).optional(),
});
export type MigrateCommandSettings = z.output<typeof migrateCommandSettings>;

const duration = { parse: parseDurationMs, show: durationText } as const;

export const migrateFlags = {
  to: {
    flag: '--to <host:port>',
    help: 'where a `holdfast backup` waits for the VM (required); given several times, the best of them is chosen',
    repeatable: true,
  },
  keyFile: primaryFlags.keyFile,
  qmp: { flag: '--qmp <socket>', help: 'QMP socket of the VM' },
  vm: { flag: '--vm <name>', help: 'instead: the VM that Holdfast launched under this name' },
  name: primaryFlags.name,
  engine: {
    flag: '--engine <engine>',
    help: "who finds and sends the memory: holdfast, or qemu: QEMU's own migration, by the same policies",
  },
  policy: {
    flag: '--policy <policy>',
    help: `when the VM is stopped and moved: ${migrationPolicyNames.join(', ')}`,
  },
  downtimeMs: {
    flag: '--downtime <duration>',
    help: 'what the policies aim at, from the stop here until the VM runs there',
    ...duration,
  },
  resumeEarly: {
    flag: '--resume-early [when]',
    help: 'now: it runs there at once, its memory follows; auto: where the policy says so. See below',
    preset: 'now',
  },
  earlyWaitMs: {
    flag: '--early-wait <duration>',
    help: 'for so long a cut link is waited for while memory follows',
    ...duration,
  },
  fallback: {
    flag: '--fallback <dir>',
    help: 'with --resume-early: checkpoints there (`holdfast checkpoint`), from which the VM goes on if this host is lost',
  },
  roundsMax: {
    flag: '--rounds-max <n>',
    help: 'the migration is given up if it has not converged by then',
    parse: parseInteger,
  },
  timeMaxMs: { flag: '--time-max <duration>', help: 'the same, as a time', ...duration },
  skipDiskPages: {
    flag: '--skip-disk-pages [on|off]',
    help: 'pages whose content is on a disk that both hosts have are read there, not sent',
    parse: parseSwitch,
    show: switchText,
  },
  sender: primaryFlags.sender,
  streams: primaryFlags.streams,
  verify: primaryFlags.verify,
  deviceState: primaryFlags.deviceState,
  guestClock: {
    flag: '--guest-clock <how>',
    help: "follow: the guest's clock makes up for the downtime; qemu: it loses it",
  },
  heartbeatIntervalMs: primaryFlags.heartbeatIntervalMs,
  heartbeatTimeoutMs: primaryFlags.heartbeatTimeoutMs,
  retryMs: primaryFlags.retryMs,
  ackTimeoutMs: {
    flag: '--ack-timeout <duration>',
    help: 'limit of the last transfer, for which the VM stands still; over it the migration fails',
    ...duration,
  },
  connectTimeoutMs: primaryFlags.connectTimeoutMs,
  moveDisks: primaryFlags.moveDisks,
  diskDir: primaryFlags.diskDir,
  ringMiB: { ...primaryFlags.ringMiB, help: 'log of each disk that is moved to a server (--move-disks)' },
  replace: primaryFlags.replace,
  runDir: primaryFlags.runDir,
  logLevel: primaryFlags.logLevel,
} as const satisfies Record<keyof MigrateCommandSettings, Flag>;
