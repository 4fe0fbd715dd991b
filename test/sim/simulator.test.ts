/**
 * The two machines against seeded chance: kills, cuts, delays, the operator. On
 * a failure the seed and the whole trace are printed; HOLDFAST_SIM_SEED=N runs
 * that one alone, HOLDFAST_SIM_SEEDS=N sets how many are run.
 */
import { describe, expect, it } from 'vitest';
import type { PrimaryAction } from '../../lib/primary/machine.js';
import { type RunOptions, type RunResult, run } from './simulator/run.js';

const only = process.env.HOLDFAST_SIM_SEED;
const seeds = Number(process.env.HOLDFAST_SIM_SEEDS ?? 2_000);

/** The first violation within `count` seeds. */
const firstViolation = (count: number, options: RunOptions): RunResult | undefined => {
  for (let seed = 1; seed <= count; seed += 1) {
    const result = run(seed, options);
    if (result.violation !== undefined) return result;
  }
  return undefined;
};

/** No violation in any run; and the runs reach the ends that matter, or they prove nothing. */
const expectRules = (options: RunOptions, endsThatMatter: readonly string[]): void => {
  const endings = new Map<string, number>();
  const first = only === undefined ? 1 : Number(only);
  const last = only === undefined ? seeds : first;
  for (let seed = first; seed <= last; seed += 1) {
    const result = run(seed, options);
    if (result.violation !== undefined) {
      expect.fail(`seed ${seed}: ${result.violation}\n${result.trace.join('\n')}`);
    }
    endings.set(result.ending, (endings.get(result.ending) ?? 0) + 1);
  }
  if (process.env.HOLDFAST_SIM_ENDINGS === '1') console.log(Object.fromEntries(endings));
  if (only !== undefined || seeds < 500) return;
  for (const ending of endsThatMatter) {
    expect(endings.get(ending) ?? 0, ending).toBeGreaterThan(0);
  }
};

describe('simulator', () => {
  it('keeps the rules in every run', { timeout: 120_000 }, () => {
    expectRules({}, [
      'protected/backup waits',
      'fenced/backup runs',
      'switched-over/backup runs',
      'vm-lost/backup runs',
      'dead/backup runs',
      'detached/backup waits',
    ]);
  });

  it('keeps them in every migration', { timeout: 120_000 }, () => {
    expectRules({ migrates: true }, [
      'switched-over/backup runs',
      'failed/backup waits',
      'detached/backup waits',
      'fenced/backup runs',
      'vm-lost/backup waits',
      'vm-lost/backup runs',
    ]);
  });

  it('is deterministic', () => {
    expect(run(7).trace).toEqual(run(7).trace);
    expect(run(7).trace).not.toEqual(run(8).trace);
  });
});

describe('the simulator notices when', () => {
  it('output is released before the acknowledgement', () => {
    const early = firstViolation(20, {
      tamper: (actions, event) =>
        event.type === 'captured' ? [...actions, { type: 'release', epoch: event.epoch }] : actions,
    });
    expect(early?.violation).toMatch(/output commit/);
  });

  it('the backup takes over without having fenced its receiver', () => {
    const unfenced = firstViolation(500, { fences: false });
    expect(unfenced?.violation).toMatch(/takeover/);
  });

  it('a primary opens its gate when it has lost its backup, although it should hold', () => {
    const opened = firstViolation(100, {
      tamper: (actions) =>
        actions.flatMap((action): PrimaryAction[] =>
          action.type === 'enter-loss' && action.vm === 'stop'
            ? [{ type: 'release', epoch: 0 }, action]
            : [action],
        ),
    });
    expect(opened?.violation).toMatch(/output commit|one active side/);
  });

  it('the VM runs while its pages are sent directly', () => {
    const torn = firstViolation(20, {
      tamper: (actions, event) =>
        event.type === 'captured' && event.mode === 'direct' ? [{ type: 'resume' }, ...actions] : actions,
    });
    expect(torn?.violation).toMatch(/torn pages/);
  });

  it('a second epoch begins before the first is acknowledged', () => {
    const second = firstViolation(20, {
      tamper: (actions, event) =>
        event.type === 'captured'
          ? [
              {
                type: 'begin-epoch',
                epoch: event.epoch + 1,
                installGate: false,
                takePrefix: false,
                final: false,
                trigger: 'interval',
              },
              ...actions,
            ]
          : actions,
    });
    expect(second?.violation).toMatch(/is not acknowledged/);
  });

  it('the pages of a capture that failed are forgotten', () => {
    const forgotten = firstViolation(100, { forgets: true });
    expect(forgotten?.violation).toMatch(/are missing in epoch/);
  });

  it('an epoch is committed before its disk writes are there', () => {
    const early = firstViolation(100, { waitsForDisks: false });
    expect(early?.violation).toMatch(/^disk at a commit/);
  });

  it('the maps of the disks forget what is not acknowledged', () => {
    const forgotten = firstViolation(500, { forgetsMarks: true });
    expect(forgotten?.violation).toMatch(/^disk at a commit/);
  });

  it('a migration is handed over, and its VM runs on here', () => {
    const twice = firstViolation(100, {
      migrates: true,
      tamper: (actions) =>
        actions.flatMap((action): PrimaryAction[] =>
          action.type === 'hand-over' ? [action, { type: 'resume' }] : [action],
        ),
    });
    expect(twice?.violation).toMatch(/one active side|has left/);
  });

  it('the VM of a migration that failed is left stopped', () => {
    const forgotten = firstViolation(100, {
      migrates: true,
      tamper: (actions) =>
        actions.map((action) =>
          action.type === 'finish' && action.outcome.kind === 'failed'
            ? { ...action, release: false }
            : action,
        ),
    });
    expect(forgotten?.violation).toMatch(/does not run on/);
  });

  it('the VM is forgotten in a pause', () => {
    const forgotten = firstViolation(20, {
      tamper: (actions) => actions.filter((action) => action.type !== 'resume'),
    });
    expect(forgotten?.violation).toMatch(/nothing leaves/);
  });
});
