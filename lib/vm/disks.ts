/**
 * Disks on QEMU's command line, for the disk servers. Pure.
 *
 *   -drive file=vda.raw,format=raw,if=none,id=vda,cache=none,aio=native
 *     └─wireDisks──► -drive file.driver=nbd,file.server.type=unix,file.server.path=…/vda.sock,
 *                           file.reconnect-delay=…,format=raw,if=none,id=vda,cache=none
 *                    and a disk server between that socket and vda.raw
 *
 * Only the node that opens the file is another; what lies above it (formats, throttles, names, caches) stays.
 */
import { ConfigError } from '../errors.js';
import { type BlockOption, type BlockTree, blockOption, isTree, textOf } from './block-nodes.js';
import { type CommandOption, isOn, parseArguments, renderArguments } from './command-line.js';
import type { Refusal } from './preflight.js';

/**
 * How long QEMU waits for a server that has gone, before the guest gets errors: a day. It is started again
 * within a moment, or by whoever protects the VM next; a guest that waits loses nothing.
 */
const RECONNECT_DELAY_S = 86_400;

/** A writable disk that QEMU opens by itself. */
export interface FileDisk {
  /** The drive's id or the node's name, where they can be used, else disk0, disk1, … */
  readonly id: string;
  /** As on the command line: relative to QEMU's working directory if it is relative. */
  readonly image: string;
  /** Undefined: QEMU would tell by the contents. */
  readonly format: string | undefined;
  /** What the guest discards is to be given back to the host. */
  readonly unmap: boolean;
}

export interface CommandLineDisks {
  readonly files: readonly FileDisk[];
  /** Sockets of NBD servers that writable disks are on already; ours or somebody's. */
  readonly sockets: readonly string[];
  readonly refused: readonly Refusal[];
}

/** What a writable disk's image must be: the standby's QEMU opens it while it is being filled. */
const CONVERT = 'Convert it: qemu-img convert -O raw OLD NEW.raw, and name that with format=raw.';

/** The writable disks of a command line. */
export const findDisks = (argv: readonly string[]): CommandLineDisks => {
  const leaves = leavesOf(parseArguments(argv)).filter(({ isReadOnly }) => !isReadOnly);
  return {
    files: leaves.flatMap((leaf) => ('image' in leaf.what ? fileDisk(leaf, leaf.what.image) : [])),
    sockets: leaves.flatMap(({ what }) => ('socket' in what ? [what.socket] : [])),
    refused: leaves.flatMap(({ name, id, what }) => {
      if (!('reason' in what)) return [];
      const { reason, cure } = what;
      return [{ what: `disk ${name === undefined ? id : name}`, reason, cure }];
    }),
  };
};

const fileDisk = ({ id, format, unmap }: Leaf, image: string): FileDisk[] => [{ id, image, format, unmap }];

/**
 * The command line with disks on servers. What is there already stays as it is: doing it twice is doing it once.
 * @param sockets of the disks' servers, by id
 * @param earlier where they are now, for those that are on a server: they are moved to their new socket
 * @throws ConfigError if one of the disks is not on the command line
 */
export const wireDisks = (
  argv: readonly string[],
  sockets: ReadonlyMap<string, string>,
  earlier: ReadonlyMap<string, string> = sockets,
): string[] => {
  const idOf = new Map([...earlier].map(([id, socket]) => [socket, id]));
  return rewrite(argv, sockets, ({ id, what, isReadOnly }) => {
    if (isReadOnly) return undefined;
    if ('socket' in what) return idOf.get(what.socket);
    return 'image' in what ? id : undefined;
  });
};

/**
 * The same command line with the servers' sockets elsewhere: a standby has servers of its own.
 * @param moves old socket to new one
 * @throws ConfigError if it has no disk on one of the old ones
 */
export const moveDiskSockets = (argv: readonly string[], moves: ReadonlyMap<string, string>): string[] =>
  rewrite(argv, moves, ({ what }) => ('socket' in what ? what.socket : undefined));

/** Disks that `keyOf` gives a key of `sockets` are put on that socket; each key must be met. */
const rewrite = (
  argv: readonly string[],
  sockets: ReadonlyMap<string, string>,
  keyOf: (leaf: Leaf) => string | undefined,
): string[] => {
  if (sockets.size === 0) return [...argv];
  const options = parseArguments(argv);
  const missing = new Set(sockets.keys());
  const changed = new Map<number, BlockOption>();
  for (const leaf of leavesOf(options)) {
    const key = keyOf(leaf);
    const socket = key === undefined ? undefined : sockets.get(key);
    if (key === undefined || socket === undefined) continue;
    missing.delete(key);
    if ('socket' in leaf.what && leaf.what.socket === socket) continue;
    overNbd(leaf, socket);
    changed.set(leaf.index, leaf.option);
  }
  if (missing.size > 0) {
    throw new ConfigError(`the command line has no disk ${[...missing].join(', ')} for a disk server`);
  }
  return renderArguments(options.map((option, index) => changed.get(index)?.render() ?? option));
};

/** Of a node that opens a file: what any node has (block_core.json, BlockdevOptions), and so the new one too. */
const KEPT_KEYS = new Set([
  ...['node-name', 'read-only', 'auto-read-only', 'force-share', 'discard', 'detect-zeroes', 'cache'],
]);
/** Of a drive whose root node it is: what belongs to the drive, not to the node. */
const FILE_KEYS = new Set(['driver', 'filename', 'file', 'aio', 'aio-max-batch', 'locking', 'pr-manager']);

const overNbd = ({ node, option, isRoot }: Leaf, socket: string): void => {
  const isDriveRoot = isRoot && option.kind === 'drive';
  const kept = Object.entries(node).filter(([key]) =>
    isDriveRoot ? !FILE_KEYS.has(key) && key !== 'server' : KEPT_KEYS.has(key),
  );
  for (const key of Object.keys(node)) delete node[key];
  Object.assign(node, {
    driver: 'nbd',
    server: { type: 'unix', path: socket },
    'reconnect-delay': option.isJson ? RECONNECT_DELAY_S : String(RECONNECT_DELAY_S),
    ...Object.fromEntries(kept),
  });
  if (option.kind === 'drive') delete option.tree.aio; // of a file: threads, native or io_uring
};

interface Leaf {
  /** Of the option on the command line. */
  readonly index: number;
  readonly option: BlockOption;
  /** Which opens the image; a part of the option's tree. */
  readonly node: BlockTree;
  readonly isRoot: boolean;
  readonly id: string;
  /** As the operator named it, if so. */
  readonly name: string | undefined;
  readonly isReadOnly: boolean;
  readonly format: string | undefined;
  readonly unmap: boolean;
  readonly what:
    | { readonly image: string }
    | { readonly socket: string }
    | { readonly reason: string; readonly cure: string };
}

/** A node with the way to it: what lies above it in the same option, or names it. */
interface Placed {
  readonly index: number;
  readonly option: BlockOption;
  readonly node: BlockTree;
  readonly parents: readonly Parent[];
}

interface Parent {
  readonly placed: Placed;
  readonly key: string;
}

const OPENS_FILE = new Set(['file', 'host_device']);
/** Nodes that pass on what is written as it is. */
const PASSES_ON = new Set(['raw', 'throttle', 'copy-on-read']);
const VALID_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

const leavesOf = (options: readonly CommandOption[]): readonly Leaf[] => {
  const isSnapshot = options.some(({ name }) => name === 'snapshot');
  const placed = placedNodes(options);
  const leaves = placed.filter(({ option, node }) => isLeaf(option, node));
  const ids = idsOf(leaves);
  return leaves.map((leaf, index) => {
    const way = [...ancestors(leaf)];
    return {
      index: leaf.index,
      option: leaf.option,
      node: leaf.node,
      isRoot: leaf.node === leaf.option.tree,
      id: ids[index]!,
      name: nameOf(leaf),
      isReadOnly: isReadOnly(leaf),
      format: formatOf(leaf, way),
      unmap: [leaf, ...way.map(({ placed }) => placed)].some(({ node }) => isUnmap(node.discard)),
      what: whatIs(leaf, way, isSnapshot),
    };
  });
};

const driverOf = ({ option, node }: Placed): string | undefined =>
  textOf(node.driver) ?? (option.kind === 'drive' && node === option.tree ? textOf(node.format) : undefined);

/** All nodes of all options, with what lies above each. */
const placedNodes = (options: readonly CommandOption[]): readonly Placed[] => {
  const all: Placed[] = [];
  const place = (index: number, option: BlockOption, node: BlockTree, parents: Parent[]): void => {
    const placed: Placed = { index, option, node, parents };
    all.push(placed);
    for (const [key, child] of Object.entries(node)) {
      if (isTree(child) && (CHILD_KEYS.has(key) || 'driver' in child))
        place(index, option, child, [{ placed, key }]);
    }
  };
  options.forEach((option, index) => {
    const block = blockOption(option);
    if (block !== undefined) place(index, block, block.tree, []);
  });
  const named = new Map(all.flatMap((each) => mapEntry(textOf(each.node['node-name']), each)));
  for (const placed of all) {
    for (const [key, value] of Object.entries(placed.node)) {
      const child = CHILD_KEYS.has(key) && typeof value === 'string' ? named.get(value) : undefined;
      if (child !== undefined) (child.parents as Parent[]).push({ placed, key });
    }
  }
  return all;
};

const CHILD_KEYS = new Set(['file', 'backing', 'data-file', 'target', 'image', 'raw']);

const mapEntry = (name: string | undefined, placed: Placed): [string, Placed][] =>
  name === undefined ? [] : [[name, placed]];

/** It has no child; a drive that is empty is nothing at all. */
const isLeaf = (option: BlockOption, node: BlockTree): boolean => {
  const hasChild = Object.entries(node).some(
    ([key, value]) => CHILD_KEYS.has(key) && (isTree(value) || option.kind === 'blockdev' || key !== 'file'),
  );
  return !hasChild && (node !== option.tree || textOf(node.driver) !== undefined);
};

function* ancestors({ parents }: Placed): Generator<Parent> {
  for (const parent of parents) {
    yield parent;
    yield* ancestors(parent.placed);
  }
}

const isReadOnly = (leaf: Placed): boolean => {
  const { node, option } = leaf;
  if (isOn(node['read-only']) || isOn(node.readonly)) return true;
  if (option.kind === 'drive' && node === option.tree && node.media === 'cdrom') return true;
  // A blockdev that nothing else is made of is a device's own.
  return (
    leaf.parents.length > 0 &&
    leaf.parents.every(({ placed, key }) => key === 'backing' || isReadOnly(placed))
  );
};

/** Of the node that the guest's device has: the topmost. */
const topOf = (leaf: Placed): Placed => {
  let top = leaf;
  while (top.parents[0] !== undefined) top = top.parents[0].placed;
  return top;
};

const nameOf = (leaf: Placed): string | undefined => {
  const top = topOf(leaf).node;
  return textOf(top.id) ?? textOf(top['node-name']) ?? textOf(leaf.node['node-name']);
};

/** Ids, each once: the operator's names where they can be used. */
const idsOf = (leaves: readonly Placed[]): string[] => {
  const names = leaves.map(nameOf);
  const usable = names.map((name, index) =>
    name !== undefined && VALID_ID.test(name) && names.indexOf(name) === index ? name : undefined,
  );
  const used = new Set(usable);
  return usable.map((name, index) => {
    if (name !== undefined) return name;
    let number = index;
    while (used.has(`disk${number}`)) number++;
    used.add(`disk${number}`);
    return `disk${number}`;
  });
};

const isUnmap = (discard: unknown): boolean => discard === 'unmap' || isOn(discard);

/** Undefined: QEMU looks. */
const formatOf = (leaf: Placed, way: readonly Parent[]): string | undefined => {
  const formats = way.map(({ placed }) => driverOf(placed));
  if (leaf.option.kind === 'drive' && leaf.node !== leaf.option.tree && formats.includes(undefined)) {
    return undefined;
  }
  return 'raw'; // anything else is refused
};

const whatIs = (leaf: Placed, way: readonly Parent[], isSnapshot: boolean): Leaf['what'] => {
  const { node, option } = leaf;
  const drivers = way.map(({ placed }) => driverOf(placed));
  const format = drivers.find((driver) => driver !== undefined && !PASSES_ON.has(driver));
  if (format !== undefined) {
    return {
      reason: `Its format is ${format}, and only raw images can be replicated.`,
      cure: CONVERT,
    };
  }
  if (isSnapshot || isOn(topOf(leaf).node.snapshot)) {
    return {
      reason: 'With -snapshot its writes go to a temporary file, which the backup would lack.',
      cure: 'Start the VM without it.',
    };
  }
  if (option.kind === 'drive' && option.tree.if === 'pflash') {
    return {
      reason: 'Firmware flash (UEFI variables) is not in the device state.',
      cure: 'Boot with SeaBIOS (QEMU’s default), without -pflash.',
    };
  }
  return opened(leaf, node);
};

const opened = (leaf: Placed, node: BlockTree): Leaf['what'] => {
  const driver = driverOf(leaf);
  const other = (kind: string): Leaf['what'] => ({
    reason: `It is ${kind}, and only regular files and block devices of this host can be replicated.`,
    cure: 'Attach it read-only, or keep its data in a raw image.',
  });
  if (driver === 'nbd') {
    const { server } = node;
    const path = isTree(server) && server.type === 'unix' ? textOf(server.path) : textOf(node.path);
    return path === undefined ? other('on an NBD server') : { socket: path };
  }
  if (driver !== undefined && !OPENS_FILE.has(driver)) return other(`opened by QEMU’s driver ${driver}`);
  const filename = textOf(node.filename);
  if (filename === undefined) return other('without a file name');
  if (driver !== undefined) return { image: filename };
  const [, protocol, path] = /^([^:/]*):(.*)$/s.exec(filename) ?? [];
  if (protocol === undefined || path === undefined) return { image: filename };
  return OPENS_FILE.has(protocol) ? { image: path } : other(`opened by QEMU’s driver ${protocol}`);
};
