/** What the guests do while they are moved, and whether all of it arrived. */
import { randomFillSync } from 'node:crypto';
import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createDisk, diskPath } from '../../test/lab/disk.js';
import { checkMemwriter, guestOutput, startMemwriter } from '../../test/lab/guest-shell.js';
import type { Lab } from '../../test/lab/lab.js';
import { execToEnd } from '../../test/lab/process.js';
import { RedisLoad } from '../../test/lab/redis-load-process.js';
import { MovingGuest } from './moving-guest.js';
import type { Workload, WorkloadSize } from './plan.js';

export interface Worker {
  readonly guest: MovingGuest;
  /** Ends the work. @throws Error if anything was lost on the way */
  finish(): Promise<void>;
}

const bootIdle = async (lab: Lab, { ramMb }: WorkloadSize): Promise<Worker> => ({
  guest: await MovingGuest.boot(lab, { workload: 'idle', ramMb }),
  finish: async () => {},
});

const bootRedis = async (lab: Lab, { ramMb }: WorkloadSize): Promise<Worker> => {
  const guest = await MovingGuest.boot(lab, { workload: 'redis', ramMb });
  const load = await RedisLoad.start(lab.client);
  return {
    guest,
    finish: async () => {
      const { ok, violations } = await load.stop();
      if (!ok) throw new Error(`redis: ${violations.join('; ')}`);
    },
  };
};

const bootWriter = async (lab: Lab, size: WorkloadSize): Promise<Worker> => {
  const guest = await MovingGuest.boot(lab, { workload: 'idle', ramMb: size.ramMb });
  await startMemwriter(lab.client, { ...size, randomOrder: true });
  return {
    guest,
    finish: async () => {
      const { errors } = await checkMemwriter(lab.client);
      if (errors > 0) throw new Error(`memwriter found ${errors} damaged pages`);
    },
  };
};

const FILE = 'data';
const SPARE_MIB = 64;
const MOUNT_POINT = '/mnt';
const READ_MS_MAX = 60_000;

/** An ext4 image with one file of data that can't be compressed, as the first disk of host a. */
const makeImage = async (lab: Lab, fileMiB: number): Promise<string> => {
  const image = await createDisk(diskPath(lab, 'a'), fileMiB + SPARE_MIB);
  const dir = lab.path('image');
  await mkdir(dir);
  const file = await open(join(dir, FILE), 'w');
  for (let mib = 0; mib < fileMiB; mib += 1) await file.write(randomFillSync(Buffer.alloc(1 << 20)));
  await file.close();
  await execToEnd('mke2fs', ['-q', '-t', 'ext4', '-b', '4096', '-d', dir, image]);
  await rm(dir, { recursive: true });
  return image;
};

/** Its memory is full of a file that it has read; both hosts have the disk. */
const bootCache = async (lab: Lab, { ramMb, fileMiB }: WorkloadSize): Promise<Worker> => {
  const image = await makeImage(lab, fileMiB);
  const guest = await MovingGuest.boot(lab, { workload: 'idle', ramMb, disks: [{ path: image }] });
  const path = `${MOUNT_POINT}/${FILE}`;
  const sum = async (): Promise<string> =>
    await guestOutput(lab.client, `md5sum ${path}`, { timeoutMs: READ_MS_MAX });
  await guestOutput(lab.client, `mkdir -p ${MOUNT_POINT} && mount -t ext4 /dev/vda ${MOUNT_POINT}`);
  const before = await sum();
  // To and fro: from now on each host's image is nearly the other's.
  const settings = { policy: 'fixed', downtimeMs: 300, roundsMax: 100, timeMaxMs: READ_MS_MAX } as const;
  for (let move = 0; move < 2; move += 1) await guest.move('holdfast', settings);
  return {
    guest,
    finish: async () => {
      if ((await sum()) !== before) throw new Error('the file that the guest had read has changed');
    },
  };
};

const boots: Readonly<Record<Workload, (lab: Lab, size: WorkloadSize) => Promise<Worker>>> = {
  idle: bootIdle,
  redis: bootRedis,
  writer: bootWriter,
  cache: bootCache,
};

export const bootWorker = async (lab: Lab, workload: Workload, size: WorkloadSize): Promise<Worker> =>
  await boots[workload](lab, size);
