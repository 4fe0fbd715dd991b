/**
 * What is done to the disk: direct I/O of one kind by diskload in the guest, on the bare device; and
 * bonnie++, on a file system.
 */
import { guestOutput } from '../../test/lab/guest-shell.js';
import type { LabHost } from '../../test/lab/lab.js';
import type { BenchResult } from '../report.js';

export interface ProbeSize {
  readonly seconds: number;
  /** Of the device, from its begin, is used; all of it has been written before. */
  readonly spanMiB: number;
  /** bonnie++'s file: more than the guest can keep in its memory. */
  readonly bonnieMiB: number;
}

/** Names as in the report's metrics, without the statistic. */
export type Sample = Readonly<Record<string, number>>;

export interface Probe {
  readonly name: string;
  readonly params: BenchResult['params'];
  /** The figure of which a share remains when the guest is protected. */
  readonly rate: string;
  /** It waits for its own flushes, and is nothing without them. */
  readonly flushes: boolean;
  measure(client: LabHost, size: ProbeSize): Promise<Sample>;
}

/** The disk that diskload writes over, and the one with bonnie++'s file system. */
const BARE_DEVICE = '/dev/vda';
const FILE_SYSTEM_DEVICE = '/dev/vdb';
const MOUNT_POINT = '/mnt';

interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

interface DiskloadReport {
  readonly operations: number;
  readonly bytes: number;
  readonly micros: number;
  readonly latency: Latency;
  readonly sync: Latency;
}

/** What a guest that is slowed down may need beyond the time it was given. */
const PATIENCE_MS = 60_000;

const diskload = async (client: LabHost, args: string, seconds: number): Promise<DiskloadReport> =>
  JSON.parse(
    await guestOutput(client, `diskload --path ${BARE_DEVICE} ${args}`, {
      timeoutMs: seconds * 1000 + PATIENCE_MS,
    }),
  ) as DiskloadReport;

const latencyOf = (name: string, { p50, p99, max }: Latency): Sample => ({
  [`${name}MsP50`]: p50 / 1000,
  [`${name}MsP99`]: p99 / 1000,
  [`${name}MsMax`]: max / 1000,
});

interface Load {
  readonly op: 'read' | 'write';
  readonly order: 'sequential' | 'random';
  readonly blockKiB: number;
  /** Operations under way at a time. */
  readonly depth: number;
}

const blockName = (kib: number): string => (kib >= 1024 ? `${kib / 1024}m` : `${kib}k`);

const loadProbe = ({ op, order, blockKiB, depth }: Load): Probe => ({
  name: `${order}-${op}-${blockName(blockKiB)}`,
  params: { probe: `${order} ${op}`, blockKiB, depth },
  rate: 'rateMbPerS',
  flushes: false,
  measure: async (client, { seconds, spanMiB }) => {
    const { operations, bytes, micros, latency } = await diskload(
      client,
      `--op ${op} ${order === 'random' ? '--random' : ''} --block ${blockKiB * 1024} --threads ${depth}` +
        ` --span ${spanMiB * 2 ** 20} --seconds ${seconds}`,
      seconds,
    );
    return {
      rateMbPerS: bytes / micros,
      operationsPerS: (operations * 1e6) / micros,
      ...latencyOf('latency', latency),
    };
  },
});

/** What a database waits at each commit. */
const fsyncProbe: Probe = {
  name: 'fsync',
  params: { probe: 'random write, then fsync', blockKiB: 4, depth: 1 },
  rate: 'operationsPerS',
  flushes: true,
  measure: async (client, { seconds, spanMiB }) => {
    const { operations, micros, latency, sync } = await diskload(
      client,
      `--op write --random --span ${spanMiB * 2 ** 20} --seconds ${seconds} --sync-every 1`,
      seconds,
    );
    return {
      operationsPerS: (operations * 1e6) / micros,
      ...latencyOf('latency', latency),
      ...latencyOf('fsync', sync),
    };
  },
};

/** Positions in bonnie++'s line of figures, its format 1.98: KiB per s, and seeks per s. */
const bonnieFields = { write: 11, rewrite: 13, read: 17, seeks: 19 } as const;

export const parseBonnie = (csv: string): Sample => {
  const fields = csv.trim().split('\n').at(-1)!.split(',');
  const figure = (at: number): number => {
    const value = Number(fields[at]);
    // bonnie++ prints + for what took too short a time to be measured.
    return fields[at] === '' || !Number.isFinite(value) ? Number.NaN : value;
  };
  if (fields[0] !== '1.98') throw new Error(`bonnie++ writes a format that is not known here: ${csv}`);
  const mbPerS = (at: number): number => (figure(at) * 1024) / 1e6;
  return {
    writeMbPerS: mbPerS(bonnieFields.write),
    rewriteMbPerS: mbPerS(bonnieFields.rewrite),
    readMbPerS: mbPerS(bonnieFields.read),
    seeksPerS: figure(bonnieFields.seeks),
  };
};

const bonnieProbe: Probe = {
  name: 'bonnie',
  params: { probe: 'bonnie++, ext4' },
  rate: 'writeMbPerS',
  flushes: false,
  measure: async (client, { bonnieMiB }) => {
    const bonnie = `bonnie++ -q -f -n 0 -u 0:0 -s ${bonnieMiB} -r ${bonnieMiB / 2} -d ${MOUNT_POINT} 2> /run/bonnie.log`;
    return parseBonnie(await guestOutput(client, bonnie, { timeoutMs: 10 * PATIENCE_MS }));
  },
};

const loads: readonly Load[] = (['write', 'read'] as const).flatMap((op) =>
  (['sequential', 'random'] as const).flatMap((order) =>
    [4, 1024].map((blockKiB) => ({ op, order, blockKiB, depth: 4 })),
  ),
);

export const probes: readonly Probe[] = [...loads.map(loadProbe), fsyncProbe, bonnieProbe];

/** Writes the device over once, so that no measured write allocates, and makes bonnie++'s file system. */
export const prepareGuest = async (client: LabHost, { spanMiB }: ProbeSize): Promise<void> => {
  await diskload(client, `--op write --block 1048576 --span ${spanMiB * 2 ** 20} --operations ${spanMiB}`, 0);
  // With given identifiers, or mke2fs waits until the kernel has random numbers.
  const uuid = '6f6c6466-6173-4000-8000-000000000002';
  await guestOutput(
    client,
    `/bin/mke2fs -q -t ext4 -b 4096 -U ${uuid} -E hash_seed=${uuid},nodiscard,assume_storage_prezeroed=1 ${FILE_SYSTEM_DEVICE}
    mkdir -p ${MOUNT_POINT} && mount -t ext4 ${FILE_SYSTEM_DEVICE} ${MOUNT_POINT}`,
    { timeoutMs: PATIENCE_MS },
  );
};
