/**
 * Suite `epoch`: what an epoch costs, part by part, and what a failover takes.
 *
 * 512 MB Linux guest on TCG with a memory writer, two namespaces joined by a
 * veth pair, both roles on this machine. In the same run, as the floor that no
 * checkpointing on stock QEMU can go below: a bare stop, device state and cont
 * over QMP on the same, unprotected guest.
 */
import { measured } from '../lib/primary/epoch-report.js';
import { QmpClient } from '../lib/qmp/client.js';
import { saveDeviceState } from '../lib/qmp/recipes.js';
import { percentile } from '../lib/stats.js';
import { Lab } from '../test/lab/lab.js';
import {
  collectEpochs,
  endPair,
  type MeasuredEpoch,
  type RunningGuest,
  startGuest,
  startPair,
} from './pair.js';
import type { BenchResult } from './report.js';

export interface SuiteOutput {
  readonly results: BenchResult[];
  readonly ratios: Record<string, number>;
}

type Progress = (text: string) => void;

interface EpochCase {
  readonly name: string;
  readonly pagesPerSecond: number;
  readonly workingSetPages: number;
  readonly settings: {
    readonly intervalMs: number;
    readonly captureMode: 'staged' | 'direct';
    readonly sender: 'copy' | 'sendfile' | 'splice';
    readonly deviceState: 'xen-save' | 'migrate-fd';
  };
}

const usual = { captureMode: 'staged', sender: 'sendfile', deviceState: 'xen-save' } as const;

/** About 5,000 dirty pages in 100 ms, and at most 500 in 20 ms; then one change each. */
const cases: readonly EpochCase[] = [
  {
    name: 'dirty-5000',
    pagesPerSecond: 50_000,
    workingSetPages: 20_000,
    settings: { ...usual, intervalMs: 100 },
  },
  {
    name: 'dirty-500',
    pagesPerSecond: 15_000,
    workingSetPages: 4_000,
    settings: { ...usual, intervalMs: 20 },
  },
  {
    name: 'dirty-5000-copy',
    pagesPerSecond: 50_000,
    workingSetPages: 20_000,
    settings: { ...usual, intervalMs: 100, sender: 'copy' },
  },
  {
    name: 'dirty-5000-splice',
    pagesPerSecond: 50_000,
    workingSetPages: 20_000,
    settings: { ...usual, intervalMs: 100, sender: 'splice' },
  },
  {
    name: 'dirty-5000-direct',
    pagesPerSecond: 50_000,
    workingSetPages: 20_000,
    settings: { ...usual, intervalMs: 100, captureMode: 'direct' },
  },
  {
    name: 'dirty-500-migrate-fd',
    pagesPerSecond: 15_000,
    workingSetPages: 4_000,
    settings: { ...usual, intervalMs: 20, deviceState: 'migrate-fd' },
  },
];

const summarise = (epochs: readonly MeasuredEpoch[]): Record<string, number> => {
  const metrics: Record<string, number> = { epochs: epochs.length };
  const put = (name: string, samples: readonly number[]): void => {
    const [, stem = name, unit = ''] = /^(.*?)(Ms|Pages|Bytes)?$/.exec(name) ?? [];
    metrics[`${stem}${unit}P50`] = percentile(samples, 50);
    metrics[`${stem}${unit}P99`] = percentile(samples, 99);
  };
  for (const part of measured)
    put(
      part,
      epochs.map((epoch) => epoch[part]),
    );
  put(
    'applyMs',
    epochs.flatMap((epoch) => (epoch.previousApplyMs === undefined ? [] : [epoch.previousApplyMs])),
  );
  metrics.primaryOwnBytesMax = Math.max(...epochs.map((epoch) => epoch.ownBytes));
  return metrics;
};

/** The same QMP commands on the unprotected guest: the part of a pause that is QEMU's own. */
const measureFloor = async (lab: Lab, guest: RunningGuest, rounds: number): Promise<BenchResult> => {
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
    params: { commands: 'stop, xen-save-devices-state, cont' },
    metrics: { rounds, pauseMsP50: percentile(pauses, 50), pauseMsP99: percentile(pauses, 99) },
  };
};

const measureCase = async (one: EpochCase, epochs: number, progress: Progress): Promise<BenchResult[]> => {
  progress(`${one.name}: booting the guest`);
  await using lab = await Lab.create({ tag: 'bench' });
  const guest = await startGuest(lab, {
    workload: 'writer',
    pagesPerSecond: one.pagesPerSecond,
    workingSetPages: one.workingSetPages,
  });
  const results: BenchResult[] = [];
  if (one === cases[0]) results.push(await measureFloor(lab, guest, epochs));
  const pair = await startPair(lab, guest, one.settings);
  await collectEpochs(pair.primary, Math.min(20, epochs), 60_000); // warm-up: staging grows, caches fill
  progress(`${one.name}: measuring ${epochs} epochs`);
  const measured = await collectEpochs(pair.primary, epochs, 60_000 + epochs * one.settings.intervalMs * 10);
  await endPair(pair);
  results.push({
    name: one.name,
    params: { ...one.settings, pagesPerSecond: one.pagesPerSecond, ramMiB: 512, accelerator: 'tcg' },
    metrics: summarise(measured),
  });
  return results;
};

/** SIGKILL of the primary's QEMU and daemon, at a random moment of the epoch. */
const measureFailover = async (trials: number, progress: Progress): Promise<BenchResult> => {
  const resumed: number[] = [];
  const load: number[] = [];
  const fence: number[] = [];
  for (let trial = 0; trial < trials; trial += 1) {
    progress(`failover: ${trial + 1} of ${trials}`);
    await using lab = await Lab.create({ tag: 'bench' });
    const guest = await startGuest(lab, {
      workload: 'writer',
      pagesPerSecond: 15_000,
      workingSetPages: 4_000,
    });
    const { primary, backup } = await startPair(lab, guest, { intervalMs: 25 });
    await collectEpochs(primary, 10, 30_000);
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 50));
    const killedAtMs = Date.now();
    process.kill(primary.process.pid, 'SIGKILL');
    process.kill(guest.process.pid, 'SIGKILL');
    const report = await backup.message('took-over', { timeoutMs: 15_000 });
    resumed.push(Number(report.resumedAtMs) - killedAtMs);
    load.push(Number(report.loadMs));
    fence.push(Number(report.fenceMs));
  }
  return {
    name: 'failover',
    params: { kill: 'SIGKILL of QEMU and daemon', intervalMs: 25, trials },
    metrics: {
      killToRunningMsP50: percentile(resumed, 50),
      killToRunningMsMax: percentile(resumed, 100),
      loadMsP50: percentile(load, 50),
      loadMsMax: percentile(load, 100),
      fenceMsP50: percentile(fence, 50),
    },
  };
};

export const runEpochSuite = async (smoke: boolean, progress: Progress): Promise<SuiteOutput> => {
  const epochs = smoke ? 20 : 200;
  const results: BenchResult[] = [];
  for (const one of smoke ? cases.slice(0, 2) : cases)
    results.push(...(await measureCase(one, epochs, progress)));
  results.push(await measureFailover(smoke ? 1 : 10, progress));
  const metric = (name: string, key: string): number =>
    results.find((result) => result.name === name)?.metrics[key] ?? Number.NaN;
  const ratios: Record<string, number> = {
    pauseVsQemuFloor: metric('dirty-500', 'pauseMsP50') / metric('qemu-floor', 'pauseMsP50'),
    pauseVsQemuFloor5000: metric('dirty-5000', 'pauseMsP50') / metric('qemu-floor', 'pauseMsP50'),
  };
  if (!smoke) {
    ratios.pauseDirectVsStaged =
      metric('dirty-5000-direct', 'pauseMsP50') / metric('dirty-5000', 'pauseMsP50');
    ratios.ackCopyVsSendfile = metric('dirty-5000-copy', 'ackMsP50') / metric('dirty-5000', 'ackMsP50');
    ratios.ackSpliceVsSendfile = metric('dirty-5000-splice', 'ackMsP50') / metric('dirty-5000', 'ackMsP50');
  }
  return { results, ratios };
};
