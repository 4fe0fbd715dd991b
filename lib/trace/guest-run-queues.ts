/** A guest's processes out of the run queues in its RAM: nothing runs in the guest (native/trace/guest_sampler.h). */
import { ConfigError, toHoldfastError, UnsupportedVmError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import { describeVm } from '../vm/describe.js';
import type { GuestSymbols } from './binding.js';
import { parsePhysicalRanges } from './guest-ram.js';
import { decodeGuestChanges, guestSlices } from './guest-slices.js';
import type { GuestSource } from './guest-source.js';

/** 24 MB in the addon. */
const CHANGES_MAX = 1_000_000;
export const RUN_QUEUE_RATE_PER_S = 1_000;

export interface RunQueueOptions {
  readonly native: Pick<NativeBinding, 'GuestTrace' | 'findRamMappings'>;
  readonly qmp: QmpClient;
  readonly pid: number;
  readonly vcpus: number;
  readonly symbols: GuestSymbols;
  readonly ratePerS: number;
}

/** @throws UnsupportedVmError if the VM's RAM is not one shared file */
export const openRunQueues = async (options: RunQueueOptions): Promise<GuestSource> => {
  const { native, qmp, pid, vcpus, symbols, ratePerS } = options;
  const [vm, tree] = await Promise.all([
    describeVm({ qmp, pid, findRamMappings: native.findRamMappings }),
    qmp.execute('human-monitor-command', { 'command-line': 'info mtree -f' }),
  ]);
  const [backend] = vm.memoryBackends;
  if (backend?.mapping === undefined || vm.memoryBackends.length > 1) {
    throw new UnsupportedVmError(
      "the guest's RAM is not one shared file: its processes cannot be seen from here",
      {
        cure: '-object memory-backend-file,id=ram,size=…,share=on,mem-path=/dev/shm/… -machine memory-backend=ram; or ask its agent: --guest-agent.',
      },
    );
  }
  const intervalUs = Math.round(1e6 / ratePerS);
  const trace = new native.GuestTrace({
    ...{ pid, ram: backend.mapping, symbols, vcpus, intervalUs },
    ranges: parsePhysicalRanges(tree, backend.id),
    eventsMax: CHANGES_MAX,
  });
  let kernel = '';
  return {
    start: async () => {
      kernel = await trace.start().catch((error: unknown) => {
        throw startFailure(error);
      });
    },
    stop: () => trace.close(),
    record: (originNs, durationUs) => {
      const { events, names } = trace.take();
      const { looks, late, unread, discarded } = trace.stats();
      const changes = decodeGuestChanges(events, names, originNs);
      const slices = guestSlices(changes, durationUs);
      return { source: 'run queues', kernel, intervalUs, looks, late, unread, discarded, slices };
    },
  };
};

const startFailure = (error: unknown): Error => {
  const failure = toHoldfastError(error);
  return failure.code !== 'HOLDFAST_E_UNSUPPORTED'
    ? failure
    : new ConfigError(`--guest-symbols: ${failure.message}`, {
        cause: error,
        cure: 'Take them from this guest, since it booted: its kernel lies elsewhere after each boot.',
      });
};
