/** What keeps a VM from being checkpointed to disk, found before anything is touched. Pure. */
import type { VmDescription } from '../vm/describe.js';
import { imagePathOf } from '../vm/drives.js';
import { type Refusal, refusals, refused } from '../vm/preflight.js';

/** @throws UnsupportedVmError with all refusals in `details.reasons` and in its message */
export const assertCheckpointable = (vm: VmDescription): void => {
  // What protection asks of memory and devices; of disks it asks something else.
  const found = [...refusals({ ...vm, drives: [] }), ...diskRefusals(vm)];
  if (found.length > 0) throw refused('no checkpoint of this VM can be taken; nothing was changed', found);
};

const diskRefusals = (vm: VmDescription): Refusal[] =>
  vm.drives
    .filter(({ readOnly }) => !readOnly)
    .flatMap(({ name, file, format, server }) => {
      const what = `drive ${name} (${file})`;
      if (server !== undefined) {
        return [
          {
            what,
            reason: 'It is on a disk server, beneath which QEMU can put no overlay.',
            cure: 'Protect or migrate this VM; or start it with its images, without Holdfast.',
          },
        ];
      }
      if ((format === 'raw' || format === 'qcow2') && imagePathOf(file) !== undefined) return [];
      return [
        {
          what,
          reason: `It is writable, and no raw or qcow2 image of this host (${format}).`,
          cure: 'Attach it with readonly=on, or convert it (qemu-img convert -O qcow2).',
        },
      ];
    });
