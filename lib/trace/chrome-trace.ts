/**
 * A trace as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing
 * open. Format: "Trace Event Format", JSON object form. A group of lanes is a process
 * there, a lane a thread; times are in microseconds.
 */
import type { TraceDocument } from './document.js';
import { type Details, laneGroups } from './lanes.js';
import { summarize, type TraceSummary } from './summary.js';

export type ChromeEvent =
  | {
      readonly ph: 'X';
      readonly pid: number;
      readonly tid: number;
      readonly ts: number;
      readonly dur: number;
      readonly name: string;
      readonly cat: string;
      readonly args?: Details | undefined;
    }
  | {
      readonly ph: 'i';
      readonly s: 't';
      readonly pid: number;
      readonly tid: number;
      readonly ts: number;
      readonly name: string;
      readonly cat: string;
      readonly args?: Details | undefined;
    }
  | {
      readonly ph: 'M';
      readonly pid: number;
      readonly tid: number;
      readonly name: 'process_name' | 'process_sort_index' | 'thread_name' | 'thread_sort_index';
      readonly args: { readonly name: string } | { readonly sort_index: number };
    };

export interface ChromeTrace {
  readonly traceEvents: readonly ChromeEvent[];
  readonly displayTimeUnit: 'ms';
  readonly otherData: {
    readonly producer: 'holdfast';
    readonly beganAt: string;
    readonly summary: TraceSummary;
  };
}

export const chromeTrace = (trace: TraceDocument): ChromeTrace => ({
  traceEvents: laneGroups(trace).flatMap(({ name: group, lanes }, index): ChromeEvent[] => {
    const pid = index + 1;
    return [
      { ph: 'M', pid, tid: 0, name: 'process_name', args: { name: group } },
      { ph: 'M', pid, tid: 0, name: 'process_sort_index', args: { sort_index: index } },
      ...lanes.flatMap(({ name, spans, instants }, lane): ChromeEvent[] => {
        const at = { pid, tid: lane + 1, cat: group };
        return [
          { ph: 'M', pid, tid: lane + 1, name: 'thread_name', args: { name } },
          { ph: 'M', pid, tid: lane + 1, name: 'thread_sort_index', args: { sort_index: lane } },
          ...spans.map(
            ({ fromUs, toUs, name: what, details }): ChromeEvent => ({
              ...{ ph: 'X', ...at, ts: rounded(fromUs), dur: rounded(toUs - fromUs), name: what },
              ...(details === undefined ? {} : { args: details }),
            }),
          ),
          ...instants.map(
            ({ atUs, name: what, details }): ChromeEvent => ({
              ...{ ph: 'i', s: 't', ...at, ts: rounded(atUs), name: what },
              ...(details === undefined ? {} : { args: details }),
            }),
          ),
        ];
      }),
    ];
  }),
  displayTimeUnit: 'ms',
  otherData: { producer: 'holdfast', beganAt: trace.beganAt, summary: summarize(trace) },
});

/** To a nanosecond. */
const rounded = (us: number): number => Math.round(us * 1e3) / 1e3;
