/**
 * The command line of the QEMU that takes a running VM over, beside the one that has it. Pure.
 *
 *   P's argv ──► argv    as Q is started: waits for the state, RAM is P's file, what only one of the two can have
 *            │           (sockets on which it listens, its pid file) under a temporary name
 *            ├─► known   the same, as it is true afterwards, when Q has P's names: what describes the VM from then on
 *            └─► moves   the names
 *
 * What cannot be had by two QEMUs, nor given a name of its own for a moment, is refused.
 */
import { resolve } from 'node:path';
import { ConfigError } from '../errors.js';
import { blockOption, isTree, textOf } from '../vm/block-nodes.js';
import {
  type CommandOption,
  isJson,
  isMachine,
  isOn,
  listValue,
  overReplica,
  parseArguments,
  parseJson,
  parseList,
  renderArguments,
  renderList,
  type ValuePart,
} from '../vm/command-line.js';
import { unixAddressOf } from '../vm/netdevs.js';
import type { Refusal } from '../vm/preflight.js';

/** Ending of a name that the new QEMU has until the VM is its own. */
const TEMPORARY = '.new';
/** sockaddr_un.sun_path without its NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

export interface MovedName {
  readonly kind: 'socket' | 'pidfile';
  /** As the command line has it; relative to QEMU's working directory if it is relative. */
  readonly path: string;
  readonly temporary: string;
  /** Id of the network backend that listens there. */
  readonly netdev?: string;
}

export interface TapBackend {
  readonly netdev: string;
  readonly tap: string;
}

export interface HandoffCommandLine {
  readonly argv: readonly string[];
  readonly known: readonly string[];
  readonly moves: readonly MovedName[];
  /** Taps that the new QEMU is to have by another name at first. */
  readonly taps: readonly TapBackend[];
  readonly refused: readonly Refusal[];
}

export interface HandoffCommandOptions {
  /** Paths of the memory backends as the new QEMU opens them, by id. */
  readonly ram: ReadonlyMap<string, string>;
  /** With its version: what the alias means in the new QEMU may be another one. */
  readonly machineType: string;
  readonly tapNameOf: (netdev: string) => string;
  /** Overlays that the new QEMU has over images at first, by the image's absolute path. */
  readonly overlays?: ReadonlyMap<string, string>;
  /** Relative paths are meant from here. */
  readonly cwd?: string;
}

/** What starts, ends or loads the VM, and is the launcher's to say. */
const DROPPED = new Set('daemonize incoming S loadvm mem-prealloc'.split(' '));

/** Options whose value is a character device as it was written before -chardev. */
const LEGACY_CHARDEVS = new Set('qmp qmp-pretty monitor serial parallel debugcon'.split(' '));

export const forHandoff = (argv: readonly string[], options: HandoffCommandOptions): HandoffCommandLine => {
  const plan = new Plan(options);
  const kept = parseArguments(argv).filter(({ name }) => !DROPPED.has(name));
  const known = pinMachine(
    kept.map((option) => plan.overRam(option)),
    options.machineType,
  );
  const started = known.flatMap((option) => plan.rewrite(option));
  plan.refuseTerminal(known);
  const missing = [...options.ram.keys()].filter((id) => !plan.backends.has(id));
  if (missing.length > 0) {
    throw new ConfigError(`the command line has no memory backend ${missing.join(', ')}, where guest RAM is`);
  }
  const notOverlaid = [...(options.overlays ?? [])].filter(([, overlay]) => !plan.overlaid.has(overlay));
  for (const [image] of notOverlaid) {
    const cure = 'Name it as -drive file=…,format=raw.';
    plan.refused.push({
      what: image,
      reason: 'It cannot be put beneath an overlay on the command line.',
      cure,
    });
  }
  return {
    argv: renderArguments([...started, { name: 'S' }, { name: 'incoming', value: 'defer' }]),
    known: renderArguments(known),
    moves: plan.moves,
    taps: plan.taps,
    refused: plan.refused,
  };
};

/** Where the new QEMU has its monitor: the one that is `path` afterwards. */
export const temporaryOf = (moves: readonly MovedName[], path: string, cwd: string): string | undefined => {
  const found = moves.find((move) => resolve(cwd, move.path) === resolve(path));
  return found === undefined ? undefined : resolve(cwd, found.temporary);
};

class Plan {
  readonly moves: MovedName[] = [];
  readonly taps: TapBackend[] = [];
  readonly refused: Refusal[] = [];
  readonly backends = new Set<string>();
  readonly overlaid = new Set<string>();
  readonly #options: HandoffCommandOptions;
  #files = 0;

  constructor(options: HandoffCommandOptions) {
    this.#options = options;
  }

  /** A memory backend over P's file, by whatever name. */
  overRam(option: CommandOption): CommandOption {
    const id = option.name === 'object' ? listValue(option.value, 'id') : undefined;
    const path = id === undefined ? undefined : this.#options.ram.get(id);
    if (id === undefined || path === undefined) return option;
    this.backends.add(id);
    return overReplica(asFileBackend(option, path), path);
  }

  /** An option as the new QEMU is started with it. */
  rewrite(option: CommandOption): readonly CommandOption[] {
    const { name, value = '' } = option;
    if (LEGACY_CHARDEVS.has(name)) return this.#legacyChardev(name, value);
    switch (name) {
      case 'chardev':
        return [{ name, value: this.#chardev(value) }];
      case 'netdev':
        return [{ name, value: this.#netdev(value) }];
      case 'pidfile':
        return [{ name, value: this.#move('pidfile', value) }];
      case 'drive':
        this.#refuseWhatIsUnique(name, value);
        return [this.#drive(option)];
      case 'nic':
      case 'net':
        if (value !== 'none')
          this.#refuse(`-${name} ${value}`, 'Only -netdev with a -device can be handed over.');
        return [option];
      default:
        this.#refuseWhatIsUnique(name, value);
        return [option];
    }
  }

  /** -nographic makes QEMU talk to its terminal, where nothing else is said of serial line and monitor. */
  refuseTerminal(options: readonly CommandOption[]): void {
    const has = (...names: readonly string[]): boolean => options.some(({ name }) => names.includes(name));
    if (!has('nographic') || has('nodefaults')) return;
    if (has('serial') && has('monitor', 'mon', 'qmp', 'qmp-pretty')) return;
    this.#refuse(
      '-nographic',
      'Serial line and monitor are on the terminal of the QEMU that runs now.',
      TERMINAL_CURE,
    );
  }

  #legacyChardev(name: string, value: string): readonly CommandOption[] {
    const [, mux = '', rest = ''] = /^(mon:)?(.*)$/s.exec(value) ?? [];
    const what = `-${name} ${value}`;
    if (rest.startsWith('unix:')) {
      const [first, ...parts] = parseList(rest);
      if (!isServer(parts)) return [{ name, value }];
      const temporary = this.#move('socket', (first?.value ?? '').slice('unix:'.length));
      return [{ name, value: mux + renderList([{ value: `unix:${temporary}` }, ...withoutWait(parts)]) }];
    }
    if (
      rest.startsWith('file:') &&
      mux === '' &&
      (name === 'serial' || name === 'parallel' || name === 'debugcon')
    ) {
      // Opened as it stands, the file would be emptied while the other QEMU still writes to it.
      this.#files += 1;
      const id = `holdfast-file${this.#files}`;
      const chardev = [
        { value: 'file' },
        { key: 'id', value: id },
        { key: 'path', value: rest.slice('file:'.length) },
        { key: 'append', value: 'on' },
      ];
      return [
        { name: 'chardev', value: renderList(chardev) },
        { name, value: `chardev:${id}` },
      ];
    }
    if (/^(stdio|pty|vc|msmouse)\b/.test(rest) && rest !== 'vc') this.#refuseTerminalDevice(what);
    if (/^(tcp|telnet|websocket|tn3270):/.test(rest) && isServer(parseList(rest))) this.#refusePort(what);
    if (/^udp:.*@/.test(rest)) this.#refusePort(what);
    return [{ name, value }];
  }

  #chardev(value: string): string {
    const parts = parseList(value);
    const type = listValue(value, 'backend', 'backend');
    const what = `chardev ${listValue(value, 'id') ?? value}`;
    const logged = parts.some(({ key }) => key === 'logfile') ? setKey(parts, 'logappend', 'on') : parts;
    switch (type) {
      case 'file':
        return renderList(setKey(logged, 'append', 'on'));
      case 'socket':
        return renderList(this.#socketChardev(logged, value, what));
      case 'udp':
        if (listValue(value, 'localport') !== undefined) this.#refusePort(what);
        return renderList(logged);
      case 'stdio':
      case 'pty':
        this.#refuseTerminalDevice(what);
        return value;
      default:
        return renderList(logged);
    }
  }

  #socketChardev(parts: readonly ValuePart[], value: string, what: string): readonly ValuePart[] {
    if (listValue(value, 'fd') !== undefined) {
      this.#refuseDescriptor(what);
      return parts;
    }
    if (!isServer(parts)) return parts;
    const path = listValue(value, 'path');
    if (path === undefined) {
      this.#refusePort(what);
      return parts;
    }
    if (listValue(value, 'abstract') === 'on') {
      this.#refuse(what, 'An abstract socket cannot be renamed.', 'Use a socket with a path.');
      return parts;
    }
    return withoutWait(setKey(parts, 'path', this.#move('socket', path)));
  }

  #netdev(value: string): string {
    const type = listValue(value, 'type', 'type') ?? 'unknown';
    const id = listValue(value, 'id') ?? value;
    const what = `netdev ${id} (${type})`;
    for (const key of ['fd', 'fds', 'vhostfd', 'vhostfds']) {
      if (listValue(value, key) !== undefined) {
        this.#refuseDescriptor(what);
        return value;
      }
    }
    switch (type) {
      case 'stream':
        return this.#streamNetdev(value, id, what);
      case 'tap':
        return this.#tapNetdev(value, id, what);
      // Its helper makes another tap on the same bridge.
      case 'bridge':
      case 'hubport':
        return value;
      default:
        this.#refuse(
          what,
          'Connections through it end with the QEMU that runs now.',
          'Use -netdev tap, or let Holdfast launch the VM: its network then goes over a relay.',
        );
        return value;
    }
  }

  #streamNetdev(value: string, netdev: string, what: string): string {
    const path = unixAddressOf(value);
    if (path === undefined || !isOn(listValue(value, 'server'))) {
      this.#refuse(
        what,
        'What it is connected to would have both QEMUs at once, or its port is taken.',
        'Use server=on with a Unix socket, and `holdfast relay`.',
      );
      return value;
    }
    const temporary = this.#move('socket', path, netdev);
    if (isJson(value)) {
      const json = parseJson(value);
      return JSON.stringify({ ...json, addr: { ...(json.addr as object), path: temporary } });
    }
    return renderList(setKey(parseList(value), 'addr.path', temporary));
  }

  #tapNetdev(value: string, netdev: string, what: string): string {
    const tap = listValue(value, 'ifname');
    const scripts = ['script', 'downscript'].map((key) => listValue(value, key));
    if (tap === undefined || isJson(value) || scripts.some((script) => script !== 'no')) {
      this.#refuse(
        what,
        'It has no fixed name, or QEMU runs scripts for it.',
        'Use -netdev tap,ifname=…,script=no,downscript=no, or -netdev bridge.',
      );
      return value;
    }
    this.taps.push({ netdev, tap });
    return renderList(setKey(parseList(value), 'ifname', this.#options.tapNameOf(netdev)));
  }

  #drive(option: CommandOption): CommandOption {
    const { overlays = new Map<string, string>(), cwd = '/' } = this.#options;
    const block = blockOption(option);
    const file = block?.tree.file;
    const image = isTree(file) ? textOf(file.filename) : undefined;
    const overlay = image === undefined ? undefined : overlays.get(resolve(cwd, image));
    if (block === undefined || overlay === undefined) return option;
    this.overlaid.add(overlay);
    Object.assign(block.tree, { file: { filename: overlay }, format: 'qcow2' });
    return block.render();
  }

  #refuseWhatIsUnique(name: string, value: string): void {
    const what = `-${name}${value === '' ? '' : ` ${value}`}`;
    if (
      (name === 'vnc' && value !== 'none') ||
      name === 'spice' ||
      (name === 'display' && /^(vnc|spice)/.test(value))
    ) {
      this.#refusePort(what);
    } else if (name === 's' || (name === 'gdb' && value !== 'none')) {
      this.#refusePort(what);
    } else if (name === 'display' && value.startsWith('curses')) {
      this.#refuseTerminalDevice(what);
    } else if (name === 'snapshot' || (name === 'drive' && isOn(listValue(value, 'snapshot')))) {
      this.#refuse(
        what,
        'What the guest has written is in a file that only the QEMU that runs now can reach.',
      );
    } else if (name === 'readconfig') {
      this.#refuse(what, 'The devices in that file are not looked at.', 'Put them on the command line.');
    } else if (name === 'add-fd' || value.includes('/dev/fdset/')) {
      this.#refuseDescriptor(what);
    }
  }

  #move(kind: MovedName['kind'], path: string, netdev?: string): string {
    const temporary = path + TEMPORARY;
    if (kind === 'socket' && Buffer.byteLength(temporary) > SOCKET_PATH_BYTES_MAX) {
      this.#refuse(path, `Its path is too long for the temporary name ${temporary}.`, 'Use a shorter one.');
    }
    this.moves.push({ kind, path, temporary, ...(netdev === undefined ? {} : { netdev }) });
    return temporary;
  }

  #refuse(what: string, reason: string, cure = 'Start the VM without it.'): void {
    this.refused.push({ what, reason, cure });
  }

  #refusePort(what: string): void {
    this.#refuse(
      what,
      'Only one QEMU can listen on a port, and a port cannot be renamed.',
      'Use a Unix socket.',
    );
  }

  #refuseTerminalDevice(what: string): void {
    this.#refuse(what, 'A terminal stays with the QEMU that runs now.', TERMINAL_CURE);
  }

  #refuseDescriptor(what: string): void {
    this.#refuse(
      what,
      'Whoever started the VM gave it an open descriptor, which the new QEMU would not have.',
      'Let whoever manages the VM upgrade it, or start it with names in place of descriptors.',
    );
  }
}

const TERMINAL_CURE = 'Use a Unix socket or a file: -serial unix:PATH,server=on,wait=off.';

const isServer = (parts: readonly ValuePart[]): boolean =>
  parts.some(({ key, value }) => (key === undefined ? value === 'server' : key === 'server' && isOn(value)));

/** Nobody is there yet to wait for. */
const withoutWait = (parts: readonly ValuePart[]): ValuePart[] => [
  ...parts.filter(
    ({ key, value }) => key !== 'wait' && !(key === undefined && (value === 'nowait' || value === 'wait')),
  ),
  { key: 'wait', value: 'off' },
];

const setKey = (parts: readonly ValuePart[], key: string, value: string): ValuePart[] => {
  const rest = parts.filter((part) => part.key !== key && !(part.key === undefined && part.value === key));
  return [...rest, { key, value }];
};

/** A memfd has no name, so it is opened as a file: same id, same RAM block. */
const asFileBackend = (option: CommandOption, path: string): CommandOption => {
  const { name, value = '' } = option;
  const ofMemfd = new Set(['seal', 'hugetlb', 'hugetlbsize']);
  if (isJson(value)) {
    const object = parseJson(value);
    if (object['qom-type'] !== 'memory-backend-memfd') return option;
    const kept = Object.entries(object).filter(([key]) => !ofMemfd.has(key));
    return {
      name,
      value: JSON.stringify({
        ...Object.fromEntries(kept),
        'qom-type': 'memory-backend-file',
        'mem-path': path,
        share: true,
      }),
    };
  }
  if (listValue(value, 'qom-type', 'qom-type') !== 'memory-backend-memfd') return option;
  const parts = parseList(value).filter(
    ({ key, value: word }, index) =>
      !(index === 0 && key === undefined) &&
      key !== 'qom-type' &&
      !ofMemfd.has(key ?? word) &&
      (key ?? word) !== 'share',
  );
  return {
    name,
    value: renderList([
      { value: 'memory-backend-file' },
      ...parts,
      { key: 'mem-path', value: path },
      { key: 'share', value: 'on' },
    ]),
  };
};

/** The versioned machine type in place of an alias, or of none. */
const pinMachine = (options: readonly CommandOption[], type: string): CommandOption[] => {
  const pinned = options.map((option): CommandOption => {
    if (!isMachine(option) || option.value === undefined) return option;
    if (isJson(option.value)) {
      const { type: _alias, ...properties } = parseJson(option.value);
      return { name: 'machine', value: JSON.stringify({ ...properties, type }) };
    }
    const parts = parseList(option.value).filter(
      ({ key }, index) => key !== 'type' && !(index === 0 && key === undefined),
    );
    return { name: 'machine', value: renderList([{ key: 'type', value: type }, ...parts]) };
  });
  return pinned.some(isMachine) ? pinned : [{ name: 'machine', value: `type=${type}` }, ...pinned];
};
