/**
 * What a running VM is made of, as one plain object: the ground on which
 * pre-flight (preflight.ts) decides and the standby is built.
 *
 * Sources: QMP, two HMP tables that QMP lacks (`info ramblock`, `info
 * network`), and /proc/PID. Nothing is changed and the VM is not stopped.
 */

import { readdir, readFile, readlink, statfs } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type { DiskServerRecord } from '../disk/disk-files.js';
import { VmGoneError } from '../errors.js';
import { HUGETLBFS_MAGIC, TMPFS_MAGIC } from '../file-systems.js';
import type { NativeBinding, RamMapping } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import type { CommandAnswer } from '../qmp/commands.js';
import { versionText } from '../qmp/recipes.js';
import { type CommandOption, listValue, parseArguments } from './command-line.js';
import { describeDrives } from './drives.js';
import { HANDED } from './handed-ram.js';
import { knownArguments } from './known-arguments.js';
import { identifyProcess, type ProcessIdentity } from './process.js';

export interface MemoryBackend {
  readonly id: string;
  /** memory-backend-file, -memfd, -ram, … */
  readonly type: string;
  readonly sizeBytes: number;
  readonly shared: boolean;
  /** The file's name as configured; undefined for backends without one. */
  readonly path?: string | undefined;
  /** Where QEMU has it mapped; undefined if no file-backed mapping of this size was found. */
  readonly mapping?: RamMapping | undefined;
  readonly fileSystem?: 'tmpfs' | 'hugetlbfs' | 'other' | undefined;
}

export interface RamBlock {
  readonly name: string;
  readonly usedBytes: number;
}

export interface Drive {
  /** The name a person knows it by: drive id, device path or node name. */
  readonly name: string;
  readonly readOnly: boolean;
  readonly format: string;
  readonly file: string;
  /** Of the block node that the device has; undefined in QEMUs that don't tell. */
  readonly nodeName?: string | undefined;
  /** QEMU never flushes it, also when it stops the VM (cache=unsafe). */
  readonly noFlush?: boolean | undefined;
  /** It goes past the host's page cache (cache=none, directsync). */
  readonly direct?: boolean | undefined;
  /** The disk server that it is on (docs/disk.md), as recorded, if it is on one. */
  readonly server?: DiskServerRecord | undefined;
}

export interface Device {
  /** undefined for devices without an id. */
  readonly id?: string | undefined;
  readonly type: string;
  /** Part of the machine, not asked for by -device. */
  readonly builtIn: boolean;
}

export interface Nic {
  readonly name: string;
  readonly model: string;
  readonly queues: number;
}

export interface Netdev {
  readonly id: string;
  /** tap, user, stream, vhost-user, … */
  readonly type: string;
  readonly queues: number;
  readonly vhost: boolean;
}

export interface VmDescription {
  readonly process: ProcessIdentity;
  readonly binary: string;
  /** Arguments as started, without the binary; after a hand-off, as they would be now (known-arguments.ts). */
  readonly argv: readonly string[];
  /** Paths in argv are relative to this. */
  readonly cwd: string;
  readonly name?: string | undefined;
  readonly qemuVersion: string;
  readonly accelerator: 'kvm' | 'tcg';
  readonly vcpus: number;
  /** Thread of each vCPU, by its index; one for all under TCG with thread=single. */
  readonly vcpuThreads: readonly { readonly 'cpu-index': number; readonly 'thread-id': number }[];
  /** With its version, aliases resolved: pc-q35-7.2, not q35. */
  readonly machineType: string;
  readonly ramBytes: number;
  readonly memoryBackends: readonly MemoryBackend[];
  readonly ramBlocks: readonly RamBlock[];
  readonly drives: readonly Drive[];
  readonly devices: readonly Device[];
  readonly nics: readonly Nic[];
  readonly netdevs: readonly Netdev[];
  readonly chardevs: readonly { readonly id: string; readonly backend: string }[];
  /** Types of memory that is plugged into slots: dimm, nvdimm, virtio-mem, … */
  readonly memoryDevices: readonly string[];
  /** Device files the process holds open that mean a data path outside QEMU: /dev/vhost-net, /dev/vfio/… */
  readonly hostDevices: readonly string[];
  /** Ids of devices and netdevs that are not in argv: they were added later. */
  readonly hotplugged: readonly string[];
  readonly confidentialGuest: boolean;
  /** Why QEMU itself would refuse to migrate, in its own words. */
  readonly migrationBlockers: readonly string[];
}

export interface DescribeOptions {
  readonly qmp: QmpClient;
  /** QEMU's process id: native.peerPid(qmp.socketFd). */
  readonly pid: number;
  readonly findRamMappings: NativeBinding['findRamMappings'];
}

/**
 * Describes the VM.
 *
 * @throws QmpError, QmpConnectionError; VmGoneError if the process ended meanwhile.
 */
export const describeVm = async ({ qmp, pid, findRamMappings }: DescribeOptions): Promise<VmDescription> => {
  const reading = describeProcess(pid);
  reading.catch(() => {}); // awaited below; QEMU's own refusals come first
  // In one go: for each way there and back QEMU's main loop has to get its turn.
  const [answers, lists] = await Promise.all([
    Promise.all(
      qmp.pipeline([
        { execute: 'query-name' },
        { execute: 'query-kvm' },
        { execute: 'query-cpus-fast' },
        { execute: 'qom-get', arguments: { path: '/machine', property: 'type' } },
        { execute: 'query-memory-size-summary' },
        { execute: 'query-memdev' },
        { execute: 'human-monitor-command', arguments: { 'command-line': 'info ramblock' } },
        { execute: 'human-monitor-command', arguments: { 'command-line': 'info network' } },
        { execute: 'query-block' },
        { execute: 'query-chardev' },
        { execute: 'query-memory-devices' },
        { execute: 'query-migrate' },
      ]),
    ),
    Promise.all(qmp.pipeline(CONTAINERS.map((path) => ({ execute: 'qom-list', arguments: { path } })))),
  ]);
  const [name, kvm, cpus, machine, sizes, memdevs, blocks, network, drives, chardevs, dimms, migration] =
    answers;
  const [named = [], anonymous = [], unattached = [], objects = [], properties = []] = lists;
  const host = await reading;
  const options = parseArguments(host.argv);
  const devices = devicesOf({ named, anonymous, unattached });
  const { nics, netdevs } = parseNetwork(network, options);
  const [memoryBackends, described, confidentialGuest] = await Promise.all([
    describeBackends(qmp, host, { memdevs, objects }, findRamMappings),
    describeDrives(drives, host),
    isConfidential(qmp, properties),
  ]);
  return {
    ...host,
    name: name.name,
    qemuVersion: versionText(qmp.greeting.version),
    accelerator: kvm.enabled ? 'kvm' : 'tcg',
    vcpus: cpus.length,
    vcpuThreads: cpus,
    machineType: String(machine).replace(/-machine$/, ''),
    ramBytes: sizes['base-memory'],
    memoryBackends,
    ramBlocks: parseRamBlocks(blocks),
    drives: described,
    devices,
    nics,
    netdevs,
    chardevs: chardevs.map(({ label, filename }) => ({ id: label, backend: filename })),
    memoryDevices: dimms.map(({ type }) => type),
    hotplugged: findHotplugged(options, devices, netdevs),
    confidentialGuest,
    migrationBlockers: migration['blocked-reasons'] ?? [],
  };
};

type HostSide = Pick<VmDescription, 'process' | 'binary' | 'argv' | 'cwd' | 'hostDevices'>;

const describeProcess = async (pid: number): Promise<HostSide> => {
  try {
    const [process, commandLine, binary, cwd, hostDevices] = await Promise.all([
      identifyProcess(pid),
      readFile(`/proc/${pid}/cmdline`, 'utf8'),
      readlink(`/proc/${pid}/exe`),
      readlink(`/proc/${pid}/cwd`),
      openHostDevices(pid),
    ]);
    // Each argument ends in NUL, the last one too.
    const argv = (await knownArguments(pid)) ?? commandLine.split('\0').slice(1, -1);
    return { process, binary: binary.replace(/ \(deleted\)$/, ''), argv, cwd, hostDevices };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new VmGoneError(`QEMU (process ${pid}) ended while it was examined`, {
      cause: error,
      details: { pid },
    });
  }
};

const OUTSIDE_DATA_PATH = /^\/dev\/(vhost-|vfio\/|vfio$|iommu$|sev$|sgx_)/;

/** What a process has open is the proof; the command line is only a claim. */
const openHostDevices = async (pid: number): Promise<string[]> => {
  const fds = await readdir(`/proc/${pid}/fd`);
  const targets = await Promise.all(fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')));
  return [...new Set(targets.filter((target) => OUTSIDE_DATA_PATH.test(target)))].sort();
};

const CHILD_TYPE = /^child<(.*)>$/;

/** What QEMU's object tree lists under a path. */
type Listed = CommandAnswer<'qom-list'>;

/** Devices with an id, those without, those of the machine; objects; the machine's own properties. */
const CONTAINERS = [
  '/machine/peripheral',
  '/machine/peripheral-anon',
  '/machine/unattached',
  '/objects',
  '/machine',
] as const;

const children = (listed: Listed): { name: string; type: string }[] =>
  listed.flatMap(({ name, type }) => {
    const child = CHILD_TYPE.exec(type)?.[1];
    return child === undefined ? [] : [{ name, type: child }];
  });

const devicesOf = ({
  named,
  anonymous,
  unattached,
}: Readonly<Record<'named' | 'anonymous' | 'unattached', Listed>>): Device[] => [
  ...children(named).map(({ name, type }) => ({ id: name, type, builtIn: false })),
  ...children(anonymous).map(({ type }) => ({ type, builtIn: false })),
  // Beside devices this container holds interrupt lines and memory regions.
  ...children(unattached)
    .filter(({ name }) => name.startsWith('device['))
    .map(({ type }) => ({ type, builtIn: true })),
];

interface Memdev {
  readonly id?: string | undefined;
  readonly size: number;
  readonly share: boolean;
}

const describeBackends = async (
  qmp: QmpClient,
  host: HostSide,
  { memdevs, objects }: { readonly memdevs: readonly Memdev[]; readonly objects: Listed },
  findRamMappings: NativeBinding['findRamMappings'],
): Promise<MemoryBackend[]> => {
  const types = new Map(children(objects).map(({ name, type }) => [name, type]));
  const smallest = Math.min(...memdevs.map(({ size }) => size));
  const mappings = memdevs.length === 0 ? [] : await findRamMappings(host.process.pid, smallest);
  return Promise.all(
    memdevs.map(async ({ id = '', size, share }) => {
      const type = types.get(id) ?? 'unknown';
      const path =
        type === 'memory-backend-file'
          ? String(await qmp.execute('qom-get', { path: `/objects/${id}`, property: 'mem-path' }))
          : undefined;
      const mapping = findMapping(mappings, size, path === undefined ? undefined : resolve(host.cwd, path));
      return {
        id,
        type,
        sizeBytes: size,
        shared: share,
        path,
        mapping,
        fileSystem: mapping === undefined ? undefined : await fileSystemOf(host.process.pid, mapping),
      };
    }),
  );
};

/** mem-path names the file, as it was once, or a directory in which QEMU made one. Hugetlbfs rounds the size up. */
export const findMapping = <Mapping extends Pick<RamMapping, 'sizeBytes' | 'path'>>(
  mappings: readonly Mapping[],
  sizeBytes: number,
  path: string | undefined,
): Mapping | undefined => {
  const large = mappings.filter((mapping) => mapping.sizeBytes >= sizeBytes);
  if (path === undefined) return large.length === 1 ? large[0] : undefined;
  return (
    large.find((mapping) => mapping.path === path) ??
    large.find((mapping) => mapping.path + HANDED === path) ??
    large.find((mapping) => dirname(mapping.path) === path) ??
    // The path may go through a symbolic link: /proc shows where it led.
    (large.length === 1 ? large[0] : undefined)
  );
};

const fileSystemOf = async (pid: number, mapping: RamMapping): Promise<MemoryBackend['fileSystem']> => {
  if (mapping.path.startsWith('/memfd:')) return mapping.pageSize > 4096 ? 'hugetlbfs' : 'tmpfs';
  // As QEMU sees it: it may live in another mount namespace.
  const path = `/proc/${pid}/root${mapping.deleted ? dirname(mapping.path) : mapping.path}`;
  const { type } = await statfs(path).catch(() => ({ type: 0 }));
  if (type === TMPFS_MAGIC) return 'tmpfs';
  return type === HUGETLBFS_MAGIC ? 'hugetlbfs' : 'other';
};

/** HMP `info ramblock`: name, page size, offset, used, total, and in newer QEMUs more. */
export const parseRamBlocks = (table: string): RamBlock[] =>
  table.split(/\r?\n/).flatMap((line) => {
    const match = /^\s*(\S.*?)\s+\d+ [KMGT]iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x[0-9a-f]+/i.exec(line);
    return match === null ? [] : [{ name: match[1]!, usedBytes: Number.parseInt(match[2]!, 16) }];
  });

/** HMP `info network`: one line per queue of each NIC and of each netdev; filters have other lines. */
export const parseNetwork = (
  table: string,
  options: readonly CommandOption[],
): { nics: Nic[]; netdevs: Netdev[] } => {
  const nics = new Map<string, Nic>();
  const netdevs = new Map<string, Netdev>();
  for (const line of table.split(/\r?\n/)) {
    const match = /^\s*(?:\\ )?(\S+): index=(\d+),type=([^,]+),?(.*)$/.exec(line);
    if (match === null) continue;
    const [, name, index, type, info] = match as unknown as [string, string, string, string, string];
    const queues = Number(index) + 1;
    if (type === 'nic') {
      const model = /model=([^,]+)/.exec(info)?.[1] ?? 'unknown';
      nics.set(name, { name, model, queues: Math.max(queues, nics.get(name)?.queues ?? 0) });
    } else if (type !== 'hubport') {
      const claimed = options.find(
        (option) => isNetdev(option) && listValue(option.value, 'id') === name,
      )?.value;
      const asked = Number(listValue(claimed, 'queues') ?? listValue(claimed, 'fds')?.split(':').length ?? 1);
      const vhost = listValue(claimed, 'vhost') === 'on' || listValue(claimed, 'vhostforce') === 'on';
      netdevs.set(name, {
        id: name,
        type,
        queues: Math.max(queues, asked, netdevs.get(name)?.queues ?? 0),
        vhost,
      });
    }
  }
  return { nics: [...nics.values()], netdevs: [...netdevs.values()] };
};

const isNetdev = ({ name }: CommandOption): boolean => name === 'netdev' || name === 'nic' || name === 'net';

const findHotplugged = (
  options: readonly CommandOption[],
  devices: readonly Device[],
  netdevs: readonly Netdev[],
): string[] => {
  const ids = (names: readonly string[]): Set<string | undefined> =>
    new Set(options.filter(({ name }) => names.includes(name)).map(({ value }) => listValue(value, 'id')));
  const ofDevices = ids(['device', 'fsdev', 'virtfs', 'drive']);
  const ofNetdevs = ids(['netdev', 'nic', 'net']);
  // -nic and -net without an id get names such as `#net012` or `user.0`.
  const unnamed = options.some(
    ({ name, value }) => (name === 'nic' || name === 'net') && !listValue(value, 'id'),
  );
  const isOwnName = (id: string): boolean => id.startsWith('#') || (unnamed && /\.\d+$/.test(id));
  return [
    ...devices.flatMap(({ id }) => (id === undefined || ofDevices.has(id) ? [] : [id])),
    ...netdevs.flatMap(({ id }) => (ofNetdevs.has(id) || isOwnName(id) ? [] : [id])),
  ];
};

/** SEV, TDX and the like: encrypted RAM means nothing to another host. */
const isConfidential = async (qmp: QmpClient, properties: Listed): Promise<boolean> => {
  const present = new Set(properties.map(({ name }) => name));
  const asked = ['confidential-guest-support', 'memory-encryption'].filter((name) => present.has(name));
  const values = await Promise.all(
    asked.map((property) => qmp.execute('qom-get', { path: '/machine', property })),
  );
  return values.some((value) => typeof value === 'string' && value !== '');
};
