/** What the page of a trace holds as data: lanes as flat numbers, each text once. */
import type { TraceDocument } from './document.js';
import { type Details, laneGroups, type Span } from './lanes.js';

/** Index into `looks` is what a span carries. */
export const looks = ['runs', 'waiting', 'missing', 'paused'] as const;

export interface ViewerData {
  readonly durationUs: number;
  /** Names and details of spans and instants refer to these; 0 is the empty text. */
  readonly texts: readonly string[];
  readonly groups: readonly {
    readonly name: string;
    readonly lanes: readonly {
      readonly name: string;
      /** By fives: begin and length in µs, name, look, details. By time; they do not overlap. */
      readonly spans: readonly number[];
      /** By threes: time in µs, name, details. By time. */
      readonly instants: readonly number[];
    }[];
  }[];
  /** Begin and end of each pause in µs, by twos: shown over all lanes. */
  readonly paused: readonly number[];
}

export const viewerData = (trace: TraceDocument): ViewerData => {
  const numbers = new Map<string, number>([['', 0]]);
  const number = (text: string): number => {
    const known = numbers.get(text);
    if (known !== undefined) return known;
    numbers.set(text, numbers.size);
    return numbers.size - 1;
  };
  const groups = laneGroups(trace).map(({ name, lanes }) => ({
    name,
    lanes: lanes.map((lane) => ({
      name: lane.name,
      spans: lane.spans.flatMap((span) => [
        rounded(span.fromUs),
        rounded(span.toUs - span.fromUs),
        number(span.name),
        looks.indexOf(lookOf(span)),
        number(detailText(span.details)),
      ]),
      instants: lane.instants.flatMap(({ atUs, name: what, details }) => [
        rounded(atUs),
        number(what),
        number(detailText(details)),
      ]),
    })),
  }));
  const paused = trace.marks
    .filter(({ kind }) => kind === 'paused')
    .flatMap(({ fromUs, toUs }) => [rounded(fromUs), rounded(toUs)]);
  return { durationUs: trace.durationUs, texts: [...numbers.keys()], groups, paused };
};

const lookOf = ({ look }: Span): (typeof looks)[number] => look ?? 'runs';

const detailText = (details: Details | undefined): string =>
  Object.entries(details ?? {})
    .map(([key, value]) => `${key}: ${value}`)
    .join('\n');

/** To 10 ns: finer than any of it is. */
const rounded = (us: number): number => Math.round(us * 100) / 100;
