/** One guest per workload and method; the workload runs in it from begin to end, with its checkpoints in between. */
import { join } from 'node:path';
import { QmpClient } from '../../lib/qmp/client.js';
import { createDisk, createQcow2, diskPath } from '../../test/lab/disk.js';
import { repositoryRoot } from '../../test/lab/guest.js';
import { guestOutput } from '../../test/lab/guest-shell.js';
import { Lab } from '../../test/lab/lab.js';
import { eventMs } from '../event-time.js';
import { startGuest } from '../pair.js';
import type { BenchResult, Progress } from '../report.js';
import { type CheckpointPlan, caseName, checkpointsOf, type Method, type Workload } from './plan.js';
import type { RoleOptions } from './role.js';

/** LINPACK of order 3000 on an emulated CPU takes a while. */
const WORKLOAD_TIMEOUT_MS = 3 * 3_600_000;
const SAVEVM_TIMEOUT_MS = 3_600_000;

type Metrics = Readonly<Record<string, number>>;

/** The last checkpoint's phases; all of them are in the workload's time. */
export const measureTurns = async (plan: CheckpointPlan, progress: Progress): Promise<BenchResult[]> => {
  const results: BenchResult[] = [];
  for (const workload of plan.workloads) {
    let aloneS = Number.NaN;
    for (const method of plan.methodsOf.get(workload) ?? []) {
      progress(caseName(workload, method));
      const metrics = await measureTurn(plan, workload, method);
      const { workloadS = Number.NaN } = metrics;
      if (method === 'alone') aloneS = workloadS;
      results.push({
        name: caseName(workload, method),
        params: { ...workload.params, method, checkpoints: checkpointsOf[method], ramMb: plan.ramMb },
        metrics: { ...metrics, workloadVsAlone: workloadS / aloneS },
      });
    }
  }
  return results;
};

const measureTurn = async (plan: CheckpointPlan, workload: Workload, method: Method): Promise<Metrics> => {
  await using lab = await Lab.create({ tag: 'bckpt' });
  const isStock = method === 'savevm';
  const path = diskPath(lab, 'a');
  await (isStock ? createQcow2 : createDisk)(path, plan.diskMiB);
  const disk = { path, ...(isStock ? { format: 'qcow2' as const } : {}) };
  const guest = await startGuest(lab, { workload: 'idle', ramMb: plan.ramMb, disks: [disk] });
  await guestOutput(lab.client, PREPARE_DISK, { timeoutMs: WORKLOAD_TIMEOUT_MS });
  const beganMs = performance.now();
  const worked = guestOutput(lab.client, workload.command, { timeoutMs: WORKLOAD_TIMEOUT_MS });
  worked.catch(() => {}); // awaited below
  let phases: Metrics = {};
  for (let number = 1; number <= checkpointsOf[method]; number += 1) {
    phases = isStock ? await saveVm(guest.qmpPath) : await handOffOnce(lab, guest.qmpPath, number);
  }
  await worked;
  return { workloadS: (performance.now() - beganMs) / 1e3, ...phases };
};

/** With given identifiers, or mke2fs waits until the kernel has random numbers. */
const UUID = '6f6c6466-6173-4000-8000-000000000003';
const PREPARE_DISK = `/bin/mke2fs -q -t ext4 -b 4096 -U ${UUID} -E hash_seed=${UUID},nodiscard,assume_storage_prezeroed=1 /dev/vda
mkdir -p /mnt && mount -t ext4 /dev/vda /mnt`;

const handOffOnce = async (lab: Lab, qmp: string, number: number): Promise<Metrics> => {
  const script = join(repositoryRoot(), 'dist/bench/checkpoint/role.js');
  const options: RoleOptions = {
    qmp,
    ramTo: lab.sharedMemoryPath(`apart-${number}`),
    dir: lab.path(`checkpoint-${number}`),
  };
  const { stdout } = await lab.host('a').exec(process.execPath, [script, JSON.stringify(options)]);
  const { allMs, migrateMs, saveStateMs, copyFileMs, commitMs } = JSON.parse(stdout) as Metrics;
  const seconds = { allMs, migrateMs, saveStateMs, copyFileMs, commitMs };
  return {
    ...Object.fromEntries(
      Object.entries(seconds).map(([name, ms = Number.NaN]) => [name.replace(/Ms$/, 'S'), ms / 1e3]),
    ),
    stoppedMs: migrateMs ?? Number.NaN,
  };
};

/** Of stock QEMU: the VM stands still for all of it. By its own time stamps, as all pauses. */
const saveVm = async (qmpPath: string): Promise<Metrics> => {
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
