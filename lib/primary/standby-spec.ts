/** What a backup starts a VM's standby from. */
import { basename } from 'node:path';
import type { StandbySpec } from '../control/messages.js';
import type { VmRelay } from '../output/relay-files.js';
import type { VmDescription } from '../vm/describe.js';

export interface StandbySource {
  /** Of the memory backend that holds the VM's RAM. */
  readonly backendId: string;
  readonly relays: readonly VmRelay[];
  readonly replace: StandbySpec['replacements'];
  /** In the place of the VM's own. */
  readonly argv?: readonly string[] | undefined;
}

export const standbySpecOf = (
  vm: Pick<VmDescription, 'binary' | 'qemuVersion' | 'argv' | 'cwd' | 'machineType'>,
  { backendId, relays, replace, argv = vm.argv }: StandbySource,
): StandbySpec => ({
  binary: basename(vm.binary),
  qemuVersion: vm.qemuVersion,
  argv: [...argv],
  cwd: vm.cwd,
  machineType: vm.machineType,
  backendId,
  replacements: replace,
  ...(relays.length === 0
    ? {}
    : { relays: relays.map(({ netdev, target, heldBytesMax }) => ({ netdev, target, heldBytesMax })) }),
});
