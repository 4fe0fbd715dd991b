/**
 * Block nodes as QEMU's command line describes them: -drive, -blockdev (keys or JSON) and the options of old
 * (-hda, a bare image), all as trees of nodes that can be changed and written back. Pure.
 *
 *   -drive file=a.raw,format=raw,if=none,id=vda
 *     └─► {file: {filename: 'a.raw'}, format: 'raw', if: 'none', id: 'vda'}
 *
 * Grammar: drive_new() in blockdev.c, qobject_input_visitor_new_str() for -blockdev, qemu-options.hx.
 */
import {
  type CommandOption,
  isJson,
  parseJson,
  parseList,
  renderList,
  type ValuePart,
} from './command-line.js';

/** A node's options; its children among them are trees too, or names of other nodes. */
export interface BlockTree {
  [key: string]: unknown;
}

export interface BlockOption {
  readonly kind: 'drive' | 'blockdev';
  /** Its values have types. */
  readonly isJson: boolean;
  readonly tree: BlockTree;
  /** The option with its tree as it is now. */
  render(): CommandOption;
}

/** -hda and its like: what they stand for. */
const OF_OLD: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  '': { index: '0', media: 'disk' },
  hda: { index: '0', media: 'disk' },
  hdb: { index: '1', media: 'disk' },
  hdc: { index: '2', media: 'disk' },
  hdd: { index: '3', media: 'disk' },
  fda: { if: 'floppy', index: '0' },
  fdb: { if: 'floppy', index: '1' },
  mtdblock: { if: 'mtd' },
  sd: { if: 'sd' },
  pflash: { if: 'pflash' },
};

/** Undefined: the option has nothing to do with disks. */
export const blockOption = (option: CommandOption): BlockOption | undefined => {
  const { name, value = '' } = option;
  if (name === 'blockdev') {
    const json = isJson(value);
    const tree = json ? parseJson(value) : treeOf(parseList(value), 'driver');
    return {
      kind: 'blockdev',
      isJson: json,
      tree,
      render: () => ({ name, value: json ? JSON.stringify(tree) : renderTree(tree) }),
    };
  }
  const ofOld = OF_OLD[name];
  if (name !== 'drive' && ofOld === undefined) return undefined;
  const tree: BlockTree = ofOld === undefined ? driveTree(value) : { ...ofOld, file: { filename: value } };
  return { kind: 'drive', isJson: false, tree, render: () => ({ name: 'drive', value: renderTree(tree) }) };
};

export const isTree = (value: unknown): value is BlockTree =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const textOf = (value: unknown): string | undefined =>
  typeof value === 'string' ? value : typeof value === 'number' ? String(value) : undefined;

/** `file=` of a -drive is a file name, whatever else is said of `file.…`. */
const driveTree = (value: string): BlockTree => {
  const parts = parseList(value).map((part) =>
    part.key === 'file' ? { key: 'file.filename', value: part.value } : part,
  );
  return treeOf(parts, undefined);
};

/** Dotted keys to nested trees. A word without a value is a switch, but for the first one of a -blockdev. */
const treeOf = (parts: readonly ValuePart[], first: string | undefined): BlockTree => {
  const tree: BlockTree = {};
  parts.forEach(({ key, value }, index) => {
    if (key !== undefined) put(tree, key.split('.'), value);
    else if (index === 0 && first !== undefined) tree[first] = value;
    else tree[value] = 'on';
  });
  return tree;
};

const put = (tree: BlockTree, [key = '', ...rest]: readonly string[], value: string): void => {
  const found = tree[key];
  if (rest.length === 0 && !isTree(found)) {
    tree[key] = value;
    return;
  }
  // `cache=none,cache.no-flush=on`: the key's own value is kept under no name.
  const child = isTree(found) ? found : found === undefined ? {} : { '': found };
  tree[key] = child;
  put(child, rest.length === 0 ? [''] : rest, value);
};

const renderTree = (tree: BlockTree): string => renderList(partsOf(tree, ''));

const partsOf = (tree: BlockTree, prefix: string): ValuePart[] =>
  Object.entries(tree).flatMap(([key, value]) =>
    isTree(value)
      ? partsOf(value, `${prefix}${key}.`)
      : [{ key: key === '' ? prefix.slice(0, -1) : prefix + key, value: String(value) }],
  );
