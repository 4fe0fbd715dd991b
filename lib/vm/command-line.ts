/**
 * QEMU command lines as data: parsed, changed, written back. Pure.
 *
 *   user's argv ──forPrimary──► RAM in a file we name, a monitor of ours
 *   primary's argv ──forStandby──► same machine over the replica, -incoming defer
 *
 * `argv` never includes the binary. Grammar: qemu-options.hx and
 * util/keyval.c: `-name value`, where most values are lists `a,key=b,…` with
 * `,,` for a comma; some options take JSON instead, some a plain string.
 */

import { ConfigError } from '../errors.js';

/** One option, or a positional argument (a disk image) with an empty name. */
export interface CommandOption {
  /** Without its dashes. */
  readonly name: string;
  readonly value?: string | undefined;
}

/** Options that take no value (qemu-options.hx, 7.2 to 10.0). All others take one. */
const FLAGS = new Set(
  (
    'h help version S s snapshot nographic portrait full-screen no-quit ctrl-grab alt-grab no-frame usb ' +
    'enable-kvm enable-fips daemonize no-reboot no-shutdown nodefaults no-user-config nouserconfig ' +
    'no-acpi no-hpet no-fd-bootchk win2k-hack singlestep one-insn-per-tb mem-prealloc preconfig old-param ' +
    'semihosting enable-sync-profile only-migratable xen-attach xen-domid-restrict nouserconfig no-kvm ' +
    'no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection tdf'
  ).split(' '),
);

/** Options whose value is one string: commas in it mean nothing. */
const PLAIN = new Set(
  (
    'append kernel initrd dtb bios pidfile D d L loadvm mem-path incoming uuid hda hdb hdc hdd cdrom ' +
    'fda fdb mtdblock sd pflash runas chroot k writeconfig g shim'
  ).split(' '),
);

/** Options whose first word is a type, never a path. */
const TYPE_FIRST = new Set(
  (
    'machine M device object netdev nic net chardev accel cpu smp m blockdev audiodev tpmdev fsdev virtfs ' +
    'display vga global rtc boot numa sandbox action icount watchdog-action name'
  ).split(' '),
);

/** Keys whose values are names inside this command line, never of the host. */
const NAME_KEYS = new Set(
  'id netdev chardev drive memdev memory-backend bus node-name driver mac addr'.split(' '),
);

/** @throws ConfigError if an option lacks its value. */
export const parseArguments = (argv: readonly string[]): CommandOption[] => {
  const options: CommandOption[] = [];
  for (let index = 0; index < argv.length; index++) {
    const word = argv[index]!;
    if (!word.startsWith('-') || word === '-') {
      options.push({ name: '', value: word });
      continue;
    }
    // QEMU takes one dash or two.
    const name = word.replace(/^--?/, '');
    if (FLAGS.has(name)) {
      options.push({ name });
      continue;
    }
    const value = argv[++index];
    if (value === undefined) throw new ConfigError(`QEMU's option -${name} lacks its value`);
    options.push({ name, value });
  }
  return options;
};

export const renderArguments = (options: readonly CommandOption[]): string[] =>
  options.flatMap(({ name, value }) => {
    if (name === '') return [value ?? ''];
    return value === undefined ? [`-${name}`] : [`-${name}`, value];
  });

/** A part of a list value; `key` is undefined for a word without `=`. */
export interface ValuePart {
  readonly key?: string | undefined;
  readonly value: string;
}

/** Splits `a,key=b,,c` into [{a}, {key: 'b,c'}]. */
export const parseList = (value: string): ValuePart[] => {
  if (value === '') return [];
  const words: string[] = [];
  let word = '';
  for (let index = 0; index < value.length; index++) {
    if (value[index] !== ',') {
      word += value[index];
    } else if (value[index + 1] === ',') {
      word += ',';
      index++;
    } else {
      words.push(word);
      word = '';
    }
  }
  words.push(word);
  return words.map((text) => {
    const equals = text.indexOf('=');
    return equals === -1 ? { value: text } : { key: text.slice(0, equals), value: text.slice(equals + 1) };
  });
};

export const renderList = (parts: readonly ValuePart[]): string =>
  parts
    .map(({ key, value }) => (key === undefined ? value : `${key}=${value}`).replaceAll(',', ',,'))
    .join(',');

/** The value of `key` in an option's list or JSON; `first` is the key that the first bare word stands for. */
export const listValue = (value: string | undefined, key: string, first?: string): string | undefined => {
  if (value === undefined) return undefined;
  if (isJson(value)) {
    const found = parseJson(value)[key];
    return found === undefined
      ? undefined
      : typeof found === 'boolean'
        ? found
          ? 'on'
          : 'off'
        : String(found);
  }
  let found: string | undefined;
  parseList(value).forEach((part, index) => {
    if (part.key === key || (part.key === undefined && index === 0 && key === first)) found = part.value;
  });
  return found;
};

/** Whether a switch is on, as QEMU spells it in lists and in JSON. */
export const isOn = (value: unknown): boolean =>
  value === true || value === 'on' || value === 'yes' || value === 'true';

export const isJson = (value: string): boolean => value.startsWith('{');

export const parseJson = (value: string): Record<string, unknown> => {
  try {
    return JSON.parse(value) as Record<string, unknown>;
  } catch (error) {
    throw new ConfigError(`a QEMU option holds malformed JSON: ${value.slice(0, 80)}`, { cause: error });
  }
};

const SIZE_UNITS: Readonly<Record<string, number>> = {
  B: 1,
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
};

/** `512`, `1.5G`, `2048M` in bytes; a bare number counts in `unit` (qemu_strtosz). */
export const parseSize = (text: string, unit: 'B' | 'M'): number => {
  const match = /^(\d+(?:\.\d+)?)([BKMGT]?)$/i.exec(text.trim());
  const bytes =
    match === null ? Number.NaN : Number(match[1]) * SIZE_UNITS[(match[2] || unit).toUpperCase()]!;
  if (!Number.isFinite(bytes) || bytes <= 0) throw new ConfigError(`'${text}' is not a memory size (-m)`);
  return Math.floor(bytes);
};

/** QEMU's default_ram_size when there is no -m. */
const DEFAULT_RAM_BYTES = 128 * 2 ** 20;
/** QEMU rounds the size of RAM up to this (softmmu/vl.c). */
const RAM_ALIGN_BYTES = 8192;
/** Id of the RAM backend we add, and so the name of its RAM block in the stream. */
const RAM_ID = 'ram';

export interface PrimaryCommandOptions {
  /** File to keep guest RAM in, on tmpfs or hugetlbfs, if the command line does not name one. */
  readonly ramPath: string;
  /** Our monitor, in addition to those that are there. */
  readonly qmpPath: string;
}

export interface PrimaryCommandLine {
  readonly argv: readonly string[];
  readonly ram: {
    readonly id: string;
    readonly path: string;
    readonly sizeBytes: number;
    /** False if the user's own backend was kept. */
    readonly added: boolean;
  };
}

/**
 * Adds what protection needs: RAM in a shared file (kept as it is if the
 * command line has that already), and a monitor. -daemonize is dropped: the
 * launcher detaches QEMU by itself.
 *
 * @throws ConfigError if the command line puts RAM where it cannot be protected.
 */
export const forPrimary = (argv: readonly string[], options: PrimaryCommandOptions): PrimaryCommandLine => {
  const parsed = parseArguments(argv).filter(({ name }) => name !== 'daemonize');
  for (const { name } of parsed) {
    if (name === 'incoming')
      throw new ConfigError('-incoming: a VM that is still to be loaded has no state to protect');
    if (name === 'mem-path') {
      throw new ConfigError('-mem-path keeps guest RAM in a private mapping', {
        cure: 'Remove it (Holdfast adds a shared backend), or use -object memory-backend-file,share=on.',
      });
    }
  }
  const sizeBytes = ramSize(parsed);
  const named = backendOf(parsed);
  const ram =
    named === undefined
      ? { id: unusedId(parsed), path: options.ramPath, sizeBytes, added: true }
      : keptBackend(parsed, named, sizeBytes);
  const result = ram.added
    ? [
        ...parsed,
        {
          name: 'object',
          value: renderList([
            { value: 'memory-backend-file' },
            { key: 'id', value: ram.id },
            { key: 'size', value: String(sizeBytes) },
            { key: 'mem-path', value: ram.path },
            { key: 'share', value: 'on' },
          ]),
        },
        // A second -machine merges into the first.
        { name: 'machine', value: renderList([{ key: 'memory-backend', value: ram.id }]) },
      ]
    : parsed;
  return { argv: renderArguments([...result, monitor(options.qmpPath)]), ram };
};

/** As it is to be started again: one that has been loaded runs, though its command line says that it waits. */
export const withoutIncoming = (argv: readonly string[]): string[] =>
  renderArguments(parseArguments(argv).filter(({ name }) => name !== 'incoming'));

const monitor = (path: string): CommandOption => ({
  name: 'qmp',
  value: renderList([
    { value: `unix:${path}` },
    { key: 'server', value: 'on' },
    { key: 'wait', value: 'off' },
  ]),
});

export const isMachine = ({ name }: CommandOption): boolean => name === 'machine' || name === 'M';

const ramSize = (options: readonly CommandOption[]): number => {
  const size = options
    .filter(({ name }) => name === 'm')
    .map(({ value }) => listValue(value, 'size', 'size'))
    .findLast((found) => found !== undefined);
  const bytes = size === undefined ? DEFAULT_RAM_BYTES : parseSize(size, 'M');
  return Math.ceil(bytes / RAM_ALIGN_BYTES) * RAM_ALIGN_BYTES;
};

/** Id of the backend that -machine or the only -numa node names. */
const backendOf = (options: readonly CommandOption[]): string | undefined => {
  const byMachine = options
    .filter(isMachine)
    .map(({ value }) => listValue(value, 'memory-backend'))
    .findLast((id) => id !== undefined);
  const byNuma = options
    .filter(({ name }) => name === 'numa')
    .flatMap(({ value }) => listValue(value, 'memdev') ?? []);
  if (byNuma.length > 1) {
    throw new ConfigError('-numa: guest RAM is in several memory backends; only one can be protected', {
      cure: 'Give all NUMA nodes one backend, or none.',
    });
  }
  if (options.some(({ name, value }) => name === 'numa' && listValue(value, 'mem') !== undefined)) {
    throw new ConfigError('-numa node,mem=…: use one memory backend instead');
  }
  return byMachine ?? byNuma[0];
};

const keptBackend = (
  options: readonly CommandOption[],
  id: string,
  sizeBytes: number,
): PrimaryCommandLine['ram'] => {
  const value = options.find((option) => option.name === 'object' && objectId(option) === id)?.value;
  const type = listValue(value, 'qom-type', 'qom-type');
  const path = listValue(value, 'mem-path');
  const share = listValue(value, 'share');
  if (value === undefined) throw new ConfigError(`-machine memory-backend=${id}: there is no such -object`);
  if (type !== 'memory-backend-file' || path === undefined || !isOn(share)) {
    throw new ConfigError(
      `the memory backend '${id}' is not a shared file, so nobody else can read guest RAM`,
      {
        cure: 'Use -object memory-backend-file,share=on,mem-path=… on tmpfs, or name no backend at all.',
        details: { type, share: share ?? 'off' },
      },
    );
  }
  return { id, path, sizeBytes, added: false };
};

const objectId = ({ value }: CommandOption): string | undefined => listValue(value, 'id');

const unusedId = (options: readonly CommandOption[]): string => {
  const used = new Set(options.map(objectIdOrNone));
  let id = RAM_ID;
  for (let suffix = 1; used.has(id); suffix++) id = `${RAM_ID}${suffix}`;
  return id;
};

const objectIdOrNone = (option: CommandOption): string | undefined =>
  option.name === 'object' ? objectId(option) : undefined;

export interface Replacement {
  /** A whole value, or a leading path: `/images` matches `/images` and `/images/disk.raw`. */
  readonly from: string;
  readonly to: string;
}

export interface StandbyCommandOptions {
  /** The replica of guest RAM. */
  readonly ramPath: string;
  readonly qmpPath: string;
  /** Id of the RAM backend; default: the one -machine names. */
  readonly ramId?: string;
  /** Machine type with its version (VmDescription.machineType): the alias may mean another one here. */
  readonly machineType?: string | undefined;
  /** What has another name on this host: tap devices, images, sockets. The first match counts. */
  readonly replacements?: readonly Replacement[];
  readonly pidfile?: string | undefined;
  /** What it will load: Holdfast's composite stream (default), or a whole migration of the other QEMU's. */
  readonly loads?: 'composite' | 'migration';
}

/**
 * Options of the primary that a standby must not have: its monitors and
 * debugger (the sockets and ports may be taken), its pid file, and what would
 * start or load the VM.
 */
const NOT_ON_STANDBY = new Set(
  'qmp qmp-pretty monitor mon pidfile daemonize incoming S s gdb loadvm preconfig mem-prealloc'.split(' '),
);

/** The command line that loads the primary's state over the replica. */
export const forStandby = (argv: readonly string[], options: StandbyCommandOptions): string[] => {
  const all = parseArguments(argv);
  const ramId = options.ramId ?? backendOf(all);
  const backend = all.find((option) => ramId !== undefined && objectIdOrNone(option) === ramId);
  if (backend === undefined) {
    throw new ConfigError('the command line names no memory backend to put the replica in its place');
  }
  const ofMonitors = new Set(
    all.filter(({ name }) => name === 'mon').map(({ value }) => listValue(value, 'chardev', 'chardev')),
  );
  const kept = all
    .filter((option) => !NOT_ON_STANDBY.has(option.name))
    .filter((option) => !(option.name === 'chardev' && ofMonitors.has(listValue(option.value, 'id'))));
  const rewritten = kept
    .map((option) => (option === backend ? option : replaceIn(option, options.replacements ?? [])))
    .map((option) => (option === backend ? overReplica(option, options.ramPath) : option));
  return renderArguments([
    ...standbyMachine(rewritten, options),
    monitor(options.qmpPath),
    { name: 'incoming', value: 'defer' },
    ...(options.pidfile === undefined ? [] : [{ name: 'pidfile', value: options.pidfile }]),
  ]);
};

/**
 * The RAM backend over the replica. Touching all of it at the start (prealloc)
 * would cost seconds; discarding it when a standby ends would destroy the checkpoint.
 */
export const overReplica = ({ name, value = '' }: CommandOption, path: string): CommandOption => {
  const dropped = new Set(['prealloc', 'prealloc-threads', 'prealloc-context', 'discard-data']);
  if (isJson(value)) {
    const object = parseJson(value);
    const kept = Object.entries(object).filter(([key]) => !dropped.has(key));
    return { name, value: JSON.stringify({ ...Object.fromEntries(kept), 'mem-path': path }) };
  }
  const parts = parseList(value).filter(({ key }) => key === undefined || !dropped.has(key));
  return {
    name,
    value: renderList(parts.map((part) => (part.key === 'mem-path' ? { ...part, value: path } : part))),
  };
};

/**
 * One -machine option: the versioned type first, all properties after it.
 * Without suppress-vmdesc QEMU would wait for a description after the devices,
 * which the composite stream does not have; a whole migration has it, or not, as the source says.
 */
const standbyMachine = (
  options: readonly CommandOption[],
  { machineType, loads = 'composite' }: Pick<StandbyCommandOptions, 'machineType' | 'loads'>,
): CommandOption[] => {
  const machines = options.filter(isMachine);
  const type = machineType ?? machines.map(({ value }) => listValue(value, 'type', 'type')).findLast(Boolean);
  const properties = machines
    .flatMap(({ value = '' }) =>
      parseList(value).filter((part, index) => part.key !== undefined || index > 0),
    )
    .filter(({ key }) => key !== 'type' && !(key === 'suppress-vmdesc' && loads === 'composite'));
  const machine: CommandOption = {
    name: 'machine',
    value: renderList([
      ...(type === undefined ? [] : [{ value: type }]),
      ...properties,
      ...(loads === 'composite' ? [{ key: 'suppress-vmdesc', value: 'on' }] : []),
    ]),
  };
  const first = options.findIndex(isMachine);
  const others = options.filter((option) => !isMachine(option));
  return first === -1 ? [machine, ...others] : others.toSpliced(first, 0, machine);
};

/** `unix:/run/a`, `file:/tmp/log`, `pipe:/tmp/p`, `mon:…`: old-style character devices. */
const CHARDEV_PREFIX = /^((?:mon:)?(?:unix|file|pipe|mon):)(.*)$/s;

/** What a value or a path is called where the replacements apply. */
export const replaceText = (text: string, replacements: readonly Replacement[]): string => {
  for (const { from, to } of replacements) {
    if (text === from) return to;
    if (text.startsWith(`${from}/`)) return to + text.slice(from.length);
  }
  const prefixed = CHARDEV_PREFIX.exec(text);
  return prefixed === null ? text : prefixed[1] + replaceText(prefixed[2]!, replacements);
};

const replaceIn = (option: CommandOption, replacements: readonly Replacement[]): CommandOption => {
  const { name, value } = option;
  if (value === undefined || replacements.length === 0) return option;
  if (PLAIN.has(name) || name === '') return { name, value: replaceText(value, replacements) };
  if (isJson(value))
    return { name, value: JSON.stringify(replaceInJson(parseJson(value), '', replacements)) };
  const parts = parseList(value).map((part, index) => {
    const isName = part.key === undefined ? index === 0 && TYPE_FIRST.has(name) : NAME_KEYS.has(part.key);
    return isName ? part : { ...part, value: replaceText(part.value, replacements) };
  });
  return { name, value: renderList(parts) };
};

const replaceInJson = (value: unknown, key: string, replacements: readonly Replacement[]): unknown => {
  if (typeof value === 'string') return NAME_KEYS.has(key) ? value : replaceText(value, replacements);
  if (Array.isArray(value)) return value.map((item) => replaceInJson(item, key, replacements));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([inner, item]) => [inner, replaceInJson(item, inner, replacements)]),
  );
};
