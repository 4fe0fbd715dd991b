import { describe, expect, it } from 'vitest';
import { explainPacing, type PacingFacts } from '../../lib/primary/pacing-report.js';

const facts: PacingFacts = {
  mode: 'load',
  settings: { minIntervalMs: 2, maxIntervalMs: 100, pauseBudgetMs: 5 },
  delayBudgetMs: 10,
  trigger: 'output',
  intervalMs: 8,
  pauseMs: 3,
  basePauseMs: 2,
  delayMs: 7,
  releaseDelayMs: 4,
};

describe('the explanation of the pace', () => {
  it('says why the last epoch began, and that both budgets are kept', () => {
    const { pauseBudget, delayBudget, reason } = explainPacing(facts);
    expect(reason).toBe(
      'when output waits or much is dirty, 2 to 100 ms apart; the last because output waited',
    );
    expect(pauseBudget).toEqual({ budgetMs: 5, measuredMs: 3, met: true });
    expect(delayBudget).toEqual({ budgetMs: 10, measuredMs: 7, met: true });
  });

  it('says what stands in the way of a budget that is not kept', () => {
    const reasonOf = (other: Partial<PacingFacts>): string => explainPacing({ ...facts, ...other }).reason;
    expect(reasonOf({ pauseMs: 6, basePauseMs: 5.5 })).toMatch(
      /stop, device state and cont alone take 5\.5 ms$/,
    );
    expect(reasonOf({ pauseMs: 6 })).toMatch(/the guest writes faster than epochs can follow$/);
    expect(reasonOf({ delayMs: 14, releaseDelayMs: 12 })).toMatch(/acknowledgement alone take 12\.0 ms$/);
    expect(reasonOf({ delayMs: 14 })).toMatch(/the guest's share .* come first$/);
  });

  it('promises nothing with a fixed interval, or before anything was measured', () => {
    const fixed = explainPacing({ ...facts, mode: 'fixed', settings: { ...facts.settings, intervalMs: 25 } });
    expect(fixed).toMatchObject({
      reason: 'fixed: every 25 ms',
      pauseBudget: undefined,
      delayBudget: undefined,
    });
    const early = explainPacing({ ...facts, trigger: undefined, pauseMs: undefined, delayMs: undefined });
    expect(early).toMatchObject({ pauseBudget: undefined, delayBudget: undefined });
  });

  it('says where output is not seen', () => {
    const blind = { ...facts, mode: 'assumed' } as const;
    expect(explainPacing({ ...blind, delayBudgetMs: undefined }).reason).toMatch(/^by the clock: the gate/);
    expect(explainPacing(blind).reason).toMatch(/^by the clock, within the delay budget/);
  });
});
