/**
 * Large guests that write little: the pause then is what the size alone costs, above
 * all the scan. One has written all of its memory once, the other only what it needs.
 */
import { readFile, stat, statfs } from 'node:fs/promises';
import { guestOutput, startMemwriter } from '../../test/lab/guest-shell.js';
import { Lab } from '../../test/lab/lab.js';
import { collectEpochs, endPair, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { summariseEpochs } from './summary.js';

/** Has written all of its memory. */
export const LARGE_RAM_CASE = 'ram-8g';
/** Has not. */
export const LARGE_FRESH_CASE = 'ram-8g-fresh';

interface Size {
  readonly ramMb: number;
  readonly epochs: number;
}

const full: Size = { ramMb: 8 * 1024, epochs: 200 };
const smokeSize: Size = { ramMb: 1024, epochs: 10 };

const settings = {
  gate: 'relay',
  intervalMs: 100,
  captureMode: 'staged',
  sender: 'sendfile',
  deviceState: 'xen-save',
} as const;
const writer = { pagesPerSecond: 5_000, workingSetPages: 4_000 } as const;
const WARM_UP_EPOCHS = 10;

const POPULATE_TIMEOUT_MS = 300_000;
/** A hundred MB a second, far less than any machine moves. */
const BASE_SYNC_MS_PER_MB = 10;
/** Beside RAM and replica, both on tmpfs: for QEMU, the standby and the roles. */
const SPARE_BYTES = 2 * 2 ** 30;

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const memoryAvailable = async (): Promise<number> =>
  Number(/^MemAvailable:\s+(\d+) kB/m.exec(await readFile('/proc/meminfo', 'utf8'))?.[1] ?? 0) * 1024;

/** Why this machine is too small; undefined if it isn't. */
const tooSmall = async (lab: Lab, ramMb: number): Promise<string | undefined> => {
  const neededBytes = 2 * ramMb * 2 ** 20;
  const { bavail, bsize } = await statfs(lab.sharedMemoryDir);
  if (bavail * bsize < neededBytes)
    return `it needs ${gib(neededBytes)} on /dev/shm, of which ${gib(bavail * bsize)} are free`;
  const availableBytes = await memoryAvailable();
  return availableBytes < neededBytes + SPARE_BYTES
    ? `it needs ${gib(neededBytes + SPARE_BYTES)} of memory, of which ${gib(availableBytes)} are available`
    : undefined;
};

/**
 * Has the guest write every page that its kernel gives a program, once. Of what is available
 * a little is left over: for memwriter's own tables, which grow with it, and for the shell.
 */
const populate = async (lab: Lab): Promise<void> => {
  await guestOutput(
    lab.client,
    `pages=$(awk '/^MemAvailable:/ { print int($2 / 4 * 63 / 64) - 8192 }' /proc/meminfo)
    memwriter --pages-per-s 0 --working-set $pages > /dev/console 2>&1 & writer=$!
    until grep -q 'laps=0*[1-9]' /run/memwriter 2> /dev/null; do
      kill -0 $writer || exit 1
      usleep 100000
    done
    kill $writer && rm /run/memwriter`,
    { timeoutMs: POPULATE_TIMEOUT_MS },
  );
};

/** One of the cases; nothing where the machine has no room for it. A smoke run has 1 GB. */
export const measureLargeRam = async (
  name: typeof LARGE_RAM_CASE | typeof LARGE_FRESH_CASE,
  smoke: boolean,
  progress: Progress,
): Promise<BenchResult[]> => {
  const { ramMb, epochs: count } = smoke ? smokeSize : full;
  await using lab = await Lab.create({ tag: 'bench' });
  const missing = await tooSmall(lab, ramMb);
  if (missing !== undefined) {
    progress(`${name} is left out: ${missing}`);
    return [];
  }
  const writesAll = name === LARGE_RAM_CASE;
  progress(`${name}: booting a guest of ${ramMb} MB${writesAll ? ', which writes all of it once' : ''}`);
  const guest = await startRelayedGuest(lab, { workload: 'idle', ramMb });
  if (writesAll) await populate(lab);
  await startMemwriter(lab.client, writer);
  const { blocks } = await stat(guest.ramPath);
  progress(`${name}: ${count} epochs`);
  const pair = await startPair(lab, guest, settings, { baseSyncTimeoutMs: ramMb * BASE_SYNC_MS_PER_MB });
  await collectEpochs(pair.primary, WARM_UP_EPOCHS, 60_000);
  const epochs = await collectEpochs(pair.primary, count, 60_000 + count * settings.intervalMs * 10);
  await endPair(pair);
  return [
    {
      name,
      params: { ...settings, ...writer, ramMiB: ramMb, accelerator: 'tcg' },
      // A file's blocks are of 512 bytes, whatever its file system's are.
      metrics: { populatedBytes: blocks * 512, ...summariseEpochs(epochs) },
    },
  ];
};
