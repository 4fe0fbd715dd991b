/** How epochs are paced, why, and whether the budgets are kept: for a person, and for status --json. Pure. */
import type { EpochTrigger } from './machine.js';
import type { PaceMode } from './pace.js';

export interface Budget {
  readonly budgetMs: number;
  /** As of late; the median. */
  readonly measuredMs: number;
  readonly met: boolean;
}

export interface PacingExplanation {
  readonly mode: PaceMode;
  /** From pause to pause, as of late; the median. */
  readonly intervalMs: number | undefined;
  /** Why the last epoch began. */
  readonly trigger: EpochTrigger | undefined;
  readonly pauseBudget: Budget | undefined;
  readonly delayBudget: Budget | undefined;
  /** In words, with what stands in the way of a budget that is not met. */
  readonly reason: string;
}

export interface PacingFacts {
  readonly mode: PaceMode;
  readonly settings: {
    readonly intervalMs?: number | undefined;
    readonly minIntervalMs: number;
    readonly maxIntervalMs: number;
    readonly pauseBudgetMs: number;
  };
  readonly delayBudgetMs: number | undefined;
  readonly trigger: EpochTrigger | undefined;
  readonly intervalMs: number | undefined;
  readonly pauseMs: number | undefined;
  /** What a pause takes with nothing to copy. */
  readonly basePauseMs: number;
  /** First frame held to its release; without sight of output, resume to release. */
  readonly delayMs: number | undefined;
  readonly releaseDelayMs: number;
}

const TRIGGERS: Readonly<Record<EpochTrigger, string>> = {
  output: 'output waited',
  dirty: 'much was dirty',
  disk: 'much was written to disks',
  interval: 'time was up',
  first: 'the base copy was done',
  request: 'it was asked for',
};

export const explainPacing = (facts: PacingFacts): PacingExplanation => {
  const { mode, settings, trigger, intervalMs } = facts;
  const isFixed = mode === 'fixed';
  const pauseBudget = isFixed ? undefined : budgetOf(settings.pauseBudgetMs, facts.pauseMs);
  const delayBudget = isFixed ? undefined : budgetOf(facts.delayBudgetMs, facts.delayMs);
  const reasons = [
    modeText(facts),
    ...(trigger === undefined || isFixed ? [] : [`the last because ${TRIGGERS[trigger]}`]),
    ...(pauseBudget?.met === false ? [pauseLimit(facts, pauseBudget)] : []),
    ...(delayBudget?.met === false ? [delayLimit(facts, delayBudget)] : []),
  ];
  return { mode, intervalMs, trigger, pauseBudget, delayBudget, reason: reasons.join('; ') };
};

const budgetOf = (budgetMs: number | undefined, measuredMs: number | undefined): Budget | undefined =>
  budgetMs === undefined || measuredMs === undefined
    ? undefined
    : { budgetMs, measuredMs, met: measuredMs <= budgetMs };

const modeText = ({ mode, settings, delayBudgetMs }: PacingFacts): string => {
  const { intervalMs, minIntervalMs, maxIntervalMs } = settings;
  switch (mode) {
    case 'fixed':
      return `fixed: every ${intervalMs} ms`;
    case 'load':
      return `when output waits or much is dirty, ${minIntervalMs} to ${maxIntervalMs} ms apart`;
    case 'assumed':
      return delayBudgetMs === undefined
        ? 'by the clock: the gate does not see when output waits'
        : `by the clock, within the delay budget: the gate does not see when output waits`;
  }
};

const pauseLimit = ({ basePauseMs }: PacingFacts, { budgetMs, measuredMs }: Budget): string =>
  basePauseMs >= budgetMs
    ? `pause ${ms(measuredMs)}, over its budget of ${ms(budgetMs)}: stop, device state and cont alone take ${ms(basePauseMs)}`
    : `pause ${ms(measuredMs)}, over its budget of ${ms(budgetMs)}: the guest writes faster than epochs can follow`;

const delayLimit = ({ releaseDelayMs }: PacingFacts, { budgetMs, measuredMs }: Budget): string =>
  releaseDelayMs >= budgetMs
    ? `output delay ${ms(measuredMs)}, over its budget of ${ms(budgetMs)}: pause and acknowledgement alone take ${ms(releaseDelayMs)}`
    : `output delay ${ms(measuredMs)}, over its budget of ${ms(budgetMs)}: the guest's share of the time and the epoch before come first`;

const ms = (value: number): string => `${value.toFixed(1)} ms`;
