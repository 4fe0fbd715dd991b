/**
 * Suite `peers`: Holdfast beside what stock QEMU itself offers, in turns, in one run.
 *
 *   checkpoints  COLO and Holdfast (staged): how long each checkpoint keeps the guest from running
 *   base sync    `migrate` (plain, multifd, zero-copy-send) and Holdfast's base sync of the same RAM
 *
 * The guest is the flat multiboot guest of test/guest/flat.c. For the checkpoints it runs under /dev/kvm,
 * since COLO needs KVM and a Linux guest does not boot under every one of them. Two namespaces joined by a
 * veth pair stand for the hosts.
 */
import { accessSync, constants } from 'node:fs';
import { percentile } from '../lib/stats.js';
import { Lab } from '../test/lab/lab.js';
import {
  type BaseSyncSettings,
  baseSyncTurn,
  gbPerS,
  migrateTurn,
  type QemuMigration,
  type Transfer,
} from './peers/base-sync.js';
import { type CheckpointPlan, checkpointTurns, type HoldfastTurn, type Turn } from './peers/checkpoints.js';
import { flatHaltedText, startSource } from './peers/flat-guest.js';
import { writeRam } from './peers/ram.js';
import type { BenchResult, Progress, RunSuite, SuiteOutput, WantedCases } from './report.js';

interface Sizes {
  readonly checkpointTurns: number;
  readonly checkpoints: number;
  readonly syncTurns: number;
  /** Turns before these, in which caches and page tables fill. */
  readonly syncTurnsPassedOver: number;
  readonly syncRamMb: number;
}

const full: Sizes = {
  checkpointTurns: 3,
  checkpoints: 100,
  syncTurns: 5,
  syncTurnsPassedOver: 1,
  syncRamMb: 1024,
};
const small: Sizes = {
  checkpointTurns: 1,
  checkpoints: 5,
  syncTurns: 1,
  syncTurnsPassedOver: 0,
  syncRamMb: 128,
};

const INTERVAL_MS = 100;
const CHECKPOINT_GUEST = { accel: 'kvm', pages: 4096, ramMb: 512 } as const;
const CHECKPOINT_PARAMS = {
  guest: 'flat multiboot guest',
  accelerator: '/dev/kvm',
  machine: 'pc',
  pages: CHECKPOINT_GUEST.pages,
  ramMiB: CHECKPOINT_GUEST.ramMb,
  intervalMs: INTERVAL_MS,
};

const spread = (stem: string, samples: readonly number[]): Record<string, number> => ({
  [`${stem}MsP50`]: percentile(samples, 50),
  [`${stem}MsP90`]: percentile(samples, 90),
  [`${stem}MsP99`]: percentile(samples, 99),
});

const turnMetrics = (turns: readonly Turn[]): Record<string, number> => {
  const pauseMs = turns.flatMap(({ pauses }) => pauses.pauseMs);
  return {
    turns: turns.length,
    checkpoints: pauseMs.length,
    ...spread('pause', pauseMs),
    intervalMsP50: percentile(
      turns.flatMap(({ pauses }) => pauses.intervalMs),
      50,
    ),
    guestWritesPerCheckpointPages: percentile(
      turns.map(({ writesPerCheckpoint }) => writesPerCheckpoint),
      50,
    ),
  };
};

const holdfastMetrics = (turns: readonly HoldfastTurn[]): Record<string, number> => {
  const epochs = turns.flatMap(({ epochs }) => epochs);
  const median = (part: 'stopMs' | 'deviceMs' | 'scanMs' | 'copyMs' | 'contMs' | 'dirtyPages'): number =>
    percentile(
      epochs.map((epoch) => epoch[part]),
      50,
    );
  return {
    ...turnMetrics(turns),
    // With the messages to and from QEMU: `stop` sent to `cont` answered.
    ...spread(
      'pauseWithQmp',
      epochs.map(({ pauseMs }) => pauseMs),
    ),
    stopMsP50: median('stopMs'),
    deviceMsP50: median('deviceMs'),
    scanMsP50: median('scanMs'),
    copyMsP50: median('copyMs'),
    contMsP50: median('contMs'),
    dirtyPagesP50: median('dirtyPages'),
  };
};

const kvmMissing = (): string | undefined => {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
};

const nothing: SuiteOutput = { results: [], ratios: {} };

/** One case: neither is of use without the other. */
const CHECKPOINT_CASE = 'checkpoints';

const compareCheckpoints = async (sizes: Sizes, progress: Progress): Promise<SuiteOutput> => {
  const missing = kvmMissing();
  if (missing !== undefined) {
    progress(`checkpoints: left out, COLO needs KVM: ${missing}`);
    return nothing;
  }
  const plan: CheckpointPlan = {
    guest: CHECKPOINT_GUEST,
    intervalMs: INTERVAL_MS,
    count: sizes.checkpoints,
  };
  const colo: Turn[] = [];
  const holdfast: HoldfastTurn[] = [];
  for (let turn = 1; turn <= sizes.checkpointTurns; turn++) {
    progress(`checkpoints, turn ${turn} of ${sizes.checkpointTurns}`);
    const turns = await checkpointTurns(plan);
    colo.push(turns.colo);
    holdfast.push(turns.holdfast);
  }
  const peer = turnMetrics(colo);
  const ours = holdfastMetrics(holdfast);
  return {
    results: [
      { name: 'checkpoint-colo', params: { ...CHECKPOINT_PARAMS, replication: 'QEMU COLO' }, metrics: peer },
      {
        name: 'checkpoint-holdfast',
        params: { ...CHECKPOINT_PARAMS, replication: 'Holdfast, staged' },
        metrics: ours,
      },
    ],
    ratios: {
      pauseColoVsHoldfast: peer.pauseMsP50! / ours.pauseMsP50!,
      pauseColoVsHoldfastP90: peer.pauseMsP90! / ours.pauseMsP90!,
      // Unequal on purpose: Holdfast's side with QMP's round trips, COLO's without.
      pauseColoVsHoldfastWithQmp: peer.pauseMsP50! / ours.pauseWithQmpMsP50!,
    },
  };
};

interface Contender {
  readonly name: string;
  readonly params: BenchResult['params'];
  readonly turn: () => Promise<Transfer>;
}

/** QEMU's zero-copy-send exists with multifd only. */
const qemuMigrations: Readonly<Record<string, QemuMigration>> = {
  'migrate-plain': {},
  'migrate-multifd-2': { channels: 2 },
  'migrate-multifd-2-zerocopy': { channels: 2, zeroCopySend: true },
  'migrate-plain-prealloc': { prealloc: true },
  'migrate-multifd-2-prealloc': { channels: 2, prealloc: true },
};

/** The first as it is without being told otherwise. */
const holdfastSyncs: Readonly<Record<string, BaseSyncSettings>> = {
  'base-sync-default': { sender: 'auto', streams: 1 },
  'base-sync-copy': { sender: 'copy', streams: 1 },
  'base-sync-sendfile': { sender: 'sendfile', streams: 1 },
  'base-sync-splice': { sender: 'splice', streams: 1 },
  'base-sync-sendfile-2': { sender: 'sendfile', streams: 2 },
  'base-sync-splice-2': { sender: 'splice', streams: 2 },
};

const syncMetrics = (transfers: readonly Transfer[]): Record<string, number> => {
  const median = (part: (transfer: Transfer) => number): number => percentile(transfers.map(part), 50);
  return {
    turns: transfers.length,
    pages: median(({ pages }) => pages),
    zeroPages: median(({ zeroPages }) => zeroPages),
    wireBytes: median(({ wireBytes }) => wireBytes),
    syncMsP50: median(({ syncMs }) => syncMs),
    syncMsMin: Math.min(...transfers.map(({ syncMs }) => syncMs)),
    syncMsMax: Math.max(...transfers.map(({ syncMs }) => syncMs)),
    pageBytesGbPerS: median(gbPerS),
  };
};

const compareBaseSync = async (
  sizes: Sizes,
  progress: Progress,
  wanted: WantedCases,
): Promise<SuiteOutput> => {
  const names = new Set(
    [...Object.keys(qemuMigrations), ...Object.keys(holdfastSyncs)].filter((name) => wanted.wants(name)),
  );
  if (names.size === 0) return nothing;
  await using lab = await Lab.create({ tag: 'sync' });
  const ramPath = lab.sharedMemoryPath('ram');
  await writeRam(ramPath, sizes.syncRamMb);
  // Asked for more pages than it has, the guest halts: a VM that runs and writes nothing.
  const options = { accel: 'tcg', pages: 0xffff_ffff, ramMb: sizes.syncRamMb } as const;
  const guest = await startSource(lab, { ...options, ramPath }, flatHaltedText);
  const common = { guest: 'flat multiboot guest, halted', accelerator: 'tcg', ramMiB: sizes.syncRamMb };
  const contenders: readonly Contender[] = [
    ...Object.entries(qemuMigrations).map(([name, migration]) => ({
      name,
      params: { ...common, ...migration },
      turn: () => migrateTurn(lab, guest, options, migration),
    })),
    ...Object.entries(holdfastSyncs).map(([name, settings]) => ({
      name,
      params: { ...common, ...settings },
      turn: () => baseSyncTurn(lab, guest, settings),
    })),
  ].filter(({ name }) => names.has(name));
  const transfers = new Map(contenders.map(({ name }) => [name, [] as Transfer[]]));
  for (let turn = 1 - sizes.syncTurnsPassedOver; turn <= sizes.syncTurns; turn++) {
    progress(turn < 1 ? 'base sync, warming up' : `base sync, turn ${turn} of ${sizes.syncTurns}`);
    for (const contender of contenders) {
      const transfer = await contender.turn();
      if (turn >= 1) transfers.get(contender.name)!.push(transfer);
    }
  }
  const results = contenders.map(({ name, params }) => ({
    name,
    params,
    metrics: syncMetrics(transfers.get(name)!),
  }));
  return { results, ratios: syncRatios(results) };
};

const syncRatios = (results: readonly BenchResult[]): Record<string, number> => {
  // NaN if none of them was wanted: then there is no ratio.
  const best = (names: readonly string[]): number =>
    percentile(
      results.filter(({ name }) => names.includes(name)).map(({ metrics }) => metrics.pageBytesGbPerS!),
      100,
    );
  const usual = Object.entries(qemuMigrations).filter(([, { prealloc }]) => prealloc !== true);
  const ours = best(Object.keys(holdfastSyncs));
  return {
    baseSyncVsQemuMigrate: ours / best(Object.keys(qemuMigrations)),
    baseSyncVsQemuMigrateNoPrealloc: ours / best(usual.map(([name]) => name)),
  };
};

export const runPeersSuite: RunSuite = async (smoke, progress, wanted) => {
  const sizes = smoke ? small : full;
  const checkpoints = wanted.wants(CHECKPOINT_CASE) ? await compareCheckpoints(sizes, progress) : nothing;
  const baseSync = await compareBaseSync(sizes, progress, wanted);
  return {
    results: [...checkpoints.results, ...baseSync.results],
    ratios: { ...checkpoints.ratios, ...baseSync.ratios },
  };
};
