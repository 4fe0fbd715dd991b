/**
 * A VM that runs before its memory is there: pages come out of the checkpoint as the guest touches them, each
 * checked, and the rest behind them.
 *
 *   start ─► QEMU's faults are served ─► (device state; it runs) ─► complete ─► it stands on its own
 */
import { toHoldfastError, VmGoneError } from '../errors.js';
import { native } from '../native.js';
import type { EarlyGuest, EarlyGuestStats } from '../native-early.js';
import { deferred } from '../transfer/deferred.js';
import type { LayerFiles } from './binding.js';

export class OnDemandRam implements AsyncDisposable {
  readonly #guest: EarlyGuest;
  /** Settles when all of RAM is there; rejects if a page cannot be had: the guest would wait for it for ever. */
  readonly complete: Promise<void>;

  private constructor(guest: EarlyGuest, complete: Promise<void>) {
    this.#guest = guest;
    this.complete = complete;
  }

  /**
   * Settles when the VM, which is stopped, may be loaded and run. Nothing that stands in its RAM counts.
   * @throws VmGoneError, InjectError, RamMappingError, UnsupportedHostError; HOLDFAST_E_CHECKSUM
   */
  static async start(
    vm: { readonly pid: number; readonly ramBytes: number; readonly ramPath: string },
    layers: readonly LayerFiles[],
  ): Promise<OnDemandRam> {
    const mappings = await native.findRamMappings(vm.pid, vm.ramBytes);
    const ram = mappings.find(({ path }) => path === vm.ramPath) ?? mappings[0];
    if (ram === undefined) throw new VmGoneError(`QEMU (process ${vm.pid}) has ended`);
    const listed = deferred<void>();
    const complete = deferred<void>();
    const guest = new native.EarlyGuest({
      pid: vm.pid,
      ram,
      emptyAll: true,
      origin: { layers },
      onEvent: (event) => {
        if (event.type === 'listed') listed.resolve();
        if (event.type === 'complete') complete.resolve();
        if (event.type !== 'failed') return;
        listed.reject(toHoldfastError(event));
        complete.reject(toHoldfastError(event));
      },
    });
    try {
      await guest.start();
      await listed.promise;
      return new OnDemandRam(guest, complete.promise);
    } catch (error) {
      await guest.close();
      throw toHoldfastError(error);
    }
  }

  stats(): EarlyGuestStats {
    return this.#guest.stats();
  }

  /** After `complete`, or for a VM that has ended: QEMU is as any other from here on. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#guest.release();
    await this.#guest.close();
  }
}
