/**
 * Takes checkpoints of a VM in a process of its own, and kills itself at one point, as a power failure would:
 *
 *   node checkpoint-child.js QMP DIR SCRATCH COUNT [POINT[:N]]
 *
 * POINT is one of checkpoint-points.ts, N which time it comes (1: the first).
 */
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import type { FinishedLayer, NativeCheckpointer } from '../../lib/checkpoint/binding.js';
import { Checkpointing } from '../../lib/checkpoint/checkpointing.js';
import { native } from '../../lib/native.js';
import type { CrashPoint } from './checkpoint-points.js';

const [qmp = '', dir = '', scratch = '', count = '1', crash = ''] = process.argv.slice(2);
const [point, turn = '1'] = crash.split(':');

let left = Number(turn);
const reach = (reached: CrashPoint): void => {
  if (reached !== point) return;
  left -= 1;
  if (left === 0) process.kill(process.pid, 'SIGKILL');
};

const { mergeLayers, copySparse, Checkpointer } = native;
Object.assign(native, {
  Checkpointer: class extends Checkpointer {
    override async finish(options: Parameters<NativeCheckpointer['finish']>[0]): Promise<FinishedLayer> {
      const finished = await super.finish(options);
      reach('finished');
      return finished;
    }
  },
  mergeLayers: async (options: Parameters<typeof mergeLayers>[0]) => {
    // In the middle: it is cut off wherever it happens to be.
    if (point === 'merging') setImmediate(() => reach('merging'));
    const merged = await mergeLayers(options);
    reach('merged');
    return merged;
  },
  copySparse: async (options: Parameters<typeof copySparse>[0]) => {
    const copied = await copySparse(options);
    reach('disk-copied');
    return copied;
  },
});
const running = await Checkpointing.start({
  ...{ qmp, dir, keep: 2, runDir: scratch },
  whileStopped: async (epoch) => {
    const [ram = '', image = ''] = (process.env.HOLDFAST_TEST_COPY ?? '').split(':');
    copyFileSync(ram, join(scratch, `ram-at-${epoch}`));
    copyFileSync(image, join(scratch, `disk-at-${epoch}`));
    reach('paused');
  },
});
running.on('round', () => reach('round'));
running.on('taken', () => reach('published'));
running.on('upkeep', ({ kind }) => reach(kind));
for (let n = 0; n < Number(count); n++) {
  await running.take();
  await running.idle();
}
await running.close();
