/**
 * What an epoch costs, part by part, with one thing changed at a time; and in the
 * same run, as the floor that no checkpointing on stock QEMU can go below: a bare
 * stop, device state and cont over QMP on the same, unprotected guest.
 */
import { native } from '../../lib/native.js';
import type { PrimarySettings } from '../../lib/primary/options.js';
import { QmpClient } from '../../lib/qmp/client.js';
import { saveDeviceState } from '../../lib/qmp/recipes.js';
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { type BenchGuest, collectEpochs, endPair, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress, WantedCases } from '../report.js';
import { summariseEpochs } from './summary.js';

interface EpochCase {
  readonly name: string;
  /** Of the full run; a smoke run takes few of each case. */
  readonly epochs: number;
  readonly settings: Pick<PrimarySettings, 'captureMode' | 'gate' | 'sender' | 'deviceState'> & {
    readonly intervalMs: number;
  };
}

/** Cases on a guest of one dirty rate, one after the other. */
interface GuestCases {
  readonly pagesPerSecond: number;
  readonly workingSetPages: number;
  readonly cases: readonly EpochCase[];
}

const usual = { gate: 'relay', captureMode: 'staged', sender: 'sendfile', deviceState: 'xen-save' } as const;

/** Compared with sendfile. */
export const otherSenders = ['copy', 'splice', 'vmsplice', 'zerocopy', 'uring', 'auto'] as const;

/** Why this kernel can't send so; undefined if it can. */
const senderMissing = (sender: PrimarySettings['sender']): string | undefined => {
  const { zerocopy, zerocopyReason, uring, uringReason } = native.probeSenders();
  if (sender === 'zerocopy' && !zerocopy) return zerocopyReason ?? 'not supported';
  return sender === 'uring' && !uring ? (uringReason ?? 'not supported') : undefined;
};

/** About 5,000 dirty pages in 100 ms, and at most 500 in 20 ms; then one change each. */
const plan: readonly GuestCases[] = [
  {
    pagesPerSecond: 50_000,
    workingSetPages: 20_000,
    cases: [
      { name: 'dirty-5000', epochs: 200, settings: { ...usual, intervalMs: 100 } },
      ...otherSenders.map((sender) => ({
        name: `dirty-5000-${sender}`,
        epochs: 100,
        settings: { ...usual, intervalMs: 100, sender },
      })),
      {
        name: 'dirty-5000-direct',
        epochs: 100,
        settings: { ...usual, intervalMs: 100, captureMode: 'direct' },
      },
    ],
  },
  {
    pagesPerSecond: 15_000,
    workingSetPages: 4_000,
    cases: [
      { name: 'dirty-500', epochs: 200, settings: { ...usual, intervalMs: 20 } },
      {
        name: 'dirty-500-filter-buffer',
        epochs: 200,
        settings: { ...usual, intervalMs: 20, gate: 'filter-buffer' },
      },
      {
        name: 'dirty-500-migrate-fd',
        epochs: 200,
        settings: { ...usual, intervalMs: 20, deviceState: 'migrate-fd' },
      },
    ],
  },
];

const SMOKE_EPOCHS = 20;
const WARM_UP_EPOCHS = 20;
const FLOOR_ROUNDS = 200;
/** The smoke run's: one of each dirty rate. */
const smokeCases: readonly string[] = ['dirty-5000', 'dirty-500'];

/** The same QMP commands on the unprotected guest: the part of a pause that is QEMU's own. */
const measureFloor = async (lab: Lab, guest: BenchGuest, rounds: number): Promise<BenchResult> => {
  await using qmp = await QmpClient.connect(guest.qmpPath);
  const pauses: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const startMs = performance.now();
    await qmp.execute('stop');
    await saveDeviceState(qmp, lab.sharedMemoryPath('floor'));
    await qmp.execute('cont');
    pauses.push(performance.now() - startMs);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    name: 'qemu-floor',
    params: { commands: 'stop, xen-save-devices-state, cont', accelerator: 'tcg' },
    metrics: { rounds, pauseMsP50: percentile(pauses, 50), pauseMsP99: percentile(pauses, 99) },
  };
};

const measureCase = async (
  lab: Lab,
  guest: BenchGuest,
  one: EpochCase,
  epochs: number,
): Promise<Record<string, number>> => {
  const pair = await startPair(lab, guest, one.settings);
  await collectEpochs(pair.primary, Math.min(WARM_UP_EPOCHS, epochs), 60_000); // staging grows, caches fill
  const measured = await collectEpochs(pair.primary, epochs, 60_000 + epochs * one.settings.intervalMs * 10);
  await endPair(pair);
  return summariseEpochs(measured);
};

/** `qemu-floor`, and the cases of the plan. */
export const measureParts = async (
  smoke: boolean,
  progress: Progress,
  wanted: WantedCases,
): Promise<BenchResult[]> => {
  const results: BenchResult[] = [];
  let floorWanted = wanted.wants('qemu-floor');
  for (const { cases, ...writer } of plan) {
    const chosen = cases.filter(({ name }) => (!smoke || smokeCases.includes(name)) && wanted.wants(name));
    if (chosen.length === 0 && !floorWanted) continue;
    progress(`booting a guest that writes ${writer.pagesPerSecond} pages per second`);
    await using lab = await Lab.create({ tag: 'bench' });
    const guest = await startRelayedGuest(lab, { workload: 'writer', ...writer });
    if (floorWanted) {
      progress('qemu-floor');
      results.push(await measureFloor(lab, guest, smoke ? SMOKE_EPOCHS : FLOOR_ROUNDS));
      floorWanted = false;
    }
    for (const one of chosen) {
      const missing = senderMissing(one.settings.sender);
      if (missing !== undefined) {
        progress(`${one.name} is left out: ${missing}`);
        continue;
      }
      const epochs = smoke ? SMOKE_EPOCHS : one.epochs;
      progress(`${one.name}: ${epochs} epochs`);
      results.push({
        name: one.name,
        params: { ...one.settings, ...writer, ramMiB: 512, accelerator: 'tcg' },
        metrics: await measureCase(lab, guest, one, epochs),
      });
    }
  }
  return results;
};
