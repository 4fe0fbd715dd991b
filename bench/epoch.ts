/**
 * Suite `epoch`: what an epoch costs, part by part, also of a large guest; how many
 * an idle guest can have in a second; what protection leaves of the guest's own
 * work, over intervals and dirty rates; and what a failover takes.
 *
 * Linux guests on TCG, of 512 MB unless said otherwise, two namespaces joined by a veth pair, both roles on
 * this machine.
 */
import { measureFailover } from './epoch/failover.js';
import { IDLE_CASE, measureIdle } from './epoch/idle.js';
import { LARGE_FRESH_CASE, LARGE_RAM_CASE, measureLargeRam } from './epoch/large-ram.js';
import { measureParts, otherSenders } from './epoch/parts.js';
import { runSweep } from './epoch/sweep.js';
import { type BenchResult, metricOf, type RunSuite } from './report.js';

const capital = (word: string): string => word.charAt(0).toUpperCase() + word.slice(1);

const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number => metricOf(results, name, key);
  const versus = (key: string, one: string, other: string): number => metric(one, key) / metric(other, key);
  const shares = results
    .filter(({ metrics }) => metrics.guestWorkShareP50 !== undefined)
    .map(({ name, metrics }): [string, number] => [ratioName(name), metrics.guestWorkShareP50!]);
  return {
    pauseMsP50Dirty5000: metric('dirty-5000', 'pauseMsP50'),
    pauseMsP99Dirty5000: metric('dirty-5000', 'pauseMsP99'),
    pauseMsP50Ram8g: metric(LARGE_RAM_CASE, 'pauseMsP50'),
    pauseMsP50Ram8gFresh: metric(LARGE_FRESH_CASE, 'pauseMsP50'),
    checkpointsPerSecondIdle: metric(IDLE_CASE, 'checkpointsPerSMean'),
    checkpointsMissedIdle: metric(IDLE_CASE, 'missed'),
    guestCpuShare20ms: metric('sweep-cpu-2500-20ms', 'guestWorkShareP50'),
    pauseVsQemuFloor: versus('pauseMsP50', 'dirty-500', 'qemu-floor'),
    pauseVsQemuFloor5000: versus('pauseMsP50', 'dirty-5000', 'qemu-floor'),
    pauseVsQemuFloorRam8g: versus('pauseMsP50', LARGE_RAM_CASE, 'qemu-floor'),
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
  for (const name of [LARGE_RAM_CASE, LARGE_FRESH_CASE] as const)
    if (wanted.wants(name)) results.push(...(await measureLargeRam(name, smoke, progress)));
  if (wanted.wants(IDLE_CASE)) results.push(await measureIdle(smoke ? 1 : 60, progress));
  results.push(...(await runSweep(smoke, progress, wanted)));
  if (wanted.wants('failover')) results.push(await measureFailover(smoke ? 1 : 10, progress));
  return { results, ratios: ratiosOf(results) };
};
