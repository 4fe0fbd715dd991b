/** SIGKILL of the primary's QEMU and daemon, at a random moment of the epoch. */
import { percentile } from '../../lib/stats.js';
import { Lab } from '../../test/lab/lab.js';
import { collectEpochs, startPair, startRelayedGuest } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';

export const measureFailover = async (trials: number, progress: Progress): Promise<BenchResult> => {
  const resumed: number[] = [];
  const load: number[] = [];
  const fence: number[] = [];
  for (let trial = 0; trial < trials; trial += 1) {
    progress(`failover: ${trial + 1} of ${trials}`);
    await using lab = await Lab.create({ tag: 'bench' });
    const guest = await startRelayedGuest(lab, {
      workload: 'writer',
      pagesPerSecond: 15_000,
      workingSetPages: 4_000,
    });
    const { primary, backup } = await startPair(lab, guest, { gate: 'relay', intervalMs: 25 });
    await collectEpochs(primary, 10, 30_000);
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 50));
    const killedAtMs = Date.now();
    process.kill(primary.process.pid, 'SIGKILL');
    process.kill(guest.pid, 'SIGKILL');
    const report = await backup.message('took-over', { timeoutMs: 15_000 });
    resumed.push(Number(report.resumedAtMs) - killedAtMs);
    load.push(Number(report.loadMs));
    fence.push(Number(report.fenceMs));
  }
  return {
    name: 'failover',
    params: { kill: 'SIGKILL of QEMU and daemon', gate: 'relay', intervalMs: 25, trials, accelerator: 'tcg' },
    metrics: {
      killToRunningMsP50: percentile(resumed, 50),
      killToRunningMsMax: percentile(resumed, 100),
      loadMsP50: percentile(load, 50),
      loadMsMax: percentile(load, 100),
      fenceMsP50: percentile(fence, 50),
    },
  };
};
