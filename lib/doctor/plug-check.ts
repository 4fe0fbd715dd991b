/** The kernel's own output gate. Only `--gate plug` needs it, so a lack is a warning. */
import { plugCures } from '../output/open-plug-gate.js';
import type { PlugBinding } from '../output/plug-binding.js';
import type { DoctorCheck } from './doctor.js';

export const checkPlugQdisc = async (native: Pick<PlugBinding, 'probePlug'>): Promise<DoctorCheck> => {
  const base = { id: 'sch-plug', title: 'plug qdisc' };
  try {
    const { ok, lacks, reason } = await native.probePlug();
    if (ok) return { ...base, status: 'ok', found: 'ifb, redirection and plug qdisc work' };
    const cure = `Needed by --gate plug alone. ${plugCures[lacks ?? 'qdisc']}`;
    return { ...base, status: 'warn', found: reason ?? 'does not work', cure };
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return { ...base, status: 'warn', found, cure: 'Needed by --gate plug alone. Build the addon again.' };
  }
};
