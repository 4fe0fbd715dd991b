/** Scheduler events. Only traces need them, so a lack is a warning. */
import type { HoldfastError } from '../errors.js';
import { probeSchedRecording, type TraceNative } from '../trace/sched-recording.js';
import type { DoctorCheck } from './doctor.js';

export const checkTracing = async (native: TraceNative): Promise<DoctorCheck> => {
  const base = { id: 'trace', title: 'scheduler events' };
  try {
    await probeSchedRecording(native);
    return { ...base, status: 'ok', found: 'can be recorded on all cores' };
  } catch (error) {
    const { message, cure } = error as Partial<HoldfastError>;
    return {
      ...base,
      status: 'warn',
      found: message ?? String(error),
      cure: `Needed by holdfast trace and --trace alone.${cure === undefined ? '' : ` ${cure}`}`,
    };
  }
};
