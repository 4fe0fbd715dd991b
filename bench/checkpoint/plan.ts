/** What the guest computes meanwhile, and what is done to it: the thesis's experiments. */
import type { WantedCases } from '../report.js';

export interface Workload {
  readonly name: string;
  readonly params: Readonly<Record<string, string | number>>;
  /** In the guest; its disk is mounted at /mnt. */
  readonly command: string;
}

/** alone: nothing. one, two: checkpoints by hand-off, in a row. savevm: one, by stock QEMU. */
export const methods = ['alone', 'handoff-one', 'handoff-two', 'savevm'] as const;
export type Method = (typeof methods)[number];

export const checkpointsOf: Readonly<Record<Method, number>> = {
  alone: 0,
  'handoff-one': 1,
  'handoff-two': 2,
  savevm: 1,
};

const linpack = (order: number, rounds: number): Workload => ({
  name: `linpack-${order}`,
  params: { workload: 'LINPACK', order, rounds },
  command: `linpack --order ${order} --rounds ${rounds}`,
});

/** bonnie++ wants a file larger than the memory it is told of. */
const bonnie = (mebibytes: number): Workload => ({
  name: 'bonnie',
  params: { workload: 'bonnie++', mebibytes },
  command: `bonnie++ -q -f -n 0 -u 0:0 -s ${mebibytes} -r ${mebibytes / 2} -d /mnt 2> /run/bonnie.log`,
});

export interface CheckpointPlan {
  readonly workloads: readonly Workload[];
  readonly methodsOf: ReadonlyMap<Workload, readonly Method[]>;
  readonly ramMb: number;
  readonly diskMiB: number;
}

export const caseName = (workload: Workload, method: Method): string => `${workload.name}-${method}`;

/** Undefined if nothing is wanted. Whatever is measured under checkpoints is measured alone, too. */
export const checkpointPlan = (smoke: boolean, wanted: WantedCases): CheckpointPlan | undefined => {
  const workloads = smoke
    ? [linpack(300, 1), bonnie(8)]
    : [linpack(500, 3), linpack(1000, 3), linpack(3000, 3), bonnie(350)];
  const methodsOf = new Map<Workload, readonly Method[]>();
  for (const workload of workloads) {
    const asked = methods.filter((method) => wanted.wants(caseName(workload, method)));
    if (asked.length > 0) methodsOf.set(workload, ['alone', ...asked.filter((method) => method !== 'alone')]);
  }
  if (methodsOf.size === 0) return undefined;
  const [ramMb, diskMiB] = smoke ? [192, 64] : [512, 1024];
  return { workloads: [...methodsOf.keys()], methodsOf, ramMb, diskMiB };
};
