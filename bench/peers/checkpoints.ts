/**
 * Checkpoints of one guest in turns, by Holdfast and by QEMU's own COLO: how
 * long each keeps the guest from running.
 *
 *   boot the guest ─► Holdfast protects it: measure ─► detach ─► COLO protects it: measure ─► end all
 *
 * Both are asked for a checkpoint every `intervalMs`. The interval that
 * came of it is reported. Neither has a disk or a network to look after.
 */
import { open } from 'node:fs/promises';
import { QmpClient } from '../../lib/qmp/client.js';
import { flatReadyText } from '../../test/lab/guest.js';
import { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import { collectEpochs, endPair, type MeasuredEpoch, startPair } from '../pair.js';
import { type PeerGuest, type PeerGuestOptions, startIncoming, startSource } from './flat-guest.js';
import { collectPauses, type Pauses } from './pauses.js';

export interface CheckpointPlan {
  readonly guest: PeerGuestOptions;
  readonly intervalMs: number;
  /** Checkpoints measured in a turn. */
  readonly count: number;
}

export interface Turn {
  readonly pauses: Pauses;
  /** Pages the guest wrote from one checkpoint to the next, repeated ones counted again. */
  readonly writesPerCheckpoint: number;
}

export interface HoldfastTurn extends Turn {
  readonly epochs: readonly MeasuredEpoch[];
}

/** Both have sent all of RAM by then, and grown what they keep per checkpoint. */
const CHECKPOINTS_PASSED_OVER = 5;
const PROTECT_TIMEOUT_MS = 60_000;
const COLO_PORT = 7100;
const PAGE_BYTES = 4096;
/** More than any link has: neither side is to be throttled. */
const BANDWIDTH_MAX_BYTES_PER_S = 100 * 2 ** 30;

/**
 * How many pages the guest has written so far: it numbers its writes, and each
 * page's first word is the number of the latest one. The pages begin at 16 MiB.
 */
const pagesWritten = async ({ ramPath }: PeerGuest, pages: number): Promise<number> => {
  const file = await open(ramPath);
  try {
    const bytes = Buffer.alloc(pages * PAGE_BYTES);
    await file.read(bytes, 0, bytes.length, 16 << 20);
    let newest = 0;
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) newest = Math.max(newest, bytes.readUInt32LE(at));
    return newest;
  } finally {
    await file.close();
  }
};

/** Measures a guest that is protected. */
const measure = async (guest: PeerGuest, observer: QmpClient, plan: CheckpointPlan): Promise<Turn> => {
  const timeoutMs = PROTECT_TIMEOUT_MS + 20 * plan.count * plan.intervalMs;
  const before = await pagesWritten(guest, plan.guest.pages);
  const pauses = await collectPauses(observer, { skip: 0, count: plan.count, timeoutMs });
  const written = (await pagesWritten(guest, plan.guest.pages)) - before;
  return { pauses, writesPerCheckpoint: written / plan.count };
};

/** Holdfast, staged, through the same role processes as in the suite `epoch`. */
const holdfastTurn = async (
  lab: Lab,
  guest: PeerGuest,
  qmp: QmpClient,
  plan: CheckpointPlan,
): Promise<HoldfastTurn> => {
  const pair = await startPair(lab, guest, { intervalMs: plan.intervalMs, captureMode: 'staged' });
  await collectEpochs(pair.primary, CHECKPOINTS_PASSED_OVER, PROTECT_TIMEOUT_MS);
  const seen = pair.primary.of('epoch').length;
  const turn = await measure(guest, qmp, plan);
  const epochs = pair.primary.of('epoch').slice(seen) as unknown as MeasuredEpoch[];
  await endPair(pair);
  return { ...turn, epochs };
};

/** QEMU's documented recipe (docs/COLO-FT.txt), without its disk and network comparison. */
const coloTurn = async (lab: Lab, guest: PeerGuest, qmp: QmpClient, plan: CheckpointPlan): Promise<Turn> => {
  const secondary = await startIncoming(lab, plan.guest, false);
  await using secondaryQmp = await QmpClient.connect(secondary.observerPath);
  const uri = `tcp:${replicationLinks.aToB.to.address}:${COLO_PORT}`;
  for (const side of [secondaryQmp, qmp]) {
    await side.execute('migrate-set-capabilities', { capabilities: [{ capability: 'x-colo', state: true }] });
  }
  await qmp.executeAny('migrate-set-parameters', {
    'x-checkpoint-delay': plan.intervalMs,
    'max-bandwidth': BANDWIDTH_MAX_BYTES_PER_S,
  });
  await secondaryQmp.execute('migrate-incoming', { uri });
  const protectedNow = collectPauses(qmp, {
    skip: CHECKPOINTS_PASSED_OVER,
    count: 0,
    timeoutMs: PROTECT_TIMEOUT_MS,
  });
  protectedNow.catch(() => {}); // awaited below; `migrate` may fail first
  await qmp.execute('migrate', { uri });
  await protectedNow;
  return await measure(guest, qmp, plan);
};

export interface CheckpointTurns {
  readonly holdfast: HoldfastTurn;
  readonly colo: Turn;
}

/** One turn of each on one guest. COLO comes second, for it cannot be ended without losing a side. */
export const checkpointTurns = async (plan: CheckpointPlan): Promise<CheckpointTurns> => {
  await using lab = await Lab.create({ tag: 'peers' });
  const guest = await startSource(lab, plan.guest, flatReadyText);
  await using qmp = await QmpClient.connect(guest.observerPath);
  const holdfast = await holdfastTurn(lab, guest, qmp, plan);
  const colo = await coloTurn(lab, guest, qmp, plan);
  return { holdfast, colo };
};
