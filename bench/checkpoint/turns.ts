/** One guest per workload and method; the workload runs in it from begin to end, with its checkpoints in between. */
import { join } from 'node:path';
import { QmpClient } from '../../lib/qmp/client.js';
import { runDirOf } from '../../test/lab/daemons.js';
import { createDisk, createQcow2, diskPath } from '../../test/lab/disk.js';
import { repositoryRoot } from '../../test/lab/guest.js';
import { guestOutput } from '../../test/lab/guest-shell.js';
import { Lab } from '../../test/lab/lab.js';
import { eventMs } from '../event-time.js';
import { nodeFlags } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { startIdleGuest } from './idle-guest.js';
import { jsonLinesOf } from './json-lines.js';
import { type CheckpointPlan, caseName, checkpointsOf, type Method, type Workload } from './plan.js';
import type { RoleOptions } from './role.js';
import type { Figures } from './spreads.js';

/** LINPACK of order 3000 on an emulated CPU takes a while. */
const WORKLOAD_TIMEOUT_MS = 3 * 3_600_000;
const SAVEVM_TIMEOUT_MS = 3_600_000;

interface Turn {
  readonly workloadS: number;
  /** Seconds and milliseconds, of each checkpoint. */
  readonly checkpoints: readonly Figures[];
}

const PHASES = ['all', 'saveState', 'copyFile', 'commit', 'migrate'] as const;

/** Each phase as a share of the run that nobody disturbs. */
const sharesOf = (metrics: Figures, aloneS: number): Figures =>
  Object.fromEntries(
    PHASES.flatMap((phase) => {
      const seconds = metrics[`${phase}S`];
      return seconds === undefined ? [] : [[`${phase}OfAloneShare`, seconds / aloneS]];
    }),
  );

export const measureTurns = async (plan: CheckpointPlan, progress: Progress): Promise<BenchResult[]> => {
  const results: BenchResult[] = [];
  for (const workload of plan.workloads) {
    const turns = new Map<Method, Turn>();
    for (const method of plan.methodsOf.get(workload) ?? []) {
      progress(caseName(workload, method));
      turns.set(method, await measureTurn(plan, workload, method));
    }
    // Once more behind them: a machine that grows slower or faster meanwhile would else be the methods' fault.
    const before = turns.get('alone');
    if (before !== undefined && turns.size > 1) {
      progress(`${caseName(workload, 'alone')}, again`);
      const after = await measureTurn(plan, workload, 'alone');
      turns.set('alone', { ...before, workloadS: (before.workloadS + after.workloadS) / 2 });
    }
    const aloneS = turns.get('alone')?.workloadS ?? Number.NaN;
    for (const [method, { workloadS, checkpoints }] of turns) {
      const params = { ...workload.params, method, ramMb: plan.ramMb };
      const whole: Figures = workload.isCutOff ? {} : { workloadS, workloadVsAlone: workloadS / aloneS };
      if (checkpoints.length === 0) {
        results.push({ name: caseName(workload, method), params, metrics: whole });
      }
      for (const [index, metrics] of checkpoints.entries()) {
        const which = checkpoints.length === 1 ? '' : index === 0 ? '-first' : '-second';
        results.push({
          name: caseName(workload, method) + which,
          params,
          metrics: { ...whole, ...metrics, ...(workload.isCutOff ? {} : sharesOf(metrics, aloneS)) },
        });
      }
    }
  }
  return results;
};

const measureTurn = async (plan: CheckpointPlan, workload: Workload, method: Method): Promise<Turn> => {
  await using lab = await Lab.create({ tag: 'bckpt' });
  const isStock = method === 'savevm';
  const path = diskPath(lab, 'a');
  await (isStock ? createQcow2 : createDisk)(path, plan.diskMiB);
  const disk = { path, ...(isStock ? { format: 'qcow2' as const } : {}) };
  const guest = await startIdleGuest(lab, { ramMb: plan.ramMb, disks: [disk] });
  await guestOutput(lab.client, PREPARE_DISK, { timeoutMs: WORKLOAD_TIMEOUT_MS });
  const beganMs = performance.now();
  const worked = guestOutput(lab.client, workload.command, { timeoutMs: WORKLOAD_TIMEOUT_MS });
  const ended = worked.then(() => performance.now());
  ended.catch(() => {}); // awaited below
  // Alone as well: whatever happens then, as the dropping of caches, belongs to the workload.
  if (workload.until !== undefined) {
    await guestOutput(lab.client, workload.until, { timeoutMs: WORKLOAD_TIMEOUT_MS });
  }
  const checkpoints =
    method === 'alone'
      ? []
      : isStock
        ? [await saveVm(guest.qmpPath)]
        : await takeCheckpoints(lab, guest.qmpPath, method);
  return { workloadS: ((await ended) - beganMs) / 1e3, checkpoints };
};

/** With given identifiers, or mke2fs waits until the kernel has random numbers. */
const UUID = '6f6c6466-6173-4000-8000-000000000003';
const PREPARE_DISK = `/bin/mke2fs -q -t ext4 -b 4096 -U ${UUID} -E hash_seed=${UUID},nodiscard,assume_storage_prezeroed=1 /dev/vda
mkdir -p /mnt && mount -t ext4 /dev/vda /mnt`;

const takeCheckpoints = async (
  lab: Lab,
  qmp: string,
  method: Exclude<Method, 'alone' | 'savevm'>,
): Promise<Figures[]> =>
  (
    await runRole(lab, {
      method: method.startsWith('capture') ? 'capture' : 'handoff',
      checkpoints: checkpointsOf[method],
      qmp,
      dir: lab.path('checkpoints'),
    })
  ).map(({ stoppedMs = Number.NaN, prefixMs, writtenBytes = Number.NaN, ...phases }) => ({
    ...Object.fromEntries(Object.entries(phases).map(([name, ms]) => [name.replace(/Ms$/, 'S'), ms / 1e3])),
    ...{ stoppedMs, ...(prefixMs === undefined ? {} : { prefixMs }), writtenBytes },
  }));

export const runRole = async (lab: Lab, options: Omit<RoleOptions, 'runDir'>): Promise<Figures[]> => {
  const script = join(repositoryRoot(), 'dist/bench/checkpoint/role.js');
  const given: RoleOptions = { ...options, runDir: runDirOf(lab, 'a') };
  return jsonLinesOf(
    await lab.host('a').exec(process.execPath, [...nodeFlags, script, JSON.stringify(given)], {
      timeoutMs: WORKLOAD_TIMEOUT_MS,
    }),
  );
};

/** Of stock QEMU: the VM stands still for all of it. By its own time stamps, as all pauses. */
const saveVm = async (qmpPath: string): Promise<Figures> => {
  await using qmp = await QmpClient.connect(qmpPath);
  let [stopMs, resumeMs] = [Number.NaN, Number.NaN];
  qmp.on('STOP', (event) => {
    stopMs = eventMs(event);
  });
  qmp.on('RESUME', (event) => {
    resumeMs = eventMs(event);
  });
  const beganMs = performance.now();
  const command = { 'command-line': 'savevm bench' };
  const said = await qmp.execute('human-monitor-command', command, { timeoutMs: SAVEVM_TIMEOUT_MS });
  if (said !== '') throw new Error(`savevm: ${said}`);
  await qmp.execute('query-status'); // its events come before this answer
  return { allS: (performance.now() - beganMs) / 1e3, stoppedMs: resumeMs - stopMs };
};
