/** How protection ended, for a person and as an error. */
import { FencedError, type HoldfastError, toHoldfastError, VmGoneError } from '../errors.js';
import type { Outcome } from './machine.js';

/** One line for a person. */
export const describeOutcome = (outcome: Outcome): string => {
  switch (outcome.kind) {
    case 'detached':
      return 'detached: the VM runs on, unprotected';
    case 'switched-over':
      return `switched over: the VM runs on the backup since epoch ${outcome.epoch} (term ${outcome.term}), resumed in ${outcome.resumeMs.toFixed(1)} ms; it stood still for ${outcome.downtimeMs.toFixed(1)} ms`;
    case 'vm-ended':
      return `the VM ended: ${outcome.reason}`;
    case 'vm-lost':
      return `QEMU was lost: ${outcome.reason}; the backup was told to take over`;
    case 'fenced':
      return `fenced: ${outcome.message}; the VM here is stopped`;
    case 'failed':
      return `failed: ${outcome.failure.message}`;
  }
};

/** The error an outcome stands for; undefined if it is what was asked for. */
export const outcomeError = (outcome: Outcome): HoldfastError | undefined => {
  switch (outcome.kind) {
    case 'detached':
    case 'switched-over':
    case 'vm-ended':
      return undefined;
    case 'vm-lost':
      return new VmGoneError(describeOutcome(outcome));
    case 'fenced':
      return new FencedError(describeOutcome(outcome), {
        cure: 'Quit this QEMU; protect the copy that runs on the backup, with the same commands.',
      });
    case 'failed':
      return toHoldfastError(
        Object.assign(new Error(outcome.failure.message), {
          code: outcome.failure.code,
          cure: outcome.failure.cure,
        }),
      );
  }
};
