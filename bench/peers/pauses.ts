/**
 * Pauses of a VM by QEMU's own clock: the time stamps of its STOP and RESUME
 * events. The same yardstick for everyone who pauses the VM, and one that holds
 * no part of the messages to and from QEMU.
 */
import type { QmpClient } from '../../lib/qmp/client.js';
import { waitFor } from '../../test/lab/wait.js';
import { eventMs } from '../event-time.js';

export interface Pauses {
  /** STOP to RESUME. */
  readonly pauseMs: readonly number[];
  /** From the STOP before to this pause's STOP. */
  readonly intervalMs: readonly number[];
}

/** Waits until the VM has been paused `skip` times, and then collects `count` pauses. */
export const collectPauses = async (
  qmp: QmpClient,
  { skip, count, timeoutMs }: { readonly skip: number; readonly count: number; readonly timeoutMs: number },
): Promise<Pauses> => {
  const stopsMs: number[] = [];
  const pauseMs: number[] = [];
  const remove = [
    qmp.on('STOP', (event) => stopsMs.push(eventMs(event))),
    qmp.on('RESUME', (event) => {
      const stopMs = stopsMs.at(-1);
      if (stopMs !== undefined) pauseMs.push(eventMs(event) - stopMs);
    }),
  ];
  try {
    await waitFor(`${skip + count} pauses`, () => !qmp.open || pauseMs.length >= skip + count, { timeoutMs });
  } finally {
    for (const one of remove) one();
  }
  if (pauseMs.length < skip + count) throw new Error(`QEMU ended after ${pauseMs.length} pauses`);
  const used = stopsMs.slice(0, skip + count);
  return {
    pauseMs: pauseMs.slice(skip, skip + count),
    intervalMs: used
      .slice(1)
      .map((stopMs, index) => stopMs - used[index]!)
      .slice(Math.max(0, skip - 1)),
  };
};
