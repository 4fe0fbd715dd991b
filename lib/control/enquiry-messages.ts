/**
 * What a host that wants to move a VM asks a backup before it chooses it. The answers change nothing there.
 *
 *   enquiry               ──►
 *                         ◄──  offer { memory, CPUs, probePort }
 *   echo                 ◄─►   echo                              as often as it likes: the way there and back
 *   token, bytes (bulk)   ══►
 *                         ◄──  probed { bytes, ms }
 */
import { z } from 'zod';

const count = z.number().int().nonnegative();
const text = z.string().max(4096);

export const enquiryMessages = [
  /** The first message of its connection. */
  z.strictObject({ type: z.literal('enquiry') }),
  z.strictObject({
    type: z.literal('offer'),
    /** For a VM's RAM. */
    freeBytes: count,
    cpus: count,
    /** CPUs' worth of idle time, such as 2.5. */
    idleCpus: z.number().nonnegative(),
    /** Why it can take no VM now, as a clause. */
    occupied: text.optional(),
    /** Where it waits for the probe; absent if it takes no VM. */
    probePort: z.number().int().min(1).max(65535).optional(),
  }),
  z.strictObject({ type: z.literal('echo'), sequence: count }),
  /** What of the probe arrived, and how long after its first bytes. */
  z.strictObject({ type: z.literal('probed'), bytes: count, ms: z.number().nonnegative() }),
] as const;
