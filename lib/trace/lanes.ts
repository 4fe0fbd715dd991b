/** A trace as a time line: groups of lanes, each with spans and instants. Both ways to write a trace start here. */
import { type TraceDocument, threadNameOf } from './document.js';
import type { TraceMark } from './marks.js';
import type { CoreSlice, ThreadHistory, Wait } from './thread-history.js';

export type Details = Readonly<Record<string, number | string>>;

export interface Span {
  readonly fromUs: number;
  readonly toUs: number;
  readonly name: string;
  /** waiting: runnable, on no core; missing: events were lost from its end on. */
  readonly look?: 'waiting' | 'missing' | 'paused' | undefined;
  readonly details?: Details | undefined;
}

export interface Instant {
  readonly atUs: number;
  readonly name: string;
  readonly details?: Details | undefined;
}

export interface Lane {
  readonly name: string;
  readonly spans: readonly Span[];
  readonly instants: readonly Instant[];
}

export interface LaneGroup {
  readonly name: string;
  readonly lanes: readonly Lane[];
}

export const laneGroups = (trace: TraceDocument): LaneGroup[] =>
  [holdfastLanes(trace), coreLanes(trace), threadLanes(trace), guestLanes(trace)].filter(
    ({ lanes }) => lanes.length > 0,
  );

const markNames: Readonly<Record<TraceMark['kind'], string>> = {
  epoch: 'epochs',
  paused: 'VM paused',
  migration: 'migrations',
};

const holdfastLanes = ({ marks }: TraceDocument): LaneGroup => ({
  name: 'VM',
  lanes: (['epoch', 'paused', 'migration'] as const).flatMap((kind) => {
    const spans = marks
      .filter((mark) => mark.kind === kind)
      .map(
        ({ fromUs, toUs, label, details }): Span => ({
          fromUs,
          toUs,
          name: label,
          look: kind === 'paused' ? 'paused' : undefined,
          details,
        }),
      );
    return spans.length === 0 ? [] : [{ name: markNames[kind], spans, instants: [] }];
  }),
});

/** What of the VM each core ran. */
const coreLanes = ({ cores, threads }: TraceDocument): LaneGroup => ({
  name: 'cores',
  lanes: cores.map((core) => ({
    name: `core ${core}`,
    spans: threads
      .flatMap(({ slices, label }) =>
        slices.filter((slice) => slice.core === core).map((slice) => spanOf(slice, label)),
      )
      .sort((a, b) => a.fromUs - b.fromUs),
    instants: [],
  })),
});

/** Where each thread ran, and when it had to wait. */
const threadLanes = ({ threads, threadNames }: TraceDocument): LaneGroup => ({
  name: 'threads of QEMU',
  lanes: threads.map((thread) => ({
    name: thread.label,
    spans: [
      ...thread.slices.map((slice) => spanOf(slice, `core ${slice.core}`)),
      ...thread.waits.map((wait) => waitSpan(wait, threadNames)),
    ].sort((a, b) => a.fromUs - b.fromUs),
    instants: migrationInstants(thread),
  })),
});

const spanOf = ({ fromUs, toUs, ended }: CoreSlice, name: string): Span => ({
  fromUs,
  toUs,
  name,
  look: ended === 'unknown' ? 'missing' : undefined,
  details: { ended: ended === 'unknown' ? 'events are missing' : ended },
});

const waitSpan = ({ fromUs, toUs, pushedOffBy }: Wait, names: ReadonlyMap<number, string>): Span => ({
  fromUs,
  toUs,
  name: 'waits for a core',
  look: 'waiting',
  ...(pushedOffBy === undefined ? {} : { details: { 'pushed off by': threadNameOf(names, pushedOffBy) } }),
});

const migrationInstants = ({ migrations }: ThreadHistory): Instant[] =>
  migrations.map(({ atUs, from, to, ranAfterUs }) => ({
    atUs,
    name: `core ${from} → core ${to}`,
    ...(ranAfterUs === undefined ? {} : { details: { 'ran after, µs': Math.round(ranAfterUs) } }),
  }));

const guestLanes = ({ guest }: TraceDocument): LaneGroup => {
  const slices = guest?.slices ?? [];
  const vcpus = [...new Set(slices.map(({ vcpu }) => vcpu))].sort((a, b) => a - b);
  return {
    name: 'guest processes',
    lanes: vcpus.map((vcpu) => ({
      name: `on vCPU ${vcpu}`,
      spans: slices
        .filter((slice) => slice.vcpu === vcpu && slice.tid !== 0)
        .map(({ fromUs, toUs, name, pid, tid }) => ({
          fromUs,
          toUs,
          name: `${name} (${pid})`,
          details: { process: pid, thread: tid },
        })),
      instants: [],
    })),
  };
};
