/** The VM's drives as QEMU has them now, whatever its command line said: one may have been moved to a server. */
import { resolve } from 'node:path';
import { type DiskServerRecord, readDiskServerRecord } from '../disk/disk-files.js';
import type { CommandAnswer } from '../qmp/commands.js';
import { isTree, textOf } from './block-nodes.js';
import type { Drive, VmDescription } from './describe.js';

export const describeDrives = async (
  drives: CommandAnswer<'query-block'>,
  vm: Pick<VmDescription, 'process' | 'cwd'>,
): Promise<Drive[]> => {
  const described = drives.map(async ({ device, qdev, inserted }): Promise<readonly Drive[]> => {
    if (inserted === undefined) return [];
    const { ro, drv, file, 'node-name': nodeName, cache } = inserted;
    return [
      {
        name: device || qdev || nodeName || file,
        readOnly: ro,
        format: drv,
        file,
        nodeName,
        noFlush: cache?.['no-flush'],
        direct: cache?.direct,
        server: ro ? undefined : await serverOf(file, vm),
      },
    ];
  });
  return (await Promise.all(described)).flat();
};

const serverOf = async (
  file: string,
  { process: { pid, startTicks }, cwd }: Pick<VmDescription, 'process' | 'cwd'>,
): Promise<DiskServerRecord | undefined> => {
  const socket = nbdSocketOf(file);
  const record = socket === undefined ? undefined : await readDiskServerRecord(resolve(cwd, socket));
  // Not that of an earlier QEMU with the same paths.
  const isOthers = record?.vm && (record.vm.pid !== pid || record.vm.startTicks !== startTicks);
  return isOthers ? undefined : record;
};

/** QEMU's name for what a node opens: a path, a URI, or options as JSON where neither tells all. */
export const nbdSocketOf = (file: string): string | undefined => {
  // block/nbd.c, nbd_refresh_filename(): the path as it is, nothing escaped.
  const socket = /^nbd\+unix:\/\/[^?]*\?socket=(.+)$/s.exec(file)?.[1];
  if (socket !== undefined) return socket;
  const node = innermost(file);
  const server = node?.driver === 'nbd' ? node.server : undefined;
  return isTree(server) && server.type === 'unix' ? textOf(server.path) : undefined;
};

/** Path of the regular file or block device that a node opens, if that is what it does. */
export const imagePathOf = (file: string): string | undefined => {
  if (!file.startsWith('json:')) return /^[^/]+:/.test(file) ? undefined : file;
  const node = innermost(file);
  return node?.driver === 'file' || node?.driver === 'host_device' ? textOf(node.filename) : undefined;
};

const innermost = (file: string): Readonly<Record<string, unknown>> | undefined => {
  if (!file.startsWith('json:')) return undefined;
  let node: unknown = JSON.parse(file.slice('json:'.length));
  while (isTree(node) && isTree(node.file)) node = node.file;
  return isTree(node) ? node : undefined;
};
