/**
 * Settings out of a config file and flags, checked against one schema.
 *
 *   schema ── every key has a flag (the compiler sees to it) ──► help, parsing
 *   config file < flags ──► checked once; an error names the flag, or the file and its key
 */
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { z } from 'zod';
import { backupSettings } from '../backup/options.js';
import { ConfigError } from '../errors.js';
import { primarySettings } from '../primary/options.js';
import { logLevels } from './logger.js';
import {
  durationText,
  parseDurationMs,
  parseInteger,
  parseReplacement,
  parseSizeMiB,
  parseSwitch,
  type Replacement,
  switchText,
} from './values.js';

export const daemonKeys = {
  /** File with the pre-shared key. */
  keyFile: z.string().min(1),
  logLevel: z.enum(logLevels).default('warn'),
};

export const primaryCommandSettings = primarySettings.extend({
  ...daemonKeys,
  /** QMP socket of a running VM. */
  qmp: z.string().min(1).optional(),
  /** QEMU's command line, binary first: the VM is launched. */
  qemu: z.array(z.string()).min(1).optional(),
  /** Where a launched VM's RAM is kept. */
  ramDir: z.string().startsWith('/', 'must be an absolute path').default('/dev/shm'),
  /** A trace of the vCPUs' threads around each epoch goes to this file at the end. */
  trace: z.string().min(1).optional(),
});
export type PrimaryCommandSettings = z.output<typeof primaryCommandSettings>;

export const backupCommandSettings = backupSettings.extend(daemonKeys);
export type BackupCommandSettings = z.output<typeof backupCommandSettings>;

export interface Flag {
  readonly flag: string;
  readonly help: string;
  /** Flag's text to the setting's value; default: the text. */
  readonly parse?: (text: string, flag: string) => unknown;
  /** The flag's text where it is given without a value. */
  readonly preset?: string;
  /** May be given several times; the values are collected. */
  readonly repeatable?: boolean;
  /** Default value to the text in the help; default: as it is. */
  readonly show?: (value: never) => string;
}

export type FlagTable = Readonly<Record<string, Flag>>;

const duration = { parse: parseDurationMs, show: durationText } as const;
const integer = { parse: parseInteger } as const;

const runDir: Flag = { flag: '--run-dir <dir>', help: 'directory for sockets and records, on a tmpfs' };
const diskDir: Flag = {
  flag: '--disk-dir <dir>',
  help: 'directory for what is known of block devices, on stable storage; files have it beside them',
};
const keyFile: Flag = {
  flag: '--key-file <file>',
  help: 'pre-shared key, the same on both hosts (required)',
};
const logLevel: Flag = {
  flag: '--log-level <level>',
  help: `what to log to stderr: ${logLevels.join(', ')}`,
};
const replace = (where: string): Flag => ({
  flag: '--replace <from=to>',
  help: `what is called differently on the ${where} (tap device, image path); repeatable`,
  parse: parseReplacement,
  repeatable: true,
});

export const primaryFlags = {
  backup: { flag: '--backup <host:port>', help: 'the backup to protect the VM onto (required)' },
  keyFile,
  qmp: { flag: '--qmp <socket>', help: 'QMP socket of a VM that runs already' },
  name: { flag: '--name <name>', help: 'name of this daemon in `holdfast status`' },
  intervalMs: {
    flag: '--interval <duration>',
    help: 'from checkpoint to checkpoint, always; without it checkpoints follow the load',
    ...duration,
  },
  minIntervalMs: {
    flag: '--min-interval <duration>',
    help: 'between two checkpoints at least, also where output waits',
    ...duration,
  },
  maxIntervalMs: {
    flag: '--max-interval <duration>',
    help: 'between two checkpoints at most, also of an idle guest',
    ...duration,
  },
  pauseBudgetMs: {
    flag: '--pause-budget <duration>',
    help: 'a checkpoint is taken before what is dirty makes its pause longer than this',
    ...duration,
  },
  delayBudgetMs: {
    flag: '--delay-budget <duration>',
    help: "what holding may add to the guest's replies (default: 10ms; where the gate does not see output, a checkpoint every 25ms)",
    ...duration,
  },
  captureMode: { flag: '--capture <mode>', help: `how dirty pages are captured: ${choices('captureMode')}` },
  speculate: {
    flag: '--speculate <when>',
    help: `stage and send dirty pages before the pause, while the VM runs: ${choices('speculate')}`,
  },
  deviceState: {
    flag: '--device-state <path>',
    help: `how device state is saved: ${choices('deviceState')}`,
  },
  sender: { flag: '--sender <strategy>', help: `how pages are sent: ${choices('sender')}` },
  streams: { flag: '--streams <n>', help: 'connections over which the pages are spread', ...integer },
  verify: {
    flag: '--verify <on|off>',
    help: "on: each checkpoint's digest is compared before it counts; off: bytes damaged on the way go unnoticed",
    parse: parseSwitch,
    show: switchText,
  },
  gate: { flag: '--gate <gate>', help: `what holds the guest's output: ${choices('gate')}` },
  heldMiB: {
    flag: '--held-max <size>',
    help: 'limit of the output that a relay of a launched VM holds; at it the guest has to wait',
    parse: parseSizeMiB,
    show: (mib: number) => `${mib}M`,
  },
  guestClock: {
    flag: '--guest-clock <how>',
    help: `whether the guest's clock makes up for the pauses: ${choices('guestClock')}`,
  },
  onBackupLost: {
    flag: '--on-backup-lost <policy>',
    help: 'hold: stop the VM until a backup is back; release: run on unprotected',
  },
  heartbeatIntervalMs: { flag: '--heartbeat-interval <duration>', help: 'between heartbeats', ...duration },
  heartbeatTimeoutMs: {
    flag: '--heartbeat-timeout <duration>',
    help: 'silence after which the other side counts as dead, for both sides',
    ...duration,
  },
  retryMs: { flag: '--retry <duration>', help: 'between attempts to reach a lost backup', ...duration },
  ackTimeoutMs: {
    flag: '--ack-timeout <duration>',
    help: 'an epoch not acknowledged for so long means that the backup is lost',
    ...duration,
  },
  connectTimeoutMs: { flag: '--connect-timeout <duration>', help: 'for one connection attempt', ...duration },
  stagingMiB: {
    flag: '--staging <size>',
    help: 'limit of the staging memory; a larger dirty set is sent while the VM is paused',
    parse: parseSizeMiB,
    show: (mib: number) => `${mib}M`,
  },
  copyThreads: { flag: '--copy-threads <n>', help: 'threads that copy during the pause', ...integer },
  baseRoundsMax: { flag: '--base-rounds <n>', help: 'limit of live rounds of the first copy', ...integer },
  diskDir,
  ringMiB: {
    flag: '--ring-size <size>',
    help: 'log of each disk of a launched VM; a guest that writes faster than the link takes it has to wait',
    parse: parseSizeMiB,
    show: (mib: number) => `${mib}M`,
  },
  moveDisks: {
    flag: '--move-disks <on|off>',
    help: 'on: the disks of a running VM are moved to disk servers, without a restart',
    parse: parseSwitch,
    show: switchText,
  },
  replace: replace('backup'),
  ramDir: { flag: '--ram-dir <dir>', help: "tmpfs or hugetlbfs for a launched VM's RAM" },
  trace: {
    flag: '--trace <file>',
    help: 'record which core ran each vCPU around the epochs; written at the end (.html, .json)',
  },
  runDir,
  logLevel,
} as const satisfies Record<Exclude<keyof PrimaryCommandSettings, 'qemu'>, Flag>;

export const backupFlags = {
  listen: { flag: '--listen <host:port>', help: 'address to wait for a primary on (required)' },
  keyFile,
  name: { flag: '--name <name>', help: 'name of this daemon in `holdfast status`' },
  bulkPort: {
    flag: '--bulk-port <port>',
    help: 'first of two ports for page data; 0: any free ones',
    ...integer,
  },
  takeover: { flag: '--takeover <how>', help: 'auto, or manual: wait for `holdfast takeover`' },
  connectionGraceMs: {
    flag: '--connection-grace <duration>',
    help: 'how long a primary whose connection closed may come back',
    ...duration,
  },
  reconnectGraceMs: {
    flag: '--reconnect-grace <duration>',
    help: 'the same for a primary that said it would come back',
    ...duration,
  },
  ramDir: { flag: '--ram-dir <dir>', help: 'tmpfs or hugetlbfs for the replica of guest RAM' },
  diskDir,
  journalMiB: {
    flag: '--journal-size <size>',
    help: "of each disk: what the primary has sent and is not yet in the replica's image",
    parse: parseSizeMiB,
    show: (mib: number) => `${mib}M`,
  },
  adoptDisks: {
    flag: '--adopt-disks <on|off>',
    help: 'on: images that are there already, and are no replicas, may be overwritten',
    parse: parseSwitch,
    show: switchText,
  },
  qemu: { flag: '--qemu <path>', help: "QEMU to use instead of the one of the primary's name on PATH" },
  replace: replace('host of this backup'),
  runDir,
  logLevel,
} as const satisfies Record<keyof BackupCommandSettings, Flag>;

function choices(
  key: 'captureMode' | 'speculate' | 'deviceState' | 'sender' | 'gate' | 'guestClock',
): string {
  return primarySettings.shape[key].unwrap().options.join(', ');
}

/** Adds a table's flags to a command; defaults in the help come from the schema. */
export const addFlags = (command: Command, table: FlagTable, schema: z.ZodObject): void => {
  for (const [key, { flag, help, show, repeatable, parse, preset }] of Object.entries(table)) {
    const value = defaultOf(schema, key);
    const shown = value === undefined || Array.isArray(value) ? undefined : showDefault(value, show);
    const option = new Option(flag, shown === undefined ? help : `${help} (default: ${shown})`);
    const name = longName(flag);
    if (preset !== undefined) option.preset(preset);
    option.argParser((text: string, earlier: unknown) => {
      const parsed = parse === undefined ? text : parse(text, name);
      return repeatable === true ? [...((earlier as unknown[] | undefined) ?? []), parsed] : parsed;
    });
    command.addOption(option);
  }
  command.option('--config <file>', 'JSON file with the same settings; flags come before it');
};

const showDefault = (value: unknown, show: Flag['show']): string =>
  show === undefined ? String(value) : (show as (value: unknown) => string)(value);

const defaultOf = (schema: z.ZodObject, key: string): unknown => {
  const field = schema.shape[key];
  return field instanceof z.ZodDefault ? field.def.defaultValue : undefined;
};

const longName = (flag: string): string => flag.slice(0, flag.indexOf(' '));

/** `--run-dir <dir>` to the name under which commander keeps it: `runDir`. */
const attributeName = (flag: string): string => new Option(flag).attributeName();

/**
 * The settings of a daemon's command line and its config file, checked.
 * @throws ConfigError that names the flag, or the file and the key in it
 */
export const gatherSettings = async <S extends z.ZodObject>(
  schema: S,
  table: FlagTable,
  flags: Readonly<Record<string, unknown>>,
  positional: Readonly<Record<string, unknown>> = {},
): Promise<z.output<S>> => {
  const given: Record<string, unknown> = { ...positional };
  for (const [key, { flag }] of Object.entries(table)) {
    const value = flags[attributeName(flag)];
    if (value !== undefined) given[key] = value;
  }
  const fileName = flags.config as string | undefined;
  const file = fileName === undefined ? {} : await readConfigFile(fileName);
  const merged: Record<string, unknown> = { ...file, ...given };
  if (Array.isArray(file.replace) && Array.isArray(given.replace)) {
    merged.replace = [...(given.replace as Replacement[]), ...file.replace]; // the first match counts
  }
  const result = schema.safeParse(merged);
  if (result.success) return result.data;
  const messages = result.error.issues.map((issue) => describeIssue(issue, { given, file, fileName, table }));
  throw new ConfigError(messages.join('; '), { details: { issues: result.error.issues } });
};

interface Sources {
  readonly given: Readonly<Record<string, unknown>>;
  readonly file: Readonly<Record<string, unknown>>;
  readonly fileName: string | undefined;
  readonly table: FlagTable;
}

const describeIssue = (issue: z.core.$ZodIssue, sources: Sources): string => {
  const { given, file, fileName, table } = sources;
  if (issue.code === 'unrecognized_keys' && issue.path.length === 0) {
    return `${fileName}: unknown key ${issue.keys.map((key) => `'${key}'`).join(', ')}`;
  }
  const key = String(issue.path[0] ?? '');
  const flag = table[key]?.flag;
  if (key in given) return `${flag === undefined ? key : longName(flag)}: ${issue.message}`;
  if (key in file) return `${fileName}: ${issue.path.map(String).join('.')}: ${issue.message}`;
  return `${flag ?? key} is required (or '${key}' in a config file)`;
};

/** Paths in a config file that are not absolute are meant from the file's own directory. */
const readConfigFile = async (path: string): Promise<Readonly<Record<string, unknown>>> => {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new ConfigError(`--config: cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${path}: not JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ConfigError(`${path}: must hold one JSON object`);
  }
  const settings: Record<string, unknown> = { ...value };
  for (const key of ['keyFile', 'qmp', 'trace']) {
    const found = settings[key];
    if (typeof found === 'string' && found !== '') settings[key] = resolve(dirname(path), found);
  }
  return settings;
};
