/**
 * What became of each thread, out of the scheduler's events: when it ran on which
 * core, when it waited for one, and its ways from core to core. Pure.
 *
 *              wakeup                 switch: next
 *   asleep ─────────────► waiting ─────────────────► on a core
 *     ▲                      ▲                         │    │
 *     └──── switch: asleep ──┼─────────────────────────┘    │
 *                            └──────── switch: preempted ◄──┘
 *
 * Where events were lost nothing is made up: what was open ends at the last event
 * that is known of its core, and is counted as a gap.
 */
import type { SchedEvent } from './sched-events.js';

export interface CoreSlice {
  readonly core: number;
  readonly fromUs: number;
  readonly toUs: number;
  /** How it ended: by sleeping, by being pushed off, where events are missing, or with the trace. */
  readonly ended: 'slept' | 'preempted' | 'unknown' | 'trace-ended';
}

export interface Wait {
  readonly fromUs: number;
  readonly toUs: number;
  /** Where it ran at last. */
  readonly core: number;
  /** Whom it had to give way to; undefined where it had been asleep. */
  readonly pushedOffBy: number | undefined;
}

export interface CoreMigration {
  readonly atUs: number;
  readonly from: number;
  readonly to: number;
  /** Until it ran again; undefined if it did not. */
  readonly ranAfterUs: number | undefined;
}

export interface ThreadHistory {
  readonly tid: number;
  readonly slices: readonly CoreSlice[];
  readonly waits: readonly Wait[];
  readonly migrations: readonly CoreMigration[];
  /** Times at which events turned out to be missing. */
  readonly gaps: number;
}

export interface TracedThread {
  readonly tid: number;
  /** The core it ran on all the while, should no event tell; from its CPU time. */
  readonly ranOn?: number | undefined;
}

interface Running {
  readonly core: number;
  readonly fromUs: number;
}

class ThreadState {
  readonly #beginUs: number;
  readonly slices: CoreSlice[] = [];
  readonly waits: Wait[] = [];
  readonly migrations: { atUs: number; from: number; to: number; ranAfterUs: number | undefined }[] = [];
  gaps = 0;
  running: Running | undefined;
  /** Whether it is on a core or not is known: from its first switch or migration on. */
  #located = false;
  #waiting: { readonly fromUs: number; readonly pushedOffBy: number | undefined } | undefined;
  /** First of the migrations after which it has not run yet. */
  #notRunSince = 0;

  constructor(beginUs: number) {
    this.#beginUs = beginUs;
  }

  wakes(atUs: number): void {
    if (this.running === undefined) this.#waiting ??= { fromUs: atUs, pushedOffBy: undefined };
  }

  comesOn(core: number, atUs: number): void {
    if (this.running !== undefined) this.cut(atUs);
    this.#located = true;
    if (this.#waiting !== undefined) {
      const { fromUs, pushedOffBy } = this.#waiting;
      this.waits.push({ fromUs, toUs: atUs, core, pushedOffBy });
      this.#waiting = undefined;
    }
    for (; this.#notRunSince < this.migrations.length; this.#notRunSince += 1) {
      const migration = this.migrations[this.#notRunSince]!;
      migration.ranAfterUs = atUs - migration.atUs;
    }
    this.running = { core, fromUs: atUs };
  }

  goesOff(core: number, atUs: number, preempted: boolean, next: number): void {
    // The first that is heard of where it is: it has run since before the trace began.
    if (!this.#located) this.running = { core, fromUs: this.#beginUs };
    this.#located = true;
    if (this.running?.core === core) this.#end(atUs, preempted ? 'preempted' : 'slept');
    else if (this.running !== undefined) this.cut(atUs);
    else this.gaps += 1; // when it came is lost
    this.#waiting = preempted ? { fromUs: atUs, pushedOffBy: next } : undefined;
  }

  moves(from: number, to: number, atUs: number): void {
    this.#located = true;
    this.migrations.push({ atUs, from, to, ranAfterUs: undefined });
  }

  /** Nothing is known of it any more. */
  cut(atUs: number): void {
    this.#end(atUs, 'unknown');
    this.gaps += 1;
    this.#waiting = undefined;
  }

  finish(endUs: number, ranOn: number | undefined): void {
    if (!this.#located && ranOn !== undefined) this.running = { core: ranOn, fromUs: this.#beginUs };
    if (this.running !== undefined) this.#end(endUs, 'trace-ended');
  }

  #end(atUs: number, ended: CoreSlice['ended']): void {
    const { core, fromUs } = this.running!;
    this.running = undefined;
    this.slices.push({ core, fromUs, toUs: Math.max(fromUs, atUs), ended });
  }
}

/**
 * @param events in any order; from `beginUs` on none are left out
 * @param endUs the trace's end
 */
export const threadHistories = (
  events: readonly SchedEvent[],
  threads: readonly TracedThread[],
  endUs: number,
  beginUs = 0,
): ThreadHistory[] => {
  const states = new Map(threads.map(({ tid }) => [tid, new ThreadState(beginUs)]));
  /** Core to the time of its last event. */
  const heardOf = new Map<number, number>();
  for (const event of [...events].sort((a, b) => a.atUs - b.atUs)) {
    switch (event.kind) {
      case 'switch':
        states.get(event.prev)?.goesOff(event.core, event.atUs, event.preempted, event.next);
        states.get(event.next)?.comesOn(event.core, event.atUs);
        heardOf.set(event.core, event.atUs);
        break;
      case 'migrate':
        // The kernel also tells of a thread that is put where it was.
        if (event.from !== event.to) states.get(event.tid)?.moves(event.from, event.to, event.atUs);
        break;
      case 'wakeup':
        states.get(event.tid)?.wakes(event.atUs);
        break;
      case 'lost':
        for (const state of states.values()) {
          if (state.running?.core === event.core) {
            state.cut(Math.max(heardOf.get(event.core) ?? 0, state.running.fromUs));
          }
        }
        break;
    }
  }
  return threads.map(({ tid, ranOn }) => {
    const state = states.get(tid)!;
    state.finish(endUs, ranOn);
    const { slices, waits, migrations, gaps } = state;
    return { tid, slices, waits, migrations, gaps };
  });
};
