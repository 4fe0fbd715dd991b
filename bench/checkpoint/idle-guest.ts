/** A guest that does nothing yet, and whose shell answers. */
import type { GuestOptions } from '../../test/lab/guest.js';
import { guestCommand } from '../../test/lab/guest-shell.js';
import type { Lab } from '../../test/lab/lab.js';
import { waitFor } from '../../test/lab/wait.js';
import { type RunningGuest, startGuest } from '../pair.js';

/** It says that it is ready when its shell has been started, which may listen a moment later. */
export const startIdleGuest = async (
  lab: Lab,
  options: Pick<GuestOptions, 'ramMb' | 'disks'>,
): Promise<RunningGuest> => {
  const guest = await startGuest(lab, { workload: 'idle', ...options });
  await waitFor("the guest's shell", () =>
    guestCommand(lab.client, 'true').then(
      ({ code }) => code === 0,
      () => false,
    ),
  );
  return guest;
};
