/** What a destination is told of a VM that QEMU's engine moves. */
import type { SessionMessage } from '../control/messages.js';
import type { VmRelay } from '../output/relay-files.js';
import { standbySpecOf } from '../primary/standby-spec.js';
import type { VmRecord } from '../state/records.js';
import type { VmDescription } from '../vm/describe.js';
import type { MigrationSettings } from './options.js';

/** Of the protocol; QEMU's stream has no use for it. */
const DEVICE_BYTES_MAX = 64 << 20;

export const qemuSession = (
  vm: VmDescription,
  { vmId, term }: Pick<VmRecord, 'vmId' | 'term'>,
  relays: readonly VmRelay[],
  settings: MigrationSettings,
): SessionMessage => {
  const backend = vm.memoryBackends[0]!; // as the pre-flight check has shown
  return {
    type: 'session',
    vmId,
    vmName: vm.name ?? '',
    term,
    // Nothing is ever held here: what an earlier attempt left over there is void.
    outputHeld: false,
    ramBytes: vm.ramBytes,
    pageSize: backend.mapping?.pageSize ?? 4096,
    deviceBytesMax: DEVICE_BYTES_MAX,
    heartbeatIntervalMs: settings.heartbeatIntervalMs,
    heartbeatTimeoutMs: settings.heartbeatTimeoutMs,
    handOverOnly: true,
    qemuEngine: true,
    standby: standbySpecOf(vm, { backendId: backend.id, relays, replace: settings.replace }),
  };
};
