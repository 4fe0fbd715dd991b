/**
 * What the kernel says of its scheduler's tracepoints: their ids, and where their
 * fields lie. Kernel: Documentation/trace/events.rst, "Event formats".
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UnsupportedHostError } from '../errors.js';
import type { TraceBinding, Tracepoints } from './binding.js';

/** Where tracefs is mounted: by itself, or by debugfs. */
const PLACES = ['/sys/kernel/tracing', '/sys/kernel/debug/tracing'];

export interface TracepointFormat {
  readonly id: number;
  /** Field's name to its offset in an event, bytes. */
  readonly offsets: ReadonlyMap<string, number>;
}

/** A tracepoint's `format` file; undefined if it is not one. */
export const parseFormat = (text: string): TracepointFormat | undefined => {
  const id = /^ID: (\d+)$/m.exec(text)?.[1];
  if (id === undefined) return undefined;
  const fields = text.matchAll(/^\s*field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);/gm);
  return { id: Number(id), offsets: new Map([...fields].map(([, name, at]) => [name!, Number(at)])) };
};

/**
 * The tracepoints that a trace is made of.
 * @throws UnsupportedHostError with the cure
 */
export const readTracepoints = async (
  native: Pick<TraceBinding, 'readTracefs'>,
  places: readonly string[] = PLACES,
): Promise<Tracepoints> => {
  const [onSwitch, onMigrate, onWakeup] = await Promise.all(
    ['sched_switch', 'sched_migrate_task', 'sched_wakeup'].map((name) =>
      readTracepoint(native, places, name),
    ),
  );
  const at = (format: TracepointFormat | undefined, field: string): number => {
    const offset = format?.offsets.get(field);
    if (offset !== undefined) return offset;
    throw new UnsupportedHostError(`this kernel's scheduler events have no field ${field}`, {
      cure: 'Traces need Linux 4.20 or newer.',
    });
  };
  return {
    switch: {
      id: onSwitch!.id,
      prevPid: at(onSwitch, 'prev_pid'),
      prevState: at(onSwitch, 'prev_state'),
      nextPid: at(onSwitch, 'next_pid'),
    },
    migrate: {
      id: onMigrate!.id,
      pid: at(onMigrate, 'pid'),
      origCpu: at(onMigrate, 'orig_cpu'),
      destCpu: at(onMigrate, 'dest_cpu'),
    },
    wakeup: { id: onWakeup!.id, pid: at(onWakeup, 'pid'), targetCpu: at(onWakeup, 'target_cpu') },
  };
};

const readTracepoint = async (
  native: Pick<TraceBinding, 'readTracefs'>,
  places: readonly string[],
  name: string,
): Promise<TracepointFormat> => {
  const file = join('events/sched', name, 'format');
  let refused: NodeJS.ErrnoException | undefined;
  for (const place of places) {
    try {
      const format = parseFormat(await readFile(join(place, file), 'utf8'));
      if (format !== undefined) return format;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT') refused ??= error as NodeJS.ErrnoException;
    }
  }
  if (refused !== undefined) {
    throw new UnsupportedHostError(`the tracepoint ${name} cannot be read: ${refused.message}`, {
      cause: refused,
      cure: 'Run as root: tracefs is closed to other users.',
    });
  }
  let cause: unknown;
  try {
    const format = parseFormat(native.readTracefs(file));
    if (format !== undefined) return format;
  } catch (error) {
    cause = error;
  }
  throw new UnsupportedHostError(`there is no tracepoint ${name}: tracefs is not mounted, or was left out`, {
    cause,
    cure: 'mount -t tracefs tracefs /sys/kernel/tracing (the kernel needs CONFIG_FTRACE and CONFIG_PERF_EVENTS).',
  });
};
