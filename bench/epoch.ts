/**
 * Suite `epoch`: what an epoch costs, part by part; what protection leaves of the
 * guest's own work, over intervals and dirty rates; and what a failover takes.
 *
 * 512 MB Linux guests on TCG, two namespaces joined by a veth pair, both roles on
 * this machine.
 */
import { measureFailover } from './epoch/failover.js';
import { measureParts, otherSenders } from './epoch/parts.js';
import { runSweep } from './epoch/sweep.js';
import type { BenchResult, RunSuite } from './report.js';

const capital = (word: string): string => word.charAt(0).toUpperCase() + word.slice(1);

const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number =>
    results.find((result) => result.name === name)?.metrics[key] ?? Number.NaN;
  const versus = (key: string, one: string, other: string): number => metric(one, key) / metric(other, key);
  const shares = results
    .filter(({ metrics }) => metrics.guestWorkShareP50 !== undefined)
    .map(({ name, metrics }): [string, number] => [ratioName(name), metrics.guestWorkShareP50!]);
  return {
    pauseVsQemuFloor: versus('pauseMsP50', 'dirty-500', 'qemu-floor'),
    pauseVsQemuFloor5000: versus('pauseMsP50', 'dirty-5000', 'qemu-floor'),
    pauseDirectVsStaged: versus('pauseMsP50', 'dirty-5000-direct', 'dirty-5000'),
    ...Object.fromEntries(
      otherSenders.flatMap((sender) => [
        [`ack${capital(sender)}VsSendfile`, versus('ackMsP50', `dirty-5000-${sender}`, 'dirty-5000')],
        [`cpu${capital(sender)}VsSendfile`, versus('sendCpuMsP50', `dirty-5000-${sender}`, 'dirty-5000')],
      ]),
    ),
    ...Object.fromEntries(shares),
  };
};

/** sweep-cpu-2500-20ms → guestWorkShareCpu2500At20Ms. */
const ratioName = (name: string): string => {
  const [, workload = '', interval = ''] = /^sweep-(.*)-(\d+)ms$/.exec(name) ?? [];
  const words = workload.split('-').map(capital);
  return `guestWorkShare${words.join('')}At${interval}Ms`;
};

export const runEpochSuite: RunSuite = async (smoke, progress, wanted) => {
  const results = await measureParts(smoke, progress, wanted);
  results.push(...(await runSweep(smoke, progress, wanted)));
  if (wanted.wants('failover')) results.push(await measureFailover(smoke ? 1 : 10, progress));
  return { results, ratios: ratiosOf(results) };
};
