/**
 * How much the guest gets done, measured without its help: two meters, and rates
 * over windows of the host's time.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { guestOutput } from '../../test/lab/guest-shell.js';
import type { Lab } from '../../test/lab/lab.js';
import { RedisLoad } from '../../test/lab/redis-load-process.js';
import { waitFor } from '../../test/lab/wait.js';

export interface WorkMeter {
  /** Done so far, in the meter's own unit; only differences mean something. */
  total(): Promise<number>;
  stop(): Promise<void>;
}

const PAGE_BYTES = 4096;
const CHUNK_BYTES = 4 << 20;
const WORK_PAGE_TEXT = 'HOLDFAST-MEMWRITER-WORK\0';
/** Of struct WorkPage in test/guest/memwriter.c. */
const TAG_OFFSET = 24;
const WORK_OFFSET = 32;

/** Offset in guest RAM of the page in which memwriter counts. */
const findWorkPage = async (ram: FileHandle, tag: bigint): Promise<number | undefined> => {
  const start = Buffer.alloc(WORK_OFFSET);
  start.write(WORK_PAGE_TEXT, 'latin1');
  start.writeBigUInt64LE(tag, TAG_OFFSET);
  const chunk = Buffer.alloc(CHUNK_BYTES);
  for (let offset = 0; ; offset += CHUNK_BYTES) {
    const { bytesRead } = await ram.read(chunk, 0, chunk.length, offset);
    if (bytesRead === 0) return undefined;
    for (let page = 0; page < bytesRead; page += PAGE_BYTES) {
      if (start.equals(chunk.subarray(page, page + start.length))) return offset + page;
    }
  }
};

let tags = 0n;

/**
 * A program that keeps the guest's vCPU busy and writes pages meanwhile, so many to
 * a lot of work that they come at the given rate while nothing slows it down. Its count is read from guest RAM: asking the guest would cost it work,
 * and the answer would be held.
 */
export const startComputing = async (
  lab: Lab,
  ramPath: string,
  options: { readonly pagesPerSecond: number; readonly workingSetPages: number },
): Promise<WorkMeter> => {
  tags += 1n;
  const tag = BigInt(process.pid) * 1000n + tags;
  await guestOutput(
    lab.client,
    `memwriter --pages-per-s ${options.pagesPerSecond} --working-set ${options.workingSetPages} --compute ${tag} > /dev/console 2>&1 &`,
  );
  const ram = await open(ramPath);
  try {
    const page = await waitFor("memwriter's count in guest RAM", () => findWorkPage(ram, tag), {
      timeoutMs: 20_000,
      intervalMs: 200,
    });
    const word = Buffer.alloc(8);
    return {
      total: async () => {
        await ram.read(word, 0, word.length, page + WORK_OFFSET);
        return Number(word.readBigUInt64LE());
      },
      stop: async () => {
        await ram.close();
        await guestOutput(lab.client, 'killall memwriter');
      },
    };
  } catch (error) {
    await ram.close();
    throw error;
  }
};

/** Increments over `connections` connections, each with one request under way: the load of a busy server. */
export const startRedisLoad = async (lab: Lab, connections: number): Promise<WorkMeter> => {
  const load = await RedisLoad.start(lab.client, { connections, progressIntervalMs: 10 });
  return {
    total: async () => load.acknowledged,
    stop: async () => {
      const { ok, lost, violations } = await load.stop();
      if (!ok) throw new Error(`the redis load lost ${lost} increments: ${violations.join('; ')}`);
    },
  };
};

/** Work per second in each of `windows` windows, one after the other. */
export const measureRates = async (
  meter: WorkMeter,
  windows: number,
  windowMs: number,
): Promise<number[]> => {
  const rates: number[] = [];
  let before = await meter.total();
  let beforeMs = performance.now();
  for (let window = 0; window < windows; window += 1) {
    await sleep(windowMs);
    const now = await meter.total();
    const nowMs = performance.now();
    rates.push(((now - before) * 1000) / (nowMs - beforeMs));
    [before, beforeMs] = [now, nowMs];
  }
  return rates;
};
