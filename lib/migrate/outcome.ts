/** How a migration ended, for a person and as an error. */
import { type HoldfastError, toHoldfastError, VmGoneError } from '../errors.js';
import type { FaultCost, ServeProgress } from '../native-early.js';
import type { FinalEpoch } from '../primary/epoch-report.js';
import type { Failure, Outcome } from '../primary/machine.js';
import { describeOutcome, outcomeError } from '../primary/outcome.js';
import type { DiskPages } from '../primary/page-disks.js';
import type { DowntimeParts } from './downtime-parts.js';
import { type FallBackPoint, pointText } from './fall-back-point.js';
import { bytesText, timeText } from './words.js';

/** What was sent while the VM stood still, as far as the engine tells. */
export type MigrationFinal = Pick<FinalEpoch, 'dirtyPages' | 'zeroPages' | 'bytes' | 'ackMs'> &
  Partial<FinalEpoch>;

/** What came when it ran already, and what waiting for it has cost, microseconds per page fault. */
export type EarlyMove = Omit<ServeProgress, 'pagesLeft'> & FaultCost;

export type MigrationOutcome =
  | {
      readonly kind: 'moved';
      readonly term: number;
      /** From the beginning, with the checks and the disks, until the VM was known to run over there. */
      readonly totalMs: number;
      /** By this host's clock alone: from the VM's stop until it was heard that it runs over there. */
      readonly downtimeMs: number;
      /** What it was made of. */
      readonly downtimeParts: DowntimeParts | undefined;
      /** Of it, over there: from the decision until the VM ran. */
      readonly resumeMs: number;
      /** Not of it: before the first round, or while the destination gets ready, for what would have made it longer. */
      readonly firstStopMs: number;
      readonly rounds: number;
      /** Of memory and device state, on the wire. */
      readonly bytes: number;
      readonly diskBytes: number;
      /** What was sent while the VM stood still. */
      readonly final: MigrationFinal | undefined;
      /** Of all rounds and the last epoch, if pages on disks were skipped. */
      readonly diskPages?: DiskPages;
      /** Of one that ran over there before its memory was there; `downtimeMs` is until it ran. */
      readonly early?: EarlyMove;
    }
  | {
      readonly kind: 'stayed';
      readonly failure: Failure;
      /** The VM here is left stopped for it. */
      readonly mayRunThere: boolean;
      /** It has run over there before its memory was there, and that all of it came was not heard. */
      readonly pagesLost?: boolean;
      /** Some of it has not been sent: the destination goes on from there, if its daemon and QEMU lived. */
      readonly fallback?: FallBackPoint;
    }
  | Extract<Outcome, { kind: 'vm-ended' | 'vm-lost' | 'fenced' }>;

export interface MayBeLost {
  readonly failure: Failure;
  /** It was heard that it ran over there before its memory was there. */
  readonly ranThere: boolean;
  /** Not sent yet. */
  readonly pagesLeft: number;
  /** As agreed on. */
  readonly fallback: FallBackPoint | undefined;
}

/**
 * What a migration that failed says of the VM over there. A refusal names itself where the VM is; a VM whose pages
 * were all sent may lack none, and run on: neither goes on from a checkpoint as far as this side knows.
 */
export const lossOf = ({
  failure,
  ranThere,
  pagesLeft,
  fallback,
}: MayBeLost): Pick<Extract<MigrationOutcome, { kind: 'stayed' }>, 'pagesLost' | 'fallback'> => {
  if (failure.code === 'HOLDFAST_E_VM_LOST') return { pagesLost: true };
  if (!ranThere) return {};
  return { pagesLost: true, ...(fallback === undefined || pagesLeft === 0 ? {} : { fallback }) };
};

/** One line for a person. */
export const describeMigration = (outcome: MigrationOutcome): string => {
  switch (outcome.kind) {
    case 'moved': {
      const { term, totalMs, downtimeMs, firstStopMs, rounds, bytes, diskBytes, diskPages } = outcome;
      const before = rounds === 0 ? 'once before' : 'before the first round';
      const first = firstStopMs === 0 ? '' : `, and for ${timeText(firstStopMs)} ${before}`;
      const disks = diskBytes === 0 ? '' : ` and ${bytesText(diskBytes)} of disks`;
      const skipped =
        diskPages === undefined ? '' : `, and ${diskPages.verified} pages read from disks there`;
      const many = rounds === 0 ? 'no round' : rounds === 1 ? 'one round' : `${rounds} rounds`;
      return `moved: the VM runs over there (term ${term}); it stood still for ${timeText(downtimeMs)}${first}; ${timeText(totalMs)} in all, ${many}, ${bytesText(bytes)}${disks}${skipped}${earlyText(outcome.early)}`;
    }
    case 'stayed':
      return `${outcome.failure.message}; ${stayedText(outcome)}`;
    case 'vm-ended':
      return describeOutcome(outcome);
    case 'vm-lost':
      return `QEMU was lost: ${outcome.reason}`;
    case 'fenced':
      return `the VM runs on the destination: ${outcome.message}; the one here is stopped`;
  }
};

const stayedText = ({
  mayRunThere,
  failure,
  fallback,
}: Extract<MigrationOutcome, { kind: 'stayed' }>): string => {
  if (!mayRunThere) return 'the VM stays here';
  if (fallback !== undefined) {
    return `the VM is left stopped here, for it goes on over there from ${pointText(fallback)}, if its daemon and its QEMU there lived`;
  }
  return failure.code === 'HOLDFAST_E_VM_LOST'
    ? 'the VM is left stopped here'
    : 'the VM is left stopped here, for it may run over there';
};

const earlyText = (early: EarlyMove | undefined): string => {
  if (early === undefined) return '';
  const { pages, demandedPages, faults, faultP50Us, faultP99Us, faultMaxUs } = early;
  const times = [faultP50Us, faultP99Us, faultMaxUs].map((us) => timeText(us / 1_000));
  return `; of ${pages} pages that followed ${demandedPages} were waited for, in ${faults} page faults of ${times[0]} (p50), ${times[1]} (p99), ${times[2]} (at most)`;
};

const STOPPED_CURE =
  'The same command, when the destination can be reached, asks it and goes on. If you know that the VM does not run there: QMP cont.';

/** The error an outcome stands for. */
export const migrationError = (outcome: Exclude<MigrationOutcome, { kind: 'moved' }>): HoldfastError => {
  const message = describeMigration(outcome);
  switch (outcome.kind) {
    case 'stayed': {
      const { code, cure } = outcome.failure;
      // One that has run there, and lost its pages, is past asking.
      const asks = outcome.mayRunThere && outcome.pagesLost !== true;
      return toHoldfastError(
        Object.assign(new Error(message), {
          code,
          cure: asks ? STOPPED_CURE : cure,
        }),
      );
    }
    case 'vm-ended':
    case 'vm-lost':
      return new VmGoneError(message);
    case 'fenced':
      return outcomeError(outcome)!;
  }
};
