/** A small trace with one of everything, of a guest that means ill. */
import type { TraceDocument } from '../../../lib/trace/document.js';

/** A name that would be markup, a program and an escape sequence, were it not text. */
export const HOSTILE = '</script><img src=x onerror=alert(1)>\u001b[2J<!--';

export const sampleTrace: TraceDocument = {
  title: `vm ${HOSTILE}`,
  pid: 42,
  beganAt: '2026-01-02T03:04:05.000Z',
  durationUs: 10_000,
  coveredUs: 10_000,
  cores: [0, 1],
  threads: [
    {
      ...{ tid: 50, label: 'vCPU 0', vcpus: [0], gaps: 0 },
      slices: [
        { core: 0, fromUs: 0, toUs: 3_000, ended: 'preempted' },
        { core: 1, fromUs: 4_000, toUs: 5_000, ended: 'slept' },
      ],
      waits: [{ fromUs: 3_000, toUs: 4_000, core: 1, pushedOffBy: 99 }],
      migrations: [{ atUs: 3_500, from: 0, to: 1, ranAfterUs: 500 }],
    },
    { tid: 51, label: 'vCPU 1', vcpus: [1], slices: [], waits: [], migrations: [], gaps: 0 },
  ],
  marks: [
    { kind: 'epoch', label: 'epoch 7', fromUs: 6_000, toUs: 9_000, details: { 'dirty pages': 12 } },
    { kind: 'paused', label: 'paused', fromUs: 6_000, toUs: 7_500 },
  ],
  guest: {
    ...{
      source: 'run queues',
      kernel: 'Linux version 6.1.0 (x)',
      intervalUs: 1_000,
      looks: 10,
      late: 0,
      unread: 0,
      discarded: 0,
    },
    slices: [
      { vcpu: 0, fromUs: 0, toUs: 4_500, tid: 812, pid: 800, name: HOSTILE },
      { vcpu: 0, fromUs: 4_500, toUs: 10_000, tid: 0, pid: 0, name: 'swapper/0' },
    ],
  },
  recorded: { events: 20, lost: 0, discarded: 0, wakeups: 1 },
  threadNames: new Map([[99, 'busy']]),
  notes: [],
};
