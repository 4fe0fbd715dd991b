/** What each ratio compares (some are figures that have a goal of their own), and the figure to reach where there is one. */
import type { BenchReport } from '../report.js';

interface Ratio {
  /** What is divided by what; or which figure it is, where a goal is an absolute one. */
  readonly meaning: string;
  readonly goal?: { readonly atMost: number } | { readonly atLeast: number };
}

const ratios: Readonly<Record<string, Ratio>> = {
  cpuZeroCopyVsCopyRun4: {
    meaning: 'sender CPU per MB, best zero-copy strategy ÷ copy, runs of 4 pages',
    goal: { atMost: 0.5 },
  },
  cpuZeroCopyVsCopyRun1: {
    meaning: 'sender CPU per MB, best zero-copy strategy ÷ copy, single scattered pages',
    goal: { atMost: 0.8 },
  },
  ackVsIperf3: {
    meaning: 'time to acknowledgement of 20 MB, best strategy ÷ iperf3 for the same bytes',
    goal: { atMost: 1.1 },
  },
  ackVsIperf3Scattered: {
    meaning: 'the same, single scattered pages ÷ iperf3 for the same bytes',
    goal: { atMost: 1.6 },
  },
  cpuNodeVsHoldfast: {
    meaning: 'CPU per MB, socket.write of Buffers ÷ Holdfast’s sender',
    goal: { atLeast: 3 },
  },
  baseSyncVsQemuMigrate: {
    meaning: 'throughput of the same RAM, base sync ÷ QEMU’s best migrate',
    goal: { atLeast: 1.3 },
  },
  pauseColoVsHoldfast: {
    meaning:
      'median pause per checkpoint of the same guest, QEMU COLO ÷ Holdfast staged (the goal was 10 before pages were staged and sent ahead of the pause)',
    goal: { atLeast: 20 },
  },
  pauseMsP50Dirty5000: {
    meaning: 'pause in ms, median, about 5,000 dirty pages per 100 ms',
    goal: { atMost: 2.5 },
  },
  pauseMsP99Dirty5000: { meaning: 'the same, 99th percentile', goal: { atMost: 6 } },
  pauseMsP50Ram8g: {
    meaning: 'pause in ms, median, of a guest of 8 GB that has written all of it and now dirties few pages',
    goal: { atMost: 5 },
  },
  pauseMsP50Ram8gFresh: {
    meaning: 'the same of a guest of 8 GB that has written only what it needs',
    goal: { atMost: 5 },
  },
  checkpointsPerSecondIdle: {
    meaning: 'acknowledged checkpoints per second of an idle guest, over a minute',
    goal: { atLeast: 200 },
  },
  checkpointsMissedIdle: {
    meaning: 'checkpoints of that minute that were never acknowledged',
    goal: { atMost: 0 },
  },
  guestCpuShare20ms: {
    meaning: 'rate of a guest’s CPU-bound work, protected every 20 ms ÷ unprotected',
    goal: { atLeast: 0.85 },
  },
  pingProtectedMsP50: {
    meaning: 'ping through the protected VM in ms, median, epochs by the load',
    goal: { atMost: 5 },
  },
  pingProtectedMsP99: { meaning: 'the same, 99th percentile', goal: { atMost: 15 } },
  redisOneClientMsP50: {
    meaning: 'redis, one client, request to reply in ms, median, epochs by the load',
    goal: { atMost: 6 },
  },
  redisThroughputShare: {
    meaning: 'redis, 50 clients with 16 requests under way each: replies per second, protected ÷ unprotected',
    goal: { atLeast: 0.5 },
  },
  pingProtectedVsUnprotectedP50: { meaning: 'median ping, epochs by the load ÷ unprotected' },
  pingProtectedVsUnprotectedP99: { meaning: 'the same, 99th percentiles' },
  redisOneClientVsUnprotected: { meaning: 'redis, one client: median, epochs by the load ÷ unprotected' },
  pingAdaptiveVsInterval: {
    meaning: 'median ping, epochs by the load ÷ by the clock at the better of the intervals',
  },
  redisOneClientAdaptiveVsInterval: { meaning: 'redis, one client: the same' },
  redisThroughputVsTapUnprotected: {
    meaning: 'as redisThroughputShare, ÷ unprotected without a relay',
  },
  pingRelayVsFilterBuffer: { meaning: 'median ping every 25 ms, relay ÷ filter-buffer' },
  pingRelayVsTapUnprotected: { meaning: 'median ping, unprotected: through the relay ÷ straight to the tap' },
  pauseVsQemuFloor: { meaning: 'median pause, dirty-500 ÷ bare stop, device state and cont' },
  pauseVsQemuFloorRam8g: { meaning: 'median pause, ram-8g ÷ bare stop, device state and cont' },
  pauseVsQemuFloor5000: { meaning: 'median pause, dirty-5000 ÷ bare stop, device state and cont' },
  cpuZeroCopyVsCopyRun32: { meaning: 'sender CPU per MB, best zero-copy strategy ÷ copy, runs of 32 pages' },
  cpuZeroCopyVsCopyRun512: {
    meaning: 'sender CPU per MB, best zero-copy strategy ÷ copy, runs of 512 pages',
  },
  cpuZeroCopyVsCopyRun1Staged: { meaning: 'as for Run1, from staging' },
  cpuZeroCopyVsCopyRun4Staged: { meaning: 'as for Run4, from staging' },
  cpuZeroCopyVsCopyRun1Unverified: { meaning: 'as for Run1, without the digest, which costs all the same' },
  cpuZeroCopyVsCopyRun4Unverified: { meaning: 'as for Run4, without the digest, which costs all the same' },
  ackVsIperf3Streams2: { meaning: 'as ackVsIperf3, over two streams each' },
  ackVsIperf3Sendfile: { meaning: 'as ackVsIperf3, ÷ iperf3 -Z' },
  ackVsIperf3Steady: { meaning: 'as ackVsIperf3, ÷ the same bytes at the pace of iperf3’s long run' },
  cpuNodeVsHoldfastRun1: { meaning: 'as cpuNodeVsHoldfast, single scattered pages' },
  cpuNodeVsHoldfastRun32: { meaning: 'as cpuNodeVsHoldfast, runs of 32 pages' },
  cpuNodeVsHoldfastRun512: { meaning: 'as cpuNodeVsHoldfast, runs of 512 pages' },
  cpuVerifiedVsUnverified: { meaning: 'sender CPU per MB, with the digest ÷ without' },
  ackVerifiedVsUnverified: { meaning: 'time to acknowledgement, with the digest ÷ without' },
  receiverCpuVerifiedVsUnverified: { meaning: 'receiver CPU per MB, with the digest ÷ without' },
  pauseColoVsHoldfastP90: { meaning: 'as pauseColoVsHoldfast, 90th percentiles' },
  pauseColoVsHoldfastWithQmp: {
    meaning: 'COLO without ÷ Holdfast with QMP’s round trips: unequal to Holdfast’s disadvantage',
  },
  baseSyncVsQemuMigrateNoPrealloc: {
    meaning: 'throughput of the same RAM, base sync ÷ QEMU’s best migrate without prealloc=on',
  },
  timeDriftUnprotectedPpm: { meaning: 'guest’s clock against the host’s, unprotected, in millionths' },
  timeDriftProtectedPpm: { meaning: 'the same, with a checkpoint every 20 ms' },
  timeDriftAfterFailoverPpm: { meaning: 'the same, on the backup after a failover' },
  timeStepAtFailoverMs: { meaning: 'by how much the guest’s clock jumped at a failover, ms' },
  traceOverheadPercentCpu: {
    meaning: 'work of a computing guest that is missing while its vCPUs are traced, %',
    goal: { atMost: 2 },
  },
  traceOverheadPercentRedis: { meaning: 'the same of redis, 16 connections', goal: { atMost: 2 } },
  traceGuestOverheadPercentCpu: {
    meaning: 'of the computing guest, with its processes 1,000 times a second, %',
  },
  traceGuestOverheadPercentRedis: { meaning: 'the same of redis' },
  diskSequentialWriteShare: {
    meaning: 'throughput of sequential 1 MiB writes to a disk, protected every 20 ms ÷ unprotected',
    goal: { atLeast: 0.7 },
  },
  diskReadShare: {
    meaning: 'throughput of reads from a disk, the mean of four kinds, protected ÷ unprotected',
    goal: { atLeast: 0.95 },
  },
  diskCopiesPerWrittenByte: {
    meaning:
      'copies that replication makes on the primary of each byte the guest writes: into the log, its headers included, and whatever was not sent from there by reference',
    goal: { atMost: 1.05 },
  },
  diskBaseCopyVsPeers: {
    meaning: 'rate of a disk’s first copy, Holdfast ÷ the better of nbdcopy and qemu-img convert',
    goal: { atLeast: 0.8 },
  },
  diskSequentialWriteFloorShare: {
    meaning:
      'sequential 1 MiB writes, bare stop, xen-save-devices-state and cont every 20 ms ÷ unprotected: what is left before anything is replicated',
  },
  diskSequentialWriteOfFloorShare: { meaning: 'sequential 1 MiB writes, protected ÷ that floor' },
  diskSequentialWriteApartShare: {
    meaning:
      'sequential 1 MiB writes, each host on one processor of its own, protected ÷ unprotected on that one processor',
  },
  diskReadFloorShare: { meaning: 'reads, the mean of four kinds, that floor ÷ unprotected' },
  diskReadOfFloorShare: { meaning: 'reads, protected ÷ that floor' },
  diskReadApartShare: { meaning: 'reads, each host on one processor of its own, protected ÷ unprotected' },
  diskSequentialWrite4kShare: { meaning: 'sequential 4 KiB writes, protected ÷ unprotected' },
  diskRandomWrite4kShare: { meaning: 'random 4 KiB writes, protected ÷ unprotected' },
  diskRandomWrite1mShare: { meaning: 'random 1 MiB writes, protected ÷ unprotected' },
  diskFsyncShare: { meaning: '4 KiB writes with an fsync after each, protected ÷ unprotected' },
  diskBonnieWriteShare: { meaning: 'bonnie++, writing by the block, protected ÷ unprotected' },
  diskBonnieRewriteShare: { meaning: 'bonnie++, rewriting, protected ÷ unprotected' },
  diskBonnieReadShare: { meaning: 'bonnie++, reading by the block, protected ÷ unprotected' },
  diskBonnieSeeksShare: { meaning: 'bonnie++, random seeks, protected ÷ unprotected' },
  diskServerVsRawSequentialWrite: {
    meaning: 'sequential 1 MiB writes, unprotected: disk server ÷ QEMU’s raw file driver',
  },
  diskServerVsRawRandomWrite4k: { meaning: 'the same, random 4 KiB writes' },
  diskServerVsRawReads: { meaning: 'the same, reads, the mean of four kinds' },
  diskServerVsRawFsync: { meaning: 'the same, 4 KiB writes with an fsync after each' },
  diskBaseCopyVsNbdcopy: { meaning: 'rate of a disk’s first copy, Holdfast ÷ nbdcopy' },
  diskBaseCopyVsQemuImg: { meaning: 'the same, ÷ qemu-img convert' },
  migrateWriterFixedArrivedShare: {
    meaning:
      'migrations that arrived of a guest that writes memory faster than the link, `fixed` with the default downtime, the better engine',
    goal: { atMost: 0 },
  },
  migrateWriterMpArrivedShare: { meaning: 'the same, `mp`, the worse engine', goal: { atLeast: 1 } },
  migrateWriterAutoArrivedShare: { meaning: 'the same, `auto`, the worse engine', goal: { atLeast: 1 } },
  migrateMpVsRelaxedTotal: {
    meaning: 'of that guest, Holdfast’s engine: total time, `mp` ÷ `fixed` with a relaxed downtime',
    goal: { atMost: 0.78 },
  },
  migrateMpVsRelaxedData: { meaning: 'the same, bytes over the link', goal: { atMost: 0.81 } },
  migrateMpVsRelaxedTotalQemu: {
    meaning: 'the same, QEMU’s engine: total time',
    goal: { atMost: 0.78 },
  },
  migrateMpVsRelaxedDataQemu: { meaning: 'the same, bytes over the link', goal: { atMost: 0.81 } },
  migrateTotalVsQemuIdle: {
    meaning: 'total time of an idle guest’s migration, `fixed`, Holdfast’s engine ÷ QEMU’s',
    goal: { atMost: 0.7 },
  },
  migrateDowntimeVsQemuIdle: { meaning: 'the same, downtime', goal: { atMost: 0.5 } },
  migrateClientGapVsQemuIdle: { meaning: 'the same, as a client sees it: without an answer' },
  migrateTotalVsQemuRedis: {
    meaning: 'total time, redis under load, `auto`, Holdfast’s engine ÷ QEMU’s',
    goal: { atMost: 0.7 },
  },
  migrateDowntimeVsQemuRedis: { meaning: 'the same, downtime', goal: { atMost: 0.5 } },
  migrateClientGapVsQemuRedis: { meaning: 'the same, as a client sees it: without an answer' },
  migrateTotalVsQemuWriter: {
    meaning: 'total time of the writer’s migration over the limited link, `mp`, Holdfast’s engine ÷ QEMU’s',
    goal: { atMost: 0.7 },
  },
  migrateDowntimeVsQemuWriter: { meaning: 'the same, downtime', goal: { atMost: 0.5 } },
  migrateClientGapVsQemuWriter: { meaning: 'the same, as a client sees it: without an answer' },
  migrateIdleDowntimeMs: {
    meaning: 'downtime of an idle 512 MB guest in ms, Holdfast’s engine, median',
    goal: { atMost: 15 },
  },
  migrateEarlyRunsAfterMs: {
    meaning: 'with --resume-early: from the start until the guest runs on the destination, ms, median',
    goal: { atMost: 100 },
  },
  migrateSkipVsWithoutTotal: {
    meaning: 'total time of a guest whose memory is full of a file, with --skip-disk-pages ÷ without',
    goal: { atMost: 0.56 },
  },
  migrateSkipVsWithoutData: { meaning: 'the same, bytes over the link', goal: { atMost: 0.56 } },
  checkpointStopSavevmVsCapture: {
    meaning:
      'how long the VM stands still for a checkpoint, savevm of stock QEMU ÷ capture, median of the workloads',
    goal: { atLeast: 20 },
  },
  checkpointStopSavevmVsCaptureLeast: { meaning: 'the same, of the workload where it is the least' },
  checkpointStopSavevmVsHandoff: { meaning: 'the same, median, ÷ hand-off with the short stop before it' },
  checkpointIncrementPauseMs: {
    meaning:
      'pause of an increment in ms, median, of a guest of 512 MB with 20 MB written since the last one',
    goal: { atMost: 10 },
  },
  checkpointFullPauseMs: {
    meaning: 'how long that guest stands still for its first, full checkpoint in ms, median',
    goal: { atMost: 50 },
  },
  checkpointByHandoffPauseMs: {
    meaning: 'the same for a checkpoint by hand-off, the short stop before it included',
    goal: { atMost: 50 },
  },
  checkpointHandoffDowntimeMs: {
    meaning: 'the same for a hand-off that saves nothing, and so needs no stop before it',
    goal: { atMost: 50 },
  },
  checkpointRestoreRunsAfterMs: {
    meaning:
      'from when `holdfast restore` has started and begins until the guest, which has no disk, runs, in ms, median',
    goal: { atMost: 100 },
  },
  checkpointFullLostPercent: {
    meaning:
      'work that a computing guest, which has no disk, loses while a full checkpoint is written, %, median',
    goal: { atMost: 10 },
  },
  checkpointIncrementLostPercent: {
    meaning: 'the same while an increment is written',
    goal: { atMost: 10 },
  },
  checkpointCaptureWorkloadVsAlone: { meaning: 'time of a workload with one captured checkpoint ÷ alone' },
  checkpointHandoffWorkloadVsAlone: { meaning: 'time of a workload with one checkpoint by hand-off ÷ alone' },
  checkpointSavevmWorkloadVsAlone: {
    meaning: 'the same, with one savevm, which needs its disk on qcow2; alone it is on a raw one',
  },
  pauseDirectVsStaged: { meaning: 'median pause, direct ÷ staged capture' },
};

/** Those that say something the tables don't: the guest's share of work is in the table of the sweep. */
export const shownRatios = (report: BenchReport): readonly string[] =>
  Object.keys(report.ratios).filter((name) => !name.startsWith('guestWorkShare'));

/** In words; empty for a ratio that nobody has described. */
export const meaningOf = (name: string): string => {
  const [, workload, interval] = /^guestWorkShare(.+)At(\d+)Ms$/.exec(name) ?? [];
  if (workload !== undefined)
    return `rate of the guest’s work (${workload.toLowerCase()}), protected every ${interval} ms ÷ unprotected`;
  const [, what, sender] = /^(ack|cpu)(.+)VsSendfile$/.exec(name) ?? [];
  if (sender !== undefined)
    return `median ${what === 'ack' ? 'time to acknowledgement' : 'CPU of the sending threads'} of an epoch, ${sender.toLowerCase()} ÷ sendfile`;
  return ratios[name]?.meaning ?? '';
};

export interface Verdict {
  /** `≤ 0.50`. */
  readonly goal: string;
  /** Undefined: a smoke run is too small to be judged. */
  readonly reached: boolean | undefined;
  readonly text: 'reached' | 'not reached' | 'not judged: smoke size';
}

/** Undefined if the ratio has no goal, or wasn't measured. */
export const judge = (report: BenchReport, name: string): Verdict | undefined => {
  const goal = ratios[name]?.goal;
  const value = report.ratios[name];
  if (goal === undefined || value === undefined) return undefined;
  const text = 'atMost' in goal ? `≤ ${goal.atMost}` : `≥ ${goal.atLeast}`;
  if (report.smoke) return { goal: text, reached: undefined, text: 'not judged: smoke size' };
  const reached = 'atMost' in goal ? value <= goal.atMost : value >= goal.atLeast;
  return { goal: text, reached, text: reached ? 'reached' : 'not reached' };
};
