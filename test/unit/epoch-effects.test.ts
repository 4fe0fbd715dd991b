import { describe, expect, it } from 'vitest';
import { PeerLostError } from '../../lib/errors.js';
import type { CaptureResult, SendOptions, SendResult } from '../../lib/native.js';
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
  scanMs: 1,
  copyMs: 1,
};

const sendingState = (epoch: number): PrimaryState => ({
  ...initialState(
    { intervalMs: 25, onBackupLost: 'hold', retryMs: 1, captureFailuresMax: 3, convergence: () => true },
    { term: 1, gateAdopted: false, operatorPaused: false, vmStopped: false },
  ),
  epoch,
  phase: {
    name: 'protected',
    due: false,
    lost: undefined,
    cycle: { at: 'sending', epoch, mode: 'staged', final: false, resumed: true, acked: false },
  },
});

/** Epochs around an engine and a driver that do at once what they are asked for. */
const stage = (sender: SenderSetting, send: (options: SendOptions) => Partial<SendResult>) => {
  const asked: SendOptions[] = [];
  const events: PrimaryEvent[] = [];
  const reports: EpochReport[] = [];
  const lost: string[] = [];
  let state = sendingState(1);
  const options: EpochEffectsOptions = {
    settings: { captureMode: 'staged', prestage: 'off', sender, ackTimeoutMs: 10_000 },
    engine: {
      prestage: () => Promise.reject(new Error('prestage is off')),
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
          deviceSentBytes: 10,
          supersededBytes: 0,
          sendMs: 2,
          ackMs: 4,
          syscalls: 7,
          copiedBytes: 0,
          referenceBytes: PAGES * 4_096,
          completions: 0,
          cpuMs: 2,
          previousApplyMs: -1,
          ...send(wanted),
        };
      },
    },
    driver: {
      lastResumeMs: 0,
      pause: async ({ capture }) => ({
        captured: await capture(),
        pauseStartMs: 1,
        stopMs: 0,
        deviceMs: 0,
        gateMs: 0,
        device: { path: '/device', skipBytes: 8 },
        prefix: undefined,
      }),
      resume: () => Promise.resolve(0),
      release: () => Promise.resolve(),
      idle: () => Promise.resolve(),
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
  };
  const effects = new EpochEffects(options);
  const epoch = async (number: number): Promise<void> => {
    state = sendingState(number);
    await effects.begin({
      type: 'begin-epoch',
      epoch: number,
      installGate: false,
      takePrefix: false,
      final: false,
    });
    await effects.resume();
    await effects.send(number);
    await effects.release(number);
  };
  return { effects, epoch, asked, events, reports, lost, become: (next: PrimaryState) => (state = next) };
};

describe('an epoch', () => {
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
    await effects.begin({
      type: 'begin-epoch',
      epoch: 1,
      installGate: false,
      takePrefix: false,
      final: false,
    });
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
