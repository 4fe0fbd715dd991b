/**
 * Which gate holds a VM's output. `auto`: the relays where every network backend has one, else QEMU's filters.
 *
 * What an earlier daemon left holding comes before that: two gates in a row would each wait for a release
 * that only the other is told of.
 */
import { ConfigError } from '../errors.js';
import type { Logger } from '../log.js';
import type { NativeBinding } from '../native.js';
import type { PrimarySettings } from '../primary/options.js';
import type { QmpClient } from '../qmp/client.js';
import type { VmDescription } from '../vm/describe.js';
import { FilterBufferGate } from './filter-buffer.js';
import { NoGate, type OutputGate } from './gate.js';
import { isPlugged, openPlugGate } from './open-plug-gate.js';
import type { VmRelay } from './relay-files.js';
import { RelayGate } from './relay-gate.js';

export interface GateChoice {
  readonly setting: PrimarySettings['gate'];
  readonly vm: Pick<VmDescription, 'netdevs' | 'process'>;
  readonly relays: readonly VmRelay[];
  readonly qmp: QmpClient;
  readonly native: Pick<NativeBinding, 'Plug' | 'probePlug'>;
  readonly log: Logger;
}

type Kind = OutputGate['kind'];

/**
 * The gate, adopted: `installed` says whether it holds already.
 * @throws ConfigError if the setting does not fit the VM, or another gate of an earlier run still holds;
 *         UnsupportedHostError if this host lacks what it needs.
 */
export const chooseGate = async (choice: GateChoice): Promise<OutputGate> => {
  const { setting, vm, relays, qmp, native, log } = choice;
  const filters = new FilterBufferGate(vm.netdevs.map(({ id }) => id));
  const relayGate = new RelayGate({ relays, log });
  try {
    // Relays also where they are not to be the gate: without one that has ended the VM has no network.
    const holding = await holdingKind(choice, filters, relayGate);
    const kind = setting === 'auto' ? (holding ?? autoKind(choice)) : setting;
    if (holding !== undefined && holding !== kind) throw stillHolding(kind, holding);
    if (kind === 'relay') {
      const without = netdevsWithoutRelay(choice);
      if (without.length > 0) throw noRelay(without);
      return relayGate;
    }
    await relayGate.close();
    if (kind === 'plug') return await openPlugGate({ vm, native, log });
    if (kind === 'none') return new NoGate();
    await filters.adopt(qmp);
    return filters;
  } catch (error) {
    await relayGate.close();
    throw error;
  }
};

/** The gate that an earlier run left holding. */
const holdingKind = async (
  { vm, qmp, native }: GateChoice,
  filters: FilterBufferGate,
  relayGate: RelayGate,
): Promise<Kind | undefined> => {
  const [relays, present, plugged] = await Promise.all([
    relayGate.adopt(),
    filters.isPresent(qmp),
    isPlugged(vm, native),
  ]);
  if (relays) return 'relay';
  if (present) return 'filter-buffer';
  return plugged ? 'plug' : undefined;
};

const autoKind = (choice: GateChoice): Kind =>
  choice.relays.length > 0 && netdevsWithoutRelay(choice).length === 0 ? 'relay' : 'filter-buffer';

const netdevsWithoutRelay = ({ vm, relays }: GateChoice): string[] => {
  const relayed = new Set(relays.map(({ netdev }) => netdev));
  return vm.netdevs.flatMap(({ id }) => (relayed.has(id) ? [] : [id]));
};

const noRelay = (netdevs: readonly string[]): ConfigError =>
  new ConfigError(`gate: relay, but no relay serves netdev ${netdevs.join(', ')} of this VM`, {
    cure:
      'Let Holdfast launch the VM, or start it with -netdev stream,server=on,addr.type=unix,… and a ' +
      '`holdfast relay` for each; or choose --gate filter-buffer.',
    details: { netdevs },
  });

const stillHolding = (kind: Kind, holding: Kind): ConfigError =>
  new ConfigError(`gate: ${kind}, but the gate of an earlier run, ${holding}, still holds the VM's output`, {
    cure: `Use --gate auto or --gate ${holding}, which takes over what is held; \`holdfast detach\` then lets it go.`,
  });
