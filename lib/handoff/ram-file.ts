/**
 * Guest RAM as the new QEMU opens it: the file by its name, or, where it has none that leads to it (a memfd, a
 * file that was removed), by a descriptor that it inherits.
 */
import { type FileHandle, open, readdir, readlink, stat } from 'node:fs/promises';
import { RamMappingError } from '../errors.js';
import type { MemoryBackend, VmDescription } from '../vm/describe.js';

/** The first that launchVm() hands on. */
const INHERITED = '/proc/self/fd/3';

export interface RamFile extends AsyncDisposable {
  readonly path: string;
  /** For launchVm(). */
  readonly inherit: readonly number[];
}

/** @throws RamMappingError if neither name nor descriptor of it is found */
export const openRamFile = async (
  backend: MemoryBackend,
  { process: { pid } }: Pick<VmDescription, 'process'>,
): Promise<RamFile> => {
  const { mapping } = backend;
  const descriptor = await descriptorOf(backend, pid);
  // As the kernel has it: QEMU was perhaps told another name, that of a link, or one that was renamed since.
  if (mapping?.deleted === false && (await isSameFile(mapping.path, descriptor))) {
    return { path: mapping.path, inherit: [], [Symbol.asyncDispose]: async () => {} };
  }
  const handle: FileHandle = await open(descriptor, 'r+');
  return { path: INHERITED, inherit: [handle.fd], [Symbol.asyncDispose]: () => handle.close() };
};

/** QEMU keeps the file of its RAM open. */
const descriptorOf = async ({ id, mapping }: MemoryBackend, pid: number): Promise<string> => {
  for (const name of await readdir(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${name}`;
    const target = await readlink(path).catch(() => '');
    if (mapping !== undefined && target.replace(/ \(deleted\)$/, '') === mapping.path) return path;
  }
  throw new RamMappingError(`QEMU (process ${pid}) has the file of its memory backend ${id} not open`, {
    cure: 'Is it in another mount namespace? Run this command in the same one.',
  });
};

const isSameFile = async (one: string, other: string): Promise<boolean> => {
  const [a, b] = await Promise.all([one, other].map((path) => stat(path).catch(() => undefined)));
  return a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino;
};
