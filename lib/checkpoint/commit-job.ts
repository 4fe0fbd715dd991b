/**
 * An overlay's contents into the image beneath it, by QEMU, while the guest runs on (QMP block-commit).
 *
 *   block-commit ─► ready: the image has all, and follows ─► job-complete ─► completed: the device is on the image
 *        └─ fails (no room beside the image): completed, with the reason, and never ready
 */

import { z } from 'zod';
import { DiskError, QmpError } from '../errors.js';
import type { QmpClient } from '../qmp/client.js';
import type { QmpEvent } from '../qmp/commands.js';

/** A whole image may have to be written, where everything was overwritten meanwhile. */
const COMMIT_TIMEOUT_MS = 3_600_000;

export type CommitMonitor = Pick<QmpClient, 'executeAny' | 'once'>;

const blockJobs = z.array(z.object({ device: z.string(), ready: z.boolean() }));

/** A name that QEMU made up for a node (#block123) is none for a job. */
const jobOf = (node: string): string => `${node.replace(/^#/, 'holdfast-')}-job`;

/**
 * Settles when the device is back on its image. The node may be there still, the overlay's file is.
 * @throws DiskError with QEMU's reason; QmpError, QmpConnectionError
 */
export const commitNode = async (qmp: CommitMonitor, node: string): Promise<void> => {
  const job = jobOf(node);
  const ofJob = {
    timeoutMs: COMMIT_TIMEOUT_MS,
    where: ({ data }: QmpEvent) => data.device === job,
  };
  let end: QmpEvent | undefined;
  const ready = qmp.once('BLOCK_JOB_READY', ofJob);
  const ended = qmp.once('BLOCK_JOB_COMPLETED', ofJob).then((event) => {
    end = event;
    return event;
  });
  for (const promise of [ready, ended]) promise.catch(() => {}); // awaited below, unless what comes before fails
  // A run that was killed meanwhile leaves its job, which goes on, and then waits to be completed.
  const jobs = blockJobs.parse(await qmp.executeAny('query-block-jobs'));
  const left = jobs.find(({ device }) => device === job);
  if (left === undefined) await qmp.executeAny('block-commit', { 'job-id': job, device: node });
  if (left?.ready !== true) await Promise.race([ready, ended]);
  if (end === undefined) {
    await qmp.executeAny('job-complete', { id: job }).catch((error: unknown) => {
      // Refused because it has just failed: its own reason says more.
      if (end === undefined || !(error instanceof QmpError)) throw error;
    });
  }
  const { data } = await ended;
  if (typeof data.error === 'string') throw new DiskError(data.error);
};
