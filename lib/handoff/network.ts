/**
 * The guest's network, from one QEMU to the other.
 *
 *   relay   pause ─► (VM stopped, state moved) names ─► switch ─► connected to the new QEMU, before the VM runs
 *   tap     a second tap beside it on the same bridge, which the new QEMU has from its start; after the VM's
 *           stop the bridge forgets where the guest was; in the end the new tap gets the old one's name
 *
 * What comes for the guest meanwhile waits in the tap's queue: no frame is lost, so no connection stalls.
 */
import { RelayError } from '../errors.js';
import { RelayControl } from '../output/relay-control.js';
import { runningRelay, type VmRelay, writeRelayRecord } from '../output/relay-files.js';
import type { ProcessIdentity } from '../vm/process.js';

export class HandoffRelays implements AsyncDisposable {
  readonly #relays: readonly VmRelay[];
  #controls: readonly RelayControl[] = [];
  #paused = false;

  constructor(relays: readonly VmRelay[]) {
    this.#relays = relays;
  }

  /** @throws RelayError one holds the guest's output, for a VM that is protected or was; ConnectError */
  async connect(): Promise<void> {
    this.#controls = await Promise.all(this.#relays.map(({ control }) => RelayControl.connect(control)));
    const holding = this.#controls.find((control) => control.holding);
    if (holding === undefined) return;
    throw new RelayError(
      `the relay ${holding.path} holds the guest's output back: the VM is protected, or was`,
      {
        cure: '`holdfast detach` first; if its daemon was killed, start it once more and detach.',
      },
    );
  }

  async pause(): Promise<void> {
    this.#paused = true;
    await Promise.all(this.#controls.map((control) => control.pause()));
  }

  /** To whoever listens on QEMU's sockets now. @throws RelayError nobody does */
  async switch(): Promise<void> {
    const switched = await Promise.all(this.#controls.map((control) => control.switchQemu()));
    if (switched.every(Boolean)) return;
    throw new RelayError('the relay of the VM found no QEMU to connect to');
  }

  /** To the QEMU that had them, if they were ever paused: that ends the pause. */
  async giveBack(): Promise<void> {
    if (this.#paused) await this.switch();
  }

  /** They end with that process from now on. */
  async bind(vm: ProcessIdentity): Promise<void> {
    await Promise.all(
      this.#relays.map(async ({ socket }) => {
        const record = await runningRelay(socket);
        if (record !== undefined) await writeRelayRecord({ ...record, vm: { ...vm } });
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#controls.map((control) => control.close()));
  }
}
