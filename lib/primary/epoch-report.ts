/**
 * What one epoch cost, part by part. All times in milliseconds. The parts of
 * the pause overlap (device state beside scan and copy), so they add up to more
 * than `pauseMs`.
 */
import type { SenderStrategy } from '../native.js';
import { SampleWindow } from '../stats.js';
import type { EpochMode, EpochTrigger } from './machine.js';
import type { DiskPages } from './page-disks.js';

export interface EpochReport {
  readonly epoch: number;
  /** Why it ended when it did. */
  readonly trigger: EpochTrigger;
  readonly mode: EpochMode;
  readonly dirtyPages: number;
  /** Of these, staged before the pause, while the VM ran. */
  readonly prestagedPages: number;
  /** Of those, written again before the pause, and so staged twice. */
  readonly supersededPages: number;
  /** Of the prestaged, sent before the pause as well, and still valid. */
  readonly aheadPages: number;
  /** Written in every slice, and so left for the pause. */
  readonly heldBackPages: number;
  /** Slices of speculative capture. */
  readonly slices: number;
  /** Page bytes sent ahead in vain: written again before the pause. */
  readonly supersededSentBytes: number;
  /** Of these, pages that were all zero and did not travel. */
  readonly zeroPages: number;
  /** Bytes on the bulk connection. */
  readonly bytes: number;
  /** Records in the disks' logs: what the guest wrote to its disks in this epoch. */
  readonly diskBytes: number;
  /** Device state, and what of it travelled: a delta against the last. */
  readonly deviceBytes: number;
  readonly deviceSentBytes: number;
  /** Scan and copy of all slices, before the pause; 0 where nothing was prestaged. */
  readonly prestageMs: number;
  /** Sending of all slices. */
  readonly aheadSendMs: number;
  /** When the pause began, on the clock of performance.now(). */
  readonly pausedAtMs: number;
  /** From sending `stop` to the answer of `cont`: the guest did not run. */
  readonly pauseMs: number;
  /** QMP stop. */
  readonly stopMs: number;
  /** Device state saved by QEMU; from the answer of `stop`. */
  readonly deviceMs: number;
  /** Output boundary set; from the end of the device state, or beside it from the answer of `stop` (relay, plug). */
  readonly gateMs: number;
  /** PAGEMAP_SCAN with re-protection. */
  readonly scanMs: number;
  /** Dirty pages copied to staging; 0 in direct mode. */
  readonly copyMs: number;
  /** QMP cont. */
  readonly contMs: number;
  /** What of the pause the parts above leave over. */
  readonly restMs: number;
  /** First to last byte handed to the kernel. */
  readonly sendMs: number;
  /** First byte handed to the kernel to the backup's acknowledgement. */
  readonly ackMs: number;
  /** The backup's apply time of the epoch before; undefined for the first. */
  readonly previousApplyMs: number | undefined;
  /** From the boundary (the pause) to the release: the least any packet of the epoch waited. */
  readonly releaseDelayMs: number;
  /** From the begin of the epoch to the release: the most any packet of it waited. */
  readonly outputDelayMs: number;
  /** From the first frame that was held to the release; undefined without output, or where the gate does not see it. */
  readonly outputWaitMs: number | undefined;
  /** Frames that were held at the boundary; undefined where the gate does not count. */
  readonly heldFrames: number | undefined;
  /** Since the pause before this one began. */
  readonly intervalMs: number;
  /** How the pages were sent; in a turn of another than `status` names, that one. */
  readonly sender: SenderStrategy;
  /** CPU time of the sending threads. */
  readonly sendCpuMs: number;
  /** System calls that moved payload. */
  readonly syscalls: number;
  /** Page bytes that the kernel copied on their way out, and those that it took by reference. */
  readonly copiedBytes: number;
  readonly referenceBytes: number;
}

/** What of a report there is of the epoch before a hand-over: the VM neither resumes here nor is anything released. */
export type FinalEpoch = Pick<
  EpochReport,
  | 'epoch'
  | 'mode'
  | 'dirtyPages'
  | 'zeroPages'
  | 'bytes'
  | 'diskBytes'
  | 'deviceBytes'
  | 'stopMs'
  | 'deviceMs'
  | 'scanMs'
  | 'copyMs'
  | 'sendMs'
  | 'ackMs'
  | 'sender'
> & {
  /** From sending `stop` until the backup had all of it. */
  readonly ackedAfterMs: number;
  /** Of a migration that skips pages on disks. */
  readonly diskPages?: DiskPages;
};

export interface Distribution {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** Every figure of a report that has a distribution. */
export const measured = [
  'prestageMs',
  'aheadSendMs',
  'pauseMs',
  'stopMs',
  'deviceMs',
  'gateMs',
  'scanMs',
  'copyMs',
  'contMs',
  'restMs',
  'sendMs',
  'ackMs',
  'releaseDelayMs',
  'outputDelayMs',
  'dirtyPages',
  'prestagedPages',
  'supersededPages',
  'aheadPages',
  'heldBackPages',
  'slices',
  'supersededSentBytes',
  'bytes',
  'diskBytes',
  'deviceBytes',
  'deviceSentBytes',
  'intervalMs',
  'sendCpuMs',
  'syscalls',
  'copiedBytes',
  'referenceBytes',
] as const;
/** Figures that not every epoch has. */
const sometimes = ['outputWaitMs', 'heldFrames'] as const;
export type MeasuredPart = (typeof measured)[number] | (typeof sometimes)[number] | 'applyMs';

export type EpochSummary = { readonly [part in MeasuredPart]?: Distribution };

/** Epochs of which the distributions are kept: a minute's worth or more. */
const WINDOW_EPOCHS = 2_000;

/** Distributions over the latest epochs. */
export class EpochStatistics {
  readonly #windows = new Map<MeasuredPart, SampleWindow>();
  #epochs = 0;

  get epochs(): number {
    return this.#epochs;
  }

  add(report: EpochReport): void {
    this.#epochs += 1;
    for (const part of measured) this.#window(part).add(report[part]);
    for (const part of sometimes) {
      const value = report[part];
      if (value !== undefined) this.#window(part).add(value);
    }
    if (report.previousApplyMs !== undefined) this.#window('applyMs').add(report.previousApplyMs);
  }

  summary(): EpochSummary {
    const summary: { [part in MeasuredPart]?: Distribution } = {};
    for (const [part, window] of this.#windows) {
      const distribution = window.summary();
      if (distribution !== undefined) summary[part] = distribution;
    }
    return summary;
  }

  #window(part: MeasuredPart): SampleWindow {
    let window = this.#windows.get(part);
    if (window === undefined) {
      window = new SampleWindow(WINDOW_EPOCHS);
      this.#windows.set(part, window);
    }
    return window;
  }
}
