/**
 * The guest's clock under checkpoints. QEMU stops it between `stop` and `cont`,
 * so a guest that is paused 3 ms in every 20 would be 15 % slow. Followed, the
 * clock is set at the end of each pause to where it would be without it
 * (native/guest/guest_clock.h).
 *
 *   beforeStop ─► pause ─ saved ─► captured ─ beforeCont ─► cont
 *   standsStill: stopped for another reason, that time stays lost
 *
 * Nothing here throws: what is not as expected ends the following, with a
 * warning, and the guest has QEMU's own behaviour from then on.
 */
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import type { NativeBinding, GuestClock as NativeGuestClock } from '../native.js';
import type { VmDescription } from '../vm/describe.js';

export type GuestClockSetting = 'follow' | 'qemu';

export interface GuestClockStatus {
  /** starting: until the first pause. */
  readonly state: 'starting' | 'following' | 'off';
  /** Why, where it is off. */
  readonly reason?: string;
  /** Time given back to the guest, milliseconds. */
  readonly advancedMs: number;
}

export interface GuestClockOptions {
  readonly setting: GuestClockSetting;
  readonly vm: Pick<VmDescription, 'accelerator'> & { readonly process: { readonly pid: number } };
  readonly native: Pick<NativeBinding, 'GuestClock'>;
  readonly log: Logger;
}

/** A pause that is to be given back. */
interface Pause {
  readonly statePath: string;
  readonly stoppedNs: bigint;
}

export class GuestClock {
  readonly #log: Logger;
  #clock: NativeGuestClock | undefined;
  #state: GuestClockStatus['state'] = 'starting';
  #reason: string | undefined;
  #advancedMs = 0;
  #pause: Pause | undefined;

  constructor({ setting, vm, native, log }: GuestClockOptions) {
    this.#log = log;
    const reason = whyNot(setting, vm.accelerator);
    if (reason === undefined) {
      this.#clock = new native.GuestClock({ pid: vm.process.pid });
    } else {
      this.#state = 'off';
      this.#reason = reason;
    }
  }

  status(): GuestClockStatus {
    return {
      state: this.#state,
      ...(this.#reason === undefined ? {} : { reason: this.#reason }),
      advancedMs: this.#advancedMs,
    };
  }

  /** The VM runs, and is about to be paused. */
  beforeStop(): void {
    this.#pause = undefined;
    this.#attempt((clock) => {
      if (this.#state === 'following') clock.beforePause();
    });
  }

  /**
   * The VM is paused since `stoppedNs` (process.hrtime), and its device state is
   * saved. In the first pause QEMU's clock is searched, in a few milliseconds.
   */
  async saved(statePath: string, stoppedNs: bigint): Promise<void> {
    const clock = this.#clock;
    if (clock === undefined) return;
    try {
      if (this.#state === 'starting') await clock.locate({ statePath });
      this.#state = 'following';
      this.#pause = { statePath, stoppedNs };
    } catch (error) {
      this.#end(error);
    }
  }

  /** `cont` comes next; where a pause of ours ends by it, its time is given back. */
  beforeCont(): void {
    const pause = this.#pause;
    this.#pause = undefined;
    if (pause === undefined) return;
    this.#attempt((clock) => {
      this.#advancedMs += clock.advance(pause);
    });
  }

  /** The VM is stopped for longer, or by somebody else. */
  standsStill(): void {
    this.#pause = undefined;
    this.#attempt((clock) => clock.forget());
  }

  #attempt(work: (clock: NativeGuestClock) => void): void {
    if (this.#clock === undefined) return;
    try {
      work(this.#clock);
    } catch (error) {
      this.#end(error);
    }
  }

  #end(error: unknown): void {
    this.#clock = undefined;
    this.#state = 'off';
    this.#reason = toHoldfastError(error).message;
    this.#log.warn({ reason: this.#reason }, "the guest's clock is not followed: it loses the pauses");
  }
}

const whyNot = (setting: GuestClockSetting, accelerator: 'kvm' | 'tcg'): string | undefined => {
  if (setting === 'qemu') return 'left to QEMU, as it was set';
  // Its guests read kvm-clock and the TSC, which KVM keeps, not what is found here.
  if (accelerator === 'kvm') return 'not with KVM, which keeps the clock in the kernel';
  return undefined;
};

/** Whether a standby's clock is to go on by the time since its checkpoint. */
export const followsOnStandby = (
  setting: GuestClockSetting,
  { accelerator }: Pick<VmDescription, 'accelerator'>,
): boolean => whyNot(setting, accelerator) === undefined;
