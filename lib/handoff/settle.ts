/**
 * What is left to do when the new QEMU (Q) runs the VM: nothing of it is a reason to stop, but some of it is one to
 * leave the old QEMU (P) as it is, stopped.
 *
 *   tell       records, relays, disk servers: the VM's process is Q ──┬─ all know it: P is killed, taps, names
 *   meanwhile  what needs P, or nobody                                └─ one does not: P stays
 *
 * A relay or a disk server ends with the process that it takes for the VM's: killing P would take the network, or a
 * disk, from a VM that runs. A stopped P harms nobody: it has given its disks up, and runs only by somebody's `cont`.
 */
import { StandbyError, toHoldfastError } from '../errors.js';

type Step = () => Promise<unknown>;

export interface SettleSteps {
  readonly tell: readonly Step[];
  readonly meanwhile: readonly Step[];
  /** Ends P, and what it had. */
  readonly end: readonly Step[];
}

/** @returns false if P was left. Never rejects. */
export const settle = async (
  { tell, meanwhile, end }: SettleSteps,
  from: { readonly pid: number },
  warn: (error: unknown) => void,
): Promise<boolean> => {
  let isTold = true;
  const each = async (steps: readonly Step[], onError: (error: unknown) => void): Promise<void> => {
    for (const step of steps) await step().catch(onError);
  };
  await each(tell, (error) => {
    isTold = false;
    warn(leftStopped(error, from.pid));
  });
  await each(meanwhile, warn);
  if (isTold) await each(end, warn);
  return isTold;
};

const leftStopped = (cause: unknown, pid: number): StandbyError =>
  new StandbyError(
    `the VM runs in the new QEMU, but not everything knows that: ${toHoldfastError(cause).message}. The one that had it (process ${pid}) was left, stopped: a relay or a disk server may end with it`,
    {
      cause,
      cure: `Leave process ${pid} as it is until the VM has ended, and kill it then. Never \`cont\` it.`,
    },
  );
