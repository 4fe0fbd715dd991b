/**
 * One checkpoint by hand-off, as a process inside a lab host: the new QEMU must be in the guest's network.
 *
 *   node role.js '<RoleOptions as JSON>'      prints one JSON line
 */
import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { checkpointByHandoff } from '../../lib/handoff/coordinator.js';
import { saveDeviceState } from '../../lib/qmp/recipes.js';

const run = promisify(execFile);

export interface RoleOptions {
  readonly qmp: string;
  readonly ramTo: string;
  /** For the checkpoint; it is made. */
  readonly dir: string;
}

/** By reference where the file system can, holes as holes; on stable storage when it is done. */
const copy = async (from: string, to: string): Promise<void> => {
  await run('cp', ['--sparse=always', '--reflink=auto', from, to]);
  await run('sync', [to]);
};

const { qmp, ramTo, dir } = JSON.parse(process.argv[2] ?? '') as RoleOptions;
await mkdir(dir);
const { handoff, ...phases } = await checkpointByHandoff({
  qmp,
  ramTo,
  saveState: async (vm) => {
    await saveDeviceState(vm.qmp, join(dir, 'devices'));
    await copy(vm.ramPath, join(dir, 'ram'));
  },
  copyFiles: async ({ images }) => {
    for (const image of images) await copy(image, join(dir, basename(image)));
  },
});
process.stdout.write(`${JSON.stringify({ event: 'done', ...phases, to: handoff.to })}\n`);
