/**
 * A trace beside a primary: what the vCPUs' threads did around each epoch, to explain
 * why some pauses are longer than others. Recording costs the epoch loop one call and
 * a few kilobytes per epoch; all else is done when it is written.
 */
import { native } from '../native.js';
import type { EpochReport } from '../primary/epoch-report.js';
import type { ThreadIdentity, TraceDocument } from './document.js';
import { EpochSegments, type Segment } from './epoch-segments.js';
import type { TraceMark } from './marks.js';
import { namesOf } from './record.js';
import { decodeSchedEvents, EVENT_BYTES } from './sched-events.js';
import { monotonicNs, type SchedRecording, startSchedRecording } from './sched-recording.js';
import { type ThreadHistory, threadHistories } from './thread-history.js';
import { sharedThreadNotes } from './threads.js';

/** 6 MB of the latest epochs, and of those before them the slowest; in the addon as many between two epochs. */
const EVENTS_MAX = 250_000;
const SLOWEST_MAX = 100;

interface RecordedEpoch {
  readonly bytes: Buffer;
  readonly marks: readonly TraceMark[];
  /** Nothing is missing between the segment before and this one. */
  readonly continues: boolean;
}

export interface EpochTraceOptions {
  readonly title: string;
  /** Process id of QEMU. */
  readonly pid: number;
  readonly threads: readonly ThreadIdentity[];
}

export class EpochTrace {
  readonly #options: EpochTraceOptions;
  readonly #recording: SchedRecording;
  readonly #segments = new EpochSegments<RecordedEpoch>({ eventsMax: EVENTS_MAX, slowestMax: SLOWEST_MAX });
  #takenUs = 0;
  #discarded = 0;

  private constructor(options: EpochTraceOptions, recording: SchedRecording) {
    this.#options = options;
    this.#recording = recording;
  }

  /** @throws UnsupportedHostError where the host does not let us trace */
  static async start(options: EpochTraceOptions): Promise<EpochTrace> {
    const threads = options.threads.map(({ tid }) => tid);
    return new EpochTrace(
      options,
      await startSchedRecording({ native, threads, eventsMax: EVENTS_MAX, keepLatest: true }),
    );
  }

  /** At the epoch's release, with its report. */
  add(report: EpochReport): void {
    const nowUs = this.#nowUs();
    const bytes = this.#recording.trace.take();
    const { discarded } = this.#recording.trace.stats();
    this.#segments.add({
      fromUs: this.#takenUs,
      toUs: nowUs,
      pauseMs: report.pauseMs,
      events: bytes.length / EVENT_BYTES,
      payload: {
        bytes,
        marks: marksOf(report, this.#traceUs(report.pausedAtMs)),
        continues: discarded === this.#discarded,
      },
    });
    this.#takenUs = nowUs;
    this.#discarded = discarded;
  }

  /** Ends the recording. */
  async finish(): Promise<TraceDocument> {
    const { trace, cores, originNs, originMs } = this.#recording;
    await trace.close();
    const { title, pid, threads } = this.#options;
    const kept = this.#segments.kept();
    const histories = this.#histories(kept, originNs);
    const { added } = this.#segments;
    const dropped = added - kept.length;
    return {
      title,
      pid,
      beganAt: new Date(originMs).toISOString(),
      durationUs: kept.at(-1)?.toUs ?? this.#nowUs(),
      coveredUs: kept.reduce((sum, { fromUs, toUs }) => sum + toUs - fromUs, 0),
      cores,
      threads: threads.map((thread, index) => ({ ...thread, ...histories[index]! })),
      marks: kept.flatMap(({ payload }) => payload.marks),
      recorded: trace.stats(),
      threadNames: await namesOf(histories),
      notes: [
        ...sharedThreadNotes(threads),
        dropped === 0
          ? `all ${added} epochs`
          : `${kept.length} of ${added} epochs: the latest, and the ${SLOWEST_MAX} of the earlier ones with the longest pauses`,
      ],
    };
  }

  /** A moment of performance.now(), which is the same clock. */
  #traceUs(ms: number): number {
    return Math.max(0, this.#nowUs() - (performance.now() - ms) * 1e3);
  }

  #nowUs(): number {
    return (monotonicNs() - this.#recording.originNs) / 1e3;
  }

  /** Each run of segments without anything missing is a trace of its own. */
  #histories(kept: readonly Segment<RecordedEpoch>[], originNs: number): ThreadHistory[] {
    const { threads } = this.#options;
    const parts = runsOf(kept).map((run) => {
      const bytes = Buffer.concat(run.map(({ payload }) => payload.bytes));
      const { fromUs } = run[0]!;
      const { toUs } = run.at(-1)!;
      const events = decodeSchedEvents(bytes, originNs).filter(({ atUs }) => atUs >= fromUs);
      // Where the addon had to drop the oldest, nothing is known before the first that is left.
      const knownFromUs = run[0]!.payload.continues ? fromUs : (events[0]?.atUs ?? toUs);
      return threadHistories(events, threads, toUs, knownFromUs);
    });
    return threads.map(({ tid }, index) => ({
      tid,
      slices: parts.flatMap((part) => part[index]!.slices),
      waits: parts.flatMap((part) => part[index]!.waits),
      migrations: parts.flatMap((part) => part[index]!.migrations),
      gaps: parts.reduce((sum, part) => sum + part[index]!.gaps, 0),
    }));
  }
}

const runsOf = (kept: readonly Segment<RecordedEpoch>[]): Segment<RecordedEpoch>[][] => {
  const runs: Segment<RecordedEpoch>[][] = [];
  for (const segment of kept) {
    const last = runs.at(-1)?.at(-1);
    if (last !== undefined && last.toUs === segment.fromUs && segment.payload.continues)
      runs.at(-1)!.push(segment);
    else runs.push([segment]);
  }
  return runs;
};

const marksOf = (report: EpochReport, pausedUs: number): TraceMark[] => {
  const ms = (value: number): string => `${value.toFixed(2)} ms`;
  return [
    {
      kind: 'epoch',
      label: `epoch ${report.epoch}`,
      fromUs: pausedUs,
      toUs: pausedUs + report.releaseDelayMs * 1e3,
      details: {
        trigger: report.trigger,
        'dirty pages': report.dirtyPages,
        'to the acknowledgement': ms(report.ackMs),
      },
    },
    {
      kind: 'paused',
      label: `epoch ${report.epoch}: ${ms(report.pauseMs)}`,
      fromUs: pausedUs,
      toUs: pausedUs + report.pauseMs * 1e3,
      details: {
        stop: ms(report.stopMs),
        'device state': ms(report.deviceMs),
        'output boundary': ms(report.gateMs),
        scan: ms(report.scanMs),
        copy: ms(report.copyMs),
        cont: ms(report.contMs),
        rest: ms(report.restMs),
      },
    },
  ];
};
