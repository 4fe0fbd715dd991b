import { describe, expect, it, vi } from 'vitest';
import { PeerLostError } from '../../lib/errors.js';
import type { CaptureResult, PrestageOptions, SendOptions, SendResult } from '../../lib/native.js';
import { EpochEffects, type EpochEffectsOptions } from '../../lib/primary/epoch-effects.js';
import type { EpochReport } from '../../lib/primary/epoch-report.js';
import { initialState, type PrimaryEvent, type PrimaryState } from '../../lib/primary/machine.js';
import type { SenderSetting } from '../../lib/send/sender-choice.js';

const PAGES = 1_000;
const captured: CaptureResult = {
  mode: 'staged',
  dirtyPages: PAGES,
  prestagedPages: 0,
  supersededPages: 0,
  aheadPages: 0,
  heldBackPages: 0,
  runs: PAGES,
  laterPages: 0,
  diskBytes: 0,
  scanMs: 1,
  copyMs: 1,
};

const sendingState = (epoch: number): PrimaryState => ({
  ...initialState(
    {
      ...{ onBackupLost: 'hold', retryMs: 1, captureFailuresMax: 3 },
      purpose: { kind: 'protect', convergence: () => true },
    },
    { term: 1, hasDisks: false, gateAdopted: false, operatorPaused: false, vmStopped: false },
  ),
  epoch,
  phase: {
    name: 'protected',
    due: undefined,
    lost: undefined,
    cycle: { at: 'sending', epoch, mode: 'staged', final: false, resumed: true, acked: false },
  },
});

const beginEpoch = (epoch: number) =>
  ({
    type: 'begin-epoch',
    epoch,
    installGate: false,
    takePrefix: false,
    final: false,
    trigger: 'interval',
  }) as const;

/** Epochs around an engine and a driver that do at once what they are asked for. */
const stage = (
  sender: SenderSetting,
  send: (options: SendOptions) => Partial<SendResult>,
  settings: Partial<EpochEffectsOptions['settings']> = {},
) => {
  const asked: SendOptions[] = [];
  const slices: PrestageOptions[] = [];
  let slice: (options: PrestageOptions) => Promise<unknown> = () => Promise.resolve();
  let onOutput: () => void = () => {};
  const paused: number[] = [];
  const vm = { failure: undefined as Error | undefined, isStopped: false, resumes: 0 };
  const events: PrimaryEvent[] = [];
  const reports: EpochReport[] = [];
  const lost: string[] = [];
  let state = sendingState(1);
  const options: EpochEffectsOptions = {
    settings: {
      captureMode: 'staged',
      speculate: 'off',
      sender,
      ackTimeoutMs: 10_000,
      minIntervalMs: 2,
      maxIntervalMs: 60_000,
      pauseBudgetMs: 5,
      stagingMiB: 256,
      ...settings,
    },
    engine: {
      prestage: async (wanted) => {
        slices.push(wanted);
        await slice(wanted);
        return {
          pages: 300,
          heldBackPages: 0,
          supersededPages: 0,
          supersededSentPages: 0,
          bytes: 0,
          scanMs: 0.2,
          copyMs: 0.3,
          sendMs: wanted.send ? 0.5 : 0,
        };
      },
      capture: () => Promise.resolve(captured),
      abort: () => Promise.resolve(),
      send: async (wanted) => {
        asked.push(wanted);
        return {
          epoch: wanted.epoch,
          pages: PAGES,
          zeroPages: 0,
          bytes: PAGES * 4_096,
          deviceBytes: 10,
          deviceSentBytes: 3,
          supersededBytes: 0,
          sendMs: 2,
          ackMs: 4,
          syscalls: 7,
          copiedBytes: 0,
          referenceBytes: PAGES * 4_096,
          completions: 0,
          diskBytes: 0,
          cpuMs: 2,
          previousApplyMs: -1,
          ...send(wanted),
        };
      },
    },
    driver: {
      lastResumeMs: performance.now() - 100,
      get isStoppedByUs() {
        return vm.isStopped;
      },
      pause: async ({ epoch, capture }) => {
        paused.push(epoch);
        if (vm.failure !== undefined) throw vm.failure;
        return {
          captured: await capture(),
          pauseStartMs: performance.now(),
          stopMs: 0,
          deviceMs: 0,
          gateMs: 0,
          device: { path: '/device', skipBytes: 8 },
          prefix: undefined,
        };
      },
      resume: async () => {
        vm.resumes += 1;
        return 0;
      },
      release: () => Promise.resolve(),
      idle: () => Promise.resolve(),
    },
    gate: {
      kind: 'relay',
      seesOutput: true,
      onOutput: (listener) => {
        onOutput = listener;
      },
      stats: () => undefined,
    },
    pageSize: 4_096,
    unavailable: new Map([['uring', 'not here']]),
    log: { debug() {}, info() {}, warn() {}, error() {} },
    state: () => state,
    qmpIsOpen: () => true,
    dispatch: (event) => events.push(event),
    fail: (error) => {
      throw error;
    },
    lostOnBulk: (_error, context) => lost.push(context),
    onReport: (report) => reports.push(report),
    onFinal: () => {},
  };
  const effects = new EpochEffects(options);
  const epoch = async (number: number): Promise<void> => {
    state = sendingState(number);
    await effects.begin(beginEpoch(number));
    await effects.resume();
    await effects.send(number);
    await effects.release(number);
  };
  return {
    effects,
    epoch,
    asked,
    slices,
    paused,
    vm,
    events,
    reports,
    lost,
    become: (next: PrimaryState) => (state = next),
    output: () => onOutput(),
    slicing: (run: (options: PrestageOptions) => Promise<unknown>) => (slice = run),
  };
};

/** Released, and nothing under way. */
const idleAfter = (epoch: number): PrimaryState => ({
  ...sendingState(epoch),
  phase: { name: 'protected', due: undefined, lost: undefined, cycle: { at: 'idle' } },
});

const eventually = async (what: () => boolean): Promise<void> => {
  await vi.waitFor(() => expect(what()).toBe(true), { timeout: 10_000, interval: 1 });
};

describe('an epoch', () => {
  it.each([true, false])(
    'whose capture fails leaves the VM running, if it was stopped for it: %s',
    async (isStopped) => {
      const { effects, vm, events } = stage('splice', () => ({}));
      Object.assign(vm, { failure: new Error('no'), isStopped });
      await effects.begin(beginEpoch(1));
      expect(vm.resumes).toBe(isStopped ? 1 : 0);
      expect(events).toMatchObject([{ type: 'capture-failed', epoch: 1 }]);
    },
  );

  it('is not captured of a VM that was paused while its slices came to an end', async () => {
    const { effects, paused, vm, events, become } = stage('splice', () => ({}));
    const begun = effects.begin(beginEpoch(1));
    become({ ...sendingState(1), operatorPaused: true });
    await begun;
    expect(paused).toEqual([]);
    expect(vm.resumes).toBe(0);
    expect(events).toMatchObject([{ type: 'capture-failed', failure: { code: 'HOLDFAST_E_CANCELLED' } }]);
  });

  it('goes from capture to release, and its report says how it was sent', async () => {
    const { epoch, events, reports, asked, effects } = stage('splice', () => ({ copiedBytes: 5 }));
    await epoch(1);
    expect(events.map(({ type }) => type)).toEqual(['captured', 'resumed', 'acked', 'released']);
    expect(asked).toEqual([
      { epoch: 1, strategy: 'splice', device: { path: '/device', skipBytes: 8 }, prefix: undefined },
    ]);
    expect(reports).toHaveLength(1);
    expect(reports[0]).toMatchObject({
      epoch: 1,
      sender: 'splice',
      syscalls: 7,
      copiedBytes: 5,
      referenceBytes: PAGES * 4_096,
      sendCpuMs: 2,
      trigger: 'interval',
      slices: 0,
      deviceSentBytes: 3,
    });
    expect(effects.count).toBe(1);
    expect(effects.summary().referenceBytes?.p50).toBe(PAGES * 4_096);
  });

  it('is sent by what has turned out to be the cheapest', async () => {
    const { epoch, asked, effects } = stage('auto', ({ strategy }) =>
      strategy === 'splice' ? { cpuMs: 1, ackMs: 1 } : {},
    );
    for (let number = 1; number <= 100; number += 1) await epoch(number);
    expect(new Set(asked.map(({ strategy }) => strategy)).size).toBe(5);
    expect(asked.slice(-20).every(({ strategy }) => strategy === 'splice')).toBe(true);
    const { strategy, reason } = effects.explainSender();
    expect(strategy).toBe('splice');
    expect(reason).toMatch(
      /^auto: 0\.24 ms CPU and 0\.24 ms .*; one fragment of 1000 pages; not uring: not here$/,
    );
    effects.relink(false);
    expect(effects.explainSender().reason).toMatch(/^auto: nothing sent yet/);
  });

  it('that was lost meanwhile is not sent', async () => {
    const { effects, asked, become } = stage('auto', () => ({}));
    await effects.begin(beginEpoch(1));
    become({ ...sendingState(1), phase: { name: 'connecting' } });
    await effects.send(1);
    become(sendingState(2));
    await effects.send(1);
    expect(asked).toEqual([]);
  });

  it('that fails on its way is reported as lost, not as acknowledged', async () => {
    const { epoch, events, reports, lost } = stage('auto', () => {
      throw new PeerLostError('gone');
    });
    await epoch(1);
    expect(events.map(({ type }) => type)).not.toContain('acked');
    expect(lost).toEqual(['sending epoch 1']);
    expect(reports).toEqual([]);
  });
});

describe('the next epoch', () => {
  const lazy = { speculate: 'off' } as const;

  it('is due when output waits, by one tick, and not for output of the one that is captured', async () => {
    const { effects, epoch, events, output } = stage('copy', () => ({}), lazy);
    effects.arm();
    output();
    await epoch(1);
    events.length = 0;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(events).toEqual([]);
    output();
    await eventually(() => events.length > 0);
    output();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(events).toEqual([{ type: 'tick', trigger: 'output' }]);
  });

  it('is due by the clock, where it is fixed, whatever waits', async () => {
    const { effects, epoch, events, output } = stage('copy', () => ({}), { ...lazy, intervalMs: 30 });
    effects.arm();
    await epoch(1);
    output();
    await eventually(() => events.some(({ type }) => type === 'tick'));
    expect(events.at(-1)).toEqual({ type: 'tick', trigger: 'interval' });
  });

  it('is not, once disarmed', async () => {
    const { effects, epoch, events, output } = stage('copy', () => ({}), { ...lazy, intervalMs: 5 });
    effects.arm();
    await effects.disarm();
    await epoch(1);
    events.length = 0;
    output();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(events).toEqual([]);
  });

  it('says in its report how long output waited, and why it began', async () => {
    const { effects, epoch, output, reports } = stage('copy', () => ({}), lazy);
    effects.arm();
    await epoch(1);
    output();
    await epoch(2);
    expect(reports[0]!.outputWaitMs).toBeUndefined();
    expect(reports[1]!.outputWaitMs).toBeGreaterThan(0);
    expect(effects.summary().outputWaitMs?.max).toBe(reports[1]!.outputWaitMs);
    expect(effects.explainPacing(effects.summary())).toMatchObject({ mode: 'load', trigger: 'interval' });
  });
});

describe('slices', () => {
  const always = { speculate: 'auto', intervalMs: 40 } as const;

  /** Past its first epoch, idle, with the next one due in 40 ms. */
  const speculating = async (...settings: Parameters<typeof stage>) => {
    const staged = stage(...settings);
    staged.effects.arm();
    await staged.epoch(1);
    staged.effects.arm();
    await staged.effects.begin(beginEpoch(2));
    await staged.effects.resume();
    staged.become(sendingState(2));
    await staged.effects.send(2);
    staged.become(idleAfter(2));
    await staged.effects.release(2);
    return staged;
  };

  it('are taken of the coming epoch, while nothing else is under way', async () => {
    const { slices, effects } = await speculating('copy', () => ({}), always);
    slices.length = 0;
    await eventually(() => slices.length > 0);
    await effects.disarm();
    expect(slices.every(({ epoch, bytesMax }) => epoch === 3 && bytesMax! > 0)).toBe(true);
    const taken = slices.length;
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(slices).toHaveLength(taken);
  });

  it('hold the pause up until they have ended', async () => {
    const { slices, slicing, effects, paused, become } = await speculating('copy', () => ({}), always);
    let end: () => void = () => {};
    slicing(() => new Promise<void>((resolve) => (end = resolve)));
    slices.length = 0;
    await eventually(() => slices.length > 0);
    become(sendingState(3));
    const begun = effects.begin(beginEpoch(3));
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(paused).not.toContain(3);
    slicing(() => Promise.resolve());
    end();
    await begun;
    expect(paused).toContain(3);
  });

  it('that fail are a lost connection; the epoch is captured without them', async () => {
    const { slices, slicing, effects, lost, paused } = await speculating('copy', () => ({}), always);
    slicing(() => Promise.reject(new PeerLostError('gone')));
    slices.length = 0;
    await eventually(() => slices.length > 0);
    await eventually(() => lost.length > 0);
    expect(lost).toEqual(['speculative capture of epoch 3']);
    slicing(() => Promise.resolve());
    await effects.begin(beginEpoch(3));
    expect(paused).toContain(3);
  });

  it('end with the session, which waits for the one under way', async () => {
    const { slices, slicing, effects } = await speculating('copy', () => ({}), always);
    let end: () => void = () => {};
    slicing(() => new Promise<void>((resolve) => (end = resolve)));
    slices.length = 0;
    await eventually(() => slices.length > 0);
    let ended = false;
    const disarmed = effects.disarm().then(() => {
      ended = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(ended).toBe(false);
    end();
    await disarmed;
  });

  it('are not taken where speculation is off', async () => {
    const { slices } = await speculating('copy', () => ({}), { ...always, speculate: 'off' });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(slices).toEqual([]);
  });
});
