/** Reports of the suites in the shape the benchmark writes, with invented figures. */
import type { BenchReport, BenchResult } from '../../../bench/report.js';

const strategies = ['copy', 'sendfile', 'splice', 'vmsplice', 'zerocopy', 'uring'] as const;

const report = (
  suite: string,
  results: readonly BenchResult[],
  ratios: Readonly<Record<string, number>>,
): BenchReport => ({
  suite,
  revision: 'abc1234',
  startedAt: '2026-01-02T03:04:05.000Z',
  durationS: 61,
  machine: {
    cpu: 'Invented <CPU> & Co.',
    cores: 2,
    memoryBytes: 24 * 2 ** 30,
    kernel: '6.18.0',
    qemu: 'QEMU emulator version 7.2.22',
    node: 'v20.19.0',
  },
  smoke: false,
  results,
  ratios,
});

interface Lane {
  readonly strategy: string;
  readonly runPages: number;
  readonly sizeMiB: number;
  readonly streams: number;
  readonly capture: string;
  readonly verify: boolean;
}

const transfer = (lane: Lane, cost: number, suffix = ''): BenchResult => ({
  name: `${lane.strategy}-run${lane.runPages}-${lane.sizeMiB}mib-${lane.capture}-streams${lane.streams}${suffix}`,
  params: { ...lane },
  metrics: {
    transfers: 30,
    sendMsP50: lane.sizeMiB * 0.3 * cost,
    sendMsP99: lane.sizeMiB * 0.5 * cost,
    ackMsP50: lane.sizeMiB * 0.4 * cost,
    ackMsP99: lane.sizeMiB * 0.7 * cost,
    throughputGbPerSP50: 2.6 / cost,
    senderCpuMsPerMbP50: 0.4 * cost,
    senderCpuMsPerMbP99: 0.6 * cost,
    senderProcessCpuMsPerMbP50: 0.5 * cost,
    receiverCpuMsPerMbP50: 0.25 + 0.01 * cost,
    senderSyscallsP50: Math.round(900 * cost),
    receiverSyscallsP50: 310,
    copiedBytesP50: lane.strategy === 'copy' ? lane.sizeMiB * 2 ** 20 : 0,
  },
});

const transfers = [1, 2].flatMap((streams) =>
  ['direct', 'staged'].flatMap((capture) =>
    [1, 20, 200].flatMap((sizeMiB) =>
      [1, 4, 32, 512].flatMap((runPages) =>
        strategies.map((strategy, index) =>
          transfer(
            { strategy, runPages, sizeMiB, streams, capture, verify: true },
            (1.6 - index / 6) * (1 + 1.2 / runPages) * (1 - streams / 8),
          ),
        ),
      ),
    ),
  ),
);

const controls = strategies.flatMap((strategy, index) =>
  [true, false].map((verify) =>
    transfer(
      { strategy, runPages: 4, sizeMiB: 20, streams: 1, capture: 'direct', verify },
      (verify ? 1.6 : 1.2) - index / 10,
      verify ? '-verified' : '-unverified',
    ),
  ),
);

const baselines: readonly BenchResult[] = [
  {
    name: 'iperf3-20mib-streams1',
    params: { tool: 'iperf3', sizeMiB: 20, streams: 1, scaled: false },
    metrics: { transfers: 10, sendMsP50: 4.1, ackMsP50: 5.2 },
  },
  {
    name: 'node-sync-run4-20mib',
    params: { tool: 'socket.write, reads sync', runPages: 4, sizeMiB: 20, streams: 1 },
    metrics: { transfers: 10, sendMsP50: 40, ackMsP50: 41, senderProcessCpuMsPerMbP50: 2.4 },
  },
];

export const sendReport = report('send', [...transfers, ...controls, ...baselines], {
  cpuZeroCopyVsCopyRun4: 0.62,
  cpuZeroCopyVsCopyRun1: 0.71,
});

const parts = (name: string, pauseMs: number): BenchResult => ({
  name,
  params: { captureMode: 'staged', sender: 'sendfile', intervalMs: 100, ramMiB: 512 },
  metrics: {
    epochs: 200,
    pauseMsP50: pauseMs,
    pauseMsP99: 2 * pauseMs,
    sendMsP50: 7,
    ackMsP50: 9,
    sendCpuMsP50: 5,
    dirtyPagesP50: 4549,
    bytesP50: 18_700_000,
  },
});

const sweep = [5, 10, 20, 50, 100, 200].flatMap((intervalMs) => [
  {
    name: `sweep-cpu-2500-${intervalMs}ms`,
    params: { workload: 'cpu', pagesPerSecond: 2500, intervalMs },
    metrics: {
      guestWorkShareP50: 1 - 3 / (intervalMs + 2),
      pauseMsP50: 2.8,
      outputDelayMsP50: intervalMs + 3,
    },
  },
  {
    name: `sweep-redis-${intervalMs}ms`,
    params: { workload: 'redis', connections: 256, intervalMs },
    metrics: {
      guestWorkShareP50: 1 - 4 / (intervalMs + 3),
      pauseMsP50: 3.9,
      outputDelayMsP50: intervalMs + 6,
    },
  },
]);

export const epochReport = report(
  'epoch',
  [
    { name: 'qemu-floor', params: {}, metrics: { rounds: 200, pauseMsP50: 2.27, pauseMsP99: 4.26 } },
    parts('dirty-5000', 3.1),
    parts('dirty-500', 2.9),
    parts('ram-8g', 4.7),
    {
      name: 'idle-200',
      params: { workload: 'idle', intervalMs: 1 },
      metrics: { seconds: 60, checkpointsPerSMean: 214, checkpointsPerSMin: 190, missed: 0, pauseMsP50: 2.6 },
    },
    ...sweep,
    {
      name: 'failover',
      params: { intervalMs: 25, trials: 10 },
      metrics: { killToRunningMsP50: 19, killToRunningMsMax: 25 },
    },
  ],
  {
    ...{
      pauseMsP50Dirty5000: 3.1,
      pauseMsP50Ram8g: 4.7,
      checkpointsPerSecondIdle: 214,
      checkpointsMissedIdle: 0,
    },
    ...{ pauseVsQemuFloor: 1.26, guestWorkShareRedisAt20Ms: 0.83 },
  },
);

const client = (
  probe: string,
  setUp: string,
  params: BenchResult['params'],
  roundTripMs: number,
  repliesPerS?: number,
): BenchResult => ({
  name: `${probe}-${setUp}`,
  params: { probe, ...params },
  metrics: {
    ...{ turns: 3, roundTrips: 600, lost: 0 },
    ...{ roundTripMsP50: roundTripMs, roundTripMsP99: 2 * roundTripMs, roundTripMsMax: 9 * roundTripMs },
    ...(repliesPerS === undefined ? {} : { repliesPerSP50: repliesPerS, throughputShareP50: 0.6 }),
  },
});

export const latencyReport = report(
  'latency',
  ['ping', 'redis-1', 'redis-50'].flatMap((probe) => {
    const repliesPerS = probe === 'ping' ? undefined : 9_000;
    return [
      client(probe, 'tap-unprotected', { gate: 'none', epochsBegin: 'never' }, 0.5, repliesPerS),
      client(
        probe,
        'filter-buffer-25ms',
        { gate: 'filter-buffer', epochsBegin: 'by the clock', intervalMs: 25 },
        16,
        repliesPerS,
      ),
      client(probe, 'relay-adaptive', { gate: 'relay', epochsBegin: 'by the load' }, 3.9, repliesPerS),
    ];
  }),
  { pingProtectedMsP50: 3.9, pingProtectedMsP99: 15.1, redisThroughputShare: 0.6 },
);

export const peersReport = report(
  'peers',
  [
    {
      name: 'checkpoint-colo',
      params: { replication: 'QEMU COLO' },
      metrics: { pauseMsP50: 59, pauseMsP90: 96, pauseMsP99: 120 },
    },
    {
      name: 'checkpoint-holdfast',
      params: { replication: 'Holdfast, staged' },
      metrics: { pauseMsP50: 4.1, pauseMsP90: 5, pauseMsP99: 8 },
    },
    { name: 'migrate-plain', params: { ramMiB: 1024 }, metrics: { turns: 5, pageBytesGbPerS: 1.1 } },
    { name: 'base-sync-splice', params: { ramMiB: 1024 }, metrics: { turns: 5, pageBytesGbPerS: 1.6 } },
  ],
  { pauseColoVsHoldfast: 14.4, baseSyncVsQemuMigrate: 1.45 },
);
