/**
 * A whole disk to another host over the same link, in turns:
 *
 *   image on host a ─┬─ base copy ─► Holdfast's backup on host b, which writes its image
 *                    └─ nbdcopy, qemu-img convert ─► nbdkit's file plugin on host b, over TCP
 *
 * The guest is idle. Each turn begins without an image on host b. The first turn of each contender only
 * warms up the page cache on host a.
 */
import { randomFillSync } from 'node:crypto';
import { open, rm, stat } from 'node:fs/promises';
import { diskMetaDir } from '../../lib/disk/disk-files.js';
import { percentile } from '../../lib/stats.js';
import { createDisk, diskPath } from '../../test/lab/disk.js';
import { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import { readText, waitFor } from '../../test/lab/wait.js';
import { endPair, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress, WantedCases } from '../report.js';
import { type DiskGuest, replicaSettings } from './guests.js';

const NBD_PORT = 10809;
const COPY_MS_MAX = 120_000;

interface Size {
  readonly imageMiB: number;
  readonly turns: number;
}

const full: Size = { imageMiB: 1024, turns: 5 };
const smokeSize: Size = { imageMiB: 48, turns: 1 };

/** Of each 16 MiB so much is data; the rest is a hole. */
const CHUNK_MIB = 16;
const DATA_MIB = 12;

const fillImage = async (path: string, imageMiB: number): Promise<number> => {
  const data = randomFillSync(Buffer.alloc(DATA_MIB * 2 ** 20));
  const file = await open(path, 'r+');
  try {
    for (let at = 0; at < imageMiB; at += CHUNK_MIB) await file.write(data, 0, data.length, at * 2 ** 20);
    await file.sync();
  } finally {
    await file.close();
  }
  return (imageMiB / CHUNK_MIB) * data.length;
};

interface Contender {
  readonly name: string;
  readonly params: BenchResult['params'];
  /** Copies once; milliseconds. */
  copy(guest: DiskGuest): Promise<number>;
}

const removeReplica = async (lab: Lab): Promise<void> => {
  await rm(diskPath(lab, 'b'), { force: true });
  await rm(await diskMetaDir(lab.path('disks-b'), diskPath(lab, 'b')), { recursive: true, force: true });
};

const baseCopy: Contender = {
  name: 'base-copy',
  params: { tool: 'Holdfast’s base copy' },
  copy: async (guest) => {
    const backup = replicaSettings(guest, 1);
    const pair = await startPair(guest.lab, guest, { intervalMs: 100 }, { backup });
    const { millis } = await pair.primary.message('disks-copied');
    await endPair(pair);
    return Number(millis);
  },
};

/** A tool that copies a file to an NBD server on host b. */
const nbdTool = (
  name: string,
  params: BenchResult['params'],
  program: string,
  args: readonly string[],
): Contender => ({
  name,
  params,
  copy: async ({ lab }) => {
    const { address } = replicationLinks.aToB.to;
    const target = diskPath(lab, 'b');
    const { size } = await stat(diskPath(lab, 'a'));
    await createDisk(target, size / 2 ** 20);
    const pidFile = lab.path('nbdkit.pid');
    const server = await lab
      .host('b')
      .spawn('nbdkit', [
        ...['--foreground', '--pidfile', pidFile, '--ipaddr', address, '--port', String(NBD_PORT)],
        ...['file', target],
      ]);
    try {
      await waitFor('nbdkit to listen', () => readText(pidFile).endsWith('\n'));
      const beginMs = performance.now();
      const uri = `nbd://${address}:${NBD_PORT}`;
      await lab.host('a').exec(program, [...args, diskPath(lab, 'a'), uri], { timeoutMs: COPY_MS_MAX });
      return performance.now() - beginMs;
    } finally {
      await server.kill('SIGTERM');
      await rm(pidFile, { force: true });
    }
  },
});

const contenders: readonly Contender[] = [
  baseCopy,
  nbdTool('nbdcopy', { tool: 'nbdcopy' }, 'nbdcopy', ['--destination-is-zero']),
  nbdTool('qemu-img', { tool: 'qemu-img convert' }, 'qemu-img', [
    ...['convert', '-n', '--target-is-zero', '-W', '-f', 'raw', '-O', 'raw'],
  ]),
];

export const measureBaseCopy = async (
  smoke: boolean,
  progress: Progress,
  wanted: WantedCases,
): Promise<BenchResult[]> => {
  const chosen = contenders.filter(({ name }) => wanted.wants(name));
  if (chosen.length === 0) return [];
  const { imageMiB, turns } = smoke ? smokeSize : full;
  await using lab = await Lab.create({ tag: 'copy' });
  const image = await createDisk(diskPath(lab, 'a'), imageMiB);
  const dataBytes = await fillImage(image, imageMiB);
  progress('booting the guest');
  const booted = await startRelayedGuest(lab, { workload: 'idle', ramMb: 128, disks: [{ path: image }] });
  const guest = { ...booted, lab };
  const millis = new Map<Contender, number[]>(chosen.map((contender) => [contender, []]));
  for (let turn = 0; turn <= turns; turn += 1) {
    for (const contender of chosen) {
      progress(`${contender.name}: ${turn === 0 ? 'warm-up' : `turn ${turn} of ${turns}`}`);
      await removeReplica(lab);
      const copyMs = await contender.copy(guest);
      if (turn > 0) millis.get(contender)!.push(copyMs);
    }
  }
  return [...millis].map(([{ name, params }, times]) => ({
    name,
    params: { ...params, imageMiB, dataMiB: dataBytes / 2 ** 20 },
    metrics: {
      turns: times.length,
      copyMsP50: percentile(times, 50),
      copyMsMin: percentile(times, 0),
      copyMsMax: percentile(times, 100),
      dataMbPerSP50: dataBytes / percentile(times, 50) / 1e3,
    },
  }));
};
