import { beforeEach, describe, expect, it } from 'vitest';
import type { Logger } from '../../lib/log.js';
import type { GuestClock as NativeGuestClock } from '../../lib/native.js';
import { followsOnStandby, GuestClock, type GuestClockSetting } from '../../lib/primary/guest-clock.js';

const process = { pid: 42 };

let calls: string[];
let warnings: unknown[];
let failing: string | undefined;

const note = (call: string): void => {
  calls.push(call);
  if (failing === call) throw new Error(`${call} went wrong`);
};

class FakeClock implements NativeGuestClock {
  async locate(): Promise<void> {
    note('locate');
  }
  beforePause(): void {
    note('beforePause');
  }
  advance(): number {
    note('advance');
    return 3;
  }
  forget(): void {
    note('forget');
  }
}

const log = {
  debug: () => {},
  info: () => {},
  error: () => {},
  warn: (value: unknown) => warnings.push(value),
} as Logger;

const make = (setting: GuestClockSetting = 'follow', accelerator: 'kvm' | 'tcg' = 'tcg'): GuestClock =>
  new GuestClock({ setting, vm: { accelerator, process }, native: { GuestClock: FakeClock }, log });

const pause = async (clock: GuestClock): Promise<void> => {
  clock.beforeStop();
  await clock.saved('/state', 5n);
  clock.beforeCont();
};

beforeEach(() => {
  calls = [];
  warnings = [];
  failing = undefined;
});

describe('the guest clock', () => {
  it('is searched in the first pause and advanced at the end of each', async () => {
    const clock = make();
    expect(clock.status()).toEqual({ state: 'starting', advancedMs: 0 });
    await pause(clock);
    await pause(clock);
    expect(calls).toEqual(['locate', 'advance', 'beforePause', 'advance']);
    expect(clock.status()).toEqual({ state: 'following', advancedMs: 6 });
  });

  it('is advanced by no cont but the one that ends a pause', async () => {
    const clock = make();
    clock.beforeCont();
    await pause(clock);
    clock.beforeCont();
    expect(calls).toEqual(['locate', 'advance']);
  });

  it('loses what the VM stood still beyond its pause', async () => {
    const clock = make();
    clock.beforeStop();
    await clock.saved('/state', 5n);
    clock.standsStill();
    clock.beforeCont();
    expect(calls).toEqual(['locate', 'forget']);
  });

  it('is not advanced after a pause whose capture failed', async () => {
    const clock = make();
    clock.beforeStop();
    await clock.saved('/state', 5n);
    clock.beforeStop();
    clock.beforeCont();
    expect(calls).toEqual(['locate', 'beforePause']);
  });

  it.each(['locate', 'advance', 'beforePause', 'forget'])(
    'is left alone for good once %s has failed',
    async (call) => {
      const clock = make();
      failing = call;
      await pause(clock);
      clock.beforeStop();
      clock.standsStill();
      const before = calls.length;
      await pause(clock);
      clock.standsStill();
      expect(calls.length).toBe(before);
      expect(clock.status()).toMatchObject({ state: 'off', reason: expect.stringContaining('went wrong') });
      expect(warnings).toHaveLength(1);
    },
  );

  it.each([
    ['qemu', 'tcg', 'as it was set'],
    ['follow', 'kvm', 'KVM'],
  ] as const)('is QEMU’s with %s under %s', async (setting, accelerator, reason) => {
    const clock = make(setting, accelerator);
    await pause(clock);
    clock.standsStill();
    expect(calls).toEqual([]);
    expect(clock.status()).toMatchObject({ state: 'off', reason: expect.stringContaining(reason) });
    expect(followsOnStandby(setting, { accelerator })).toBe(false);
    expect(warnings).toEqual([]);
  });
});
