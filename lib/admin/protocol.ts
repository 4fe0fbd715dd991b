/**
 * What is said on a daemon's admin socket, `<runDir>/<name>.sock`: one JSON
 * object per line, requests answered in any order, matched by `id`.
 *
 *   {"id":1,"command":"status"}
 *   {"id":1,"ok":true,"result":{…}}        or
 *   {"id":1,"ok":false,"error":{"code":"HOLDFAST_E_…","message":"…","exitCode":10}}
 *
 * Who may connect is decided by the file system: the socket is mode 0600.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { ConfigError } from '../errors.js';

/** Longest request line; a client that exceeds it is cut off. */
export const REQUEST_BYTES_MAX = 4_096;
/** Longest answer line a client reads. A status with all its distributions is some 3 KB. */
export const ANSWER_BYTES_MAX = 1 << 20;
export const CLIENTS_MAX = 32;
/** Requests of one client that are not answered yet. */
export const PENDING_REQUESTS_MAX = 8;

export const adminCommands = ['status', 'switchover', 'detach', 'takeover'] as const;
export type AdminCommand = (typeof adminCommands)[number];

export const adminRequest = z.strictObject({
  id: z.number().int().nonnegative(),
  command: z.enum(adminCommands),
});
export type AdminRequest = z.infer<typeof adminRequest>;

export const adminAnswer = z.discriminatedUnion('ok', [
  z.strictObject({ id: z.number().int(), ok: z.literal(true), result: z.unknown() }),
  z.strictObject({
    /** Absent if the request could not be read. */
    id: z.number().int().optional(),
    ok: z.literal(false),
    error: z.object({
      code: z.string(),
      message: z.string(),
      cure: z.string().optional(),
      details: z.record(z.string(), z.unknown()).default({}),
      exitCode: z.number().int().min(1).max(255),
    }),
  }),
]);
export type AdminAnswer = z.infer<typeof adminAnswer>;

const distribution = z.object({ p50: z.number(), p99: z.number(), max: z.number() });

const budget = z.looseObject({ budgetMs: z.number(), measuredMs: z.number(), met: z.boolean() });

const fallBackPoint = { dir: z.string(), epoch: z.number(), takenAt: z.string() };

const takeoverReport = z.looseObject({
  vmName: z.string(),
  term: z.number(),
  epoch: z.number(),
  planned: z.boolean(),
  reason: z.string(),
  resumeMs: z.number(),
  disksMs: z.number().optional(),
  resumedAtMs: z.number(),
  qmp: z.string(),
  pid: z.number(),
  fellBack: z.looseObject({ ...fallBackPoint, reason: z.string(), resumedAtMs: z.number() }).optional(),
});

const primaryDisk = z.looseObject({
  id: z.string(),
  image: z.string(),
  imageBytes: z.number(),
  loggedBytes: z.number(),
  receivedBytes: z.number(),
  ringUsedBytes: z.number(),
  ringBytes: z.number(),
  server: z
    .looseObject({
      markedBytes: z.number(),
      stalls: z.number(),
      stalledMs: z.number(),
      errors: z.number(),
      lastError: z.string().optional(),
    })
    .optional(),
});

const diskCopy = z.looseObject({
  doneBytes: z.number(),
  totalBytes: z.number(),
  bytesPerSecond: z.number().optional(),
  secondsLeft: z.number().optional(),
});

const replicaDisk = z.looseObject({
  id: z.string(),
  image: z.string(),
  imageBytes: z.number(),
  journalUsedBytes: z.number(),
  journalBytes: z.number(),
  durableEpoch: z.number(),
  fault: z.string().optional(),
  closed: z.literal(true).optional(),
});

/** The parts of a status that the CLI shows; the rest passes through, so that either side may be newer. */
export const daemonStatus = z.discriminatedUnion('role', [
  z.looseObject({
    role: z.literal('primary'),
    name: z.string(),
    phase: z.string(),
    reason: z.string().optional(),
    vm: z.looseObject({
      name: z.string(),
      pid: z.number(),
      qmp: z.string(),
      ramBytes: z.number(),
      vcpus: z.number(),
      running: z.boolean(),
      stopReason: z.string().optional(),
    }),
    backup: z.string(),
    term: z.number(),
    epoch: z.number(),
    committedEpoch: z.number(),
    outputHeld: z.boolean(),
    gate: z
      .looseObject({
        kind: z.string(),
        heldBytesMax: z.number().optional(),
        backPressure: z.number().optional(),
        stalledMs: z.number().optional(),
        droppedFrames: z.number().optional(),
      })
      .optional(),
    baseRounds: z.number(),
    disks: z.array(primaryDisk).optional(),
    diskCopy: diskCopy.optional(),
    guestClock: z.looseObject({ state: z.string(), reason: z.string().optional() }).optional(),
    sender: z.looseObject({ strategy: z.string(), reason: z.string() }).optional(),
    pacing: z
      .looseObject({
        reason: z.string(),
        intervalMs: z.number().optional(),
        pauseBudget: budget.optional(),
        delayBudget: budget.optional(),
      })
      .optional(),
    settings: z.looseObject({ streams: z.number().optional(), verify: z.boolean().optional() }).optional(),
    epochs: z.number(),
    distributions: z.record(z.string(), distribution),
  }),
  z.looseObject({
    role: z.literal('backup'),
    name: z.string(),
    phase: z.string(),
    reason: z.string().optional(),
    listen: z.string(),
    vm: z.looseObject({ name: z.string(), ramBytes: z.number() }).optional(),
    term: z.number(),
    committedEpoch: z.number(),
    primary: z.string().optional(),
    standbyPid: z.number().optional(),
    replica: z.string().optional(),
    disks: z.array(replicaDisk).optional(),
    takeover: takeoverReport.optional(),
    fallBack: z.looseObject({ ...fallBackPoint, underWay: z.boolean() }).optional(),
    pages: z
      .looseObject({ pages: z.number(), pagesLeft: z.number(), faults: z.number(), faultP50Us: z.number() })
      .optional(),
    receiveMs: distribution.optional(),
    applyMs: distribution.optional(),
  }),
]);
export type DaemonStatus = z.infer<typeof daemonStatus>;

/** sun_path of a Unix socket address holds 108 bytes, the last of them 0. */
const SOCKET_PATH_BYTES_MAX = 107;

/** @throws ConfigError if the kernel could not take the path. */
export const adminSocketPath = (runDir: string, name: string): string => {
  const path = join(runDir, `${name}.sock`);
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    throw new ConfigError(`runDir: the socket path ${path} is over ${SOCKET_PATH_BYTES_MAX} bytes`, {
      cure: 'Choose a shorter run directory or name.',
    });
  }
  return path;
};
