/** Which of several `--to` the VM goes to, asked and told. */
import { ConfigError, UnsupportedVmError } from '../errors.js';
import type { TargetNeeds } from '../migrate/choose-target.js';
import { pickTarget } from '../migrate/pick-target.js';
import { QmpClient } from '../qmp/client.js';
import type { CommandConsole } from './console.js';

export const chooseDestination = async (options: {
  readonly to: readonly string[];
  /** One alone is asked, too. */
  readonly dryRun: boolean;
  readonly qmp: string;
  readonly key: Uint8Array;
  readonly console: CommandConsole;
  readonly signal: AbortSignal;
}): Promise<string> => {
  const { to, dryRun, qmp, key, console, signal } = options;
  const [first = ''] = to;
  if (to.length === 1 && !dryRun) return first;
  if (new Set(to).size < to.length) {
    throw new ConfigError(`--to: a destination is named twice: ${to.join(', ')}`);
  }
  const needs = await needsOf(qmp);
  const picked = await pickTarget({ to, key, needs, signal });
  console.tell(`destination ${picked.reason}`, { event: 'chosen', ...picked });
  return picked.to;
};

/** @throws UnsupportedVmError the VM stands still: only the destination that it was moved to may be asked. */
const needsOf = async (qmpPath: string): Promise<TargetNeeds> => {
  await using qmp = await QmpClient.connect(qmpPath, { timeoutMs: 5_000 });
  const [status, memory, cpus] = await Promise.all(
    qmp.pipeline([
      { execute: 'query-status' },
      { execute: 'query-memory-size-summary' },
      { execute: 'query-cpus-fast' },
    ]),
  );
  if (!status.running) {
    throw new UnsupportedVmError(`the VM stands still (${status.status}): it may run where it was moved to`, {
      cure: 'Name that one destination. If nobody has moved it, resume it first (QMP cont).',
    });
  }
  return { ramBytes: memory['base-memory'], vcpus: cpus.length };
};
