/**
 * Whether the VM's disks are what its command line says. Pure.
 *
 * A snapshot, a mirror, a changed medium or a move to a disk server gives a device another node than the command
 * line names: a QEMU that is started from it would go on with an image that lacks what was written since, or past
 * the server that keeps account of it.
 */
import { resolve } from 'node:path';
import { type BlockTree, blockOption, isTree, textOf } from '../vm/block-nodes.js';
import { parseArguments } from '../vm/command-line.js';
import type { Drive } from '../vm/describe.js';
import { imagePathOf, nbdSocketOf } from '../vm/drives.js';
import type { Refusal } from '../vm/preflight.js';

export const changedDrives = (
  drives: readonly Drive[],
  argv: readonly string[],
  cwd: string,
): readonly Refusal[] => {
  const named = new Set(
    parseArguments(argv)
      .map((option) => blockOption(option)?.tree ?? {})
      .flatMap((tree) => pathsIn(tree))
      .map((path) => resolve(cwd, path)),
  );
  return drives.flatMap(({ name, file, format }) => {
    const path = nbdSocketOf(file) ?? imagePathOf(file);
    // Without a file of this host (null, another protocol) there is nothing to be mistaken for another.
    if (path === undefined || named.has(resolve(cwd, path))) return [];
    return [
      {
        what: `drive ${name} (${file})`,
        reason: `The ${format} image that it has now is not on the command line: a snapshot, a mirror, a change of medium or a move to a disk server has changed it.`,
        cure: 'Let that end (block-commit, a checkpoint’s end), or give the whole command line, as it is now, after `--`.',
      },
    ];
  });
};

/** Of a node and those beneath it: files, and sockets of servers. */
const pathsIn = (tree: BlockTree): string[] =>
  Object.entries(tree).flatMap(([key, value]) => {
    if (isTree(value)) return pathsIn(value);
    const text = key === 'filename' || key === 'path' || key === 'file' ? textOf(value) : undefined;
    return text === undefined ? [] : [text.replace(/^(file|host_device):/, '')];
  });
