/** What the guest computes meanwhile, and what is done to it: the thesis's experiments. And how often all else is. */
import type { WantedCases } from '../report.js';

export interface Workload {
  readonly name: string;
  readonly params: Readonly<Record<string, string | number>>;
  /** In the guest; its disk is mounted at /mnt. */
  readonly command: string;
  /** It is not brought to its end: what it takes alone is not known. */
  readonly isCutOff?: true;
  /** It takes so long that it is run only where --only names it. */
  readonly isOnlyIfNamed?: true;
  /** In the guest, beside it: ends when the checkpoint is to be taken. Default: at once. */
  readonly until?: string;
  readonly methods: readonly Method[];
}

/** alone: nothing. one, two: checkpoints in a row, by capture or hand-off. savevm: one, by stock QEMU. */
export const methods = [
  'alone',
  'capture-one',
  'capture-two',
  'handoff-one',
  'handoff-two',
  'savevm',
] as const;
export type Method = (typeof methods)[number];

export const checkpointsOf: Readonly<Record<Method, number>> = {
  alone: 0,
  'capture-one': 1,
  'capture-two': 2,
  'handoff-one': 1,
  'handoff-two': 2,
  savevm: 1,
};

const linpack = (order: number, rounds: number): Workload => ({
  name: `linpack-${order}`,
  params: { workload: 'LINPACK', order, rounds },
  command: `linpack --order ${order} --rounds ${rounds}`,
  methods,
});

/** Until the matrix of one of order 3000, of 72 MB, is there. */
const UNTIL_MATRIX = 'sleep 5';

/** To its end, as in the thesis: a quarter of an hour on an emulated CPU, for each of the methods and alone twice. */
const linpackWhole = (order: number, rounds: number): Workload => ({
  ...linpack(order, rounds),
  name: `linpack-${order}-whole`,
  until: UNTIL_MATRIX,
  isOnlyIfNamed: true,
  methods: ['alone', 'capture-one', 'handoff-one'],
});

/** That it was ended is no failure. */
const linpackCutOff = (order: number, seconds: number): Workload => ({
  name: `linpack-${order}`,
  params: { workload: `LINPACK, ${seconds} s of it`, order },
  command: `timeout ${seconds} linpack --order ${order} --rounds 1; [ $? -eq 143 ]`,
  until: UNTIL_MATRIX,
  isCutOff: true,
  methods: methods.filter((method) => method !== 'alone' && !method.endsWith('two')),
});

const BONNIE_LOG = '/run/bonnie.log';

/** bonnie++ wants a file larger than the memory it is told of; it writes first, and reads what the disk has. */
const bonnie = (mebibytes: number, during: 'write' | 'read'): Workload => ({
  name: `bonnie-${during}`,
  params: { workload: `bonnie++, checkpoint while it ${during}s`, mebibytes },
  command: `bonnie++ -f -n 0 -u 0:0 -s ${mebibytes} -r ${mebibytes / 2} -d /mnt 2> ${BONNIE_LOG}`,
  until: `until grep -q '^${during === 'read' ? 'Reading' : 'Writing'}' ${BONNIE_LOG}; do usleep 50000; done${
    during === 'read' ? '; echo 3 > /proc/sys/vm/drop_caches' : ''
  }`,
  methods,
});

/** How often each way of standing still is timed, on one guest that writes memory. */
export interface PauseSize {
  readonly increments: number;
  readonly fulls: number;
  readonly handoffs: number;
  readonly checkpointsByHandoff: number;
  readonly restores: number;
  /** Of the guest's writes; 20 MB, over and over. */
  readonly workingSetPages: number;
}

/** How often, and between which windows, a computing guest is checkpointed. */
export interface LossSize {
  readonly turns: number;
  readonly windowMs: number;
}

export interface CheckpointPlan {
  readonly workloads: readonly Workload[];
  readonly methodsOf: ReadonlyMap<Workload, readonly Method[]>;
  readonly pauses: PauseSize | undefined;
  readonly loss: LossSize | undefined;
  readonly ramMb: number;
  readonly diskMiB: number;
}

export const caseName = (workload: Workload, method: Method): string => `${workload.name}-${method}`;

/**
 * The thesis's orders and sizes. LINPACK of order 3000 takes five minutes a round on an emulated CPU: its checkpoints
 * are taken while it computes, and then it is ended, unless the whole of it is asked for.
 */
const full = {
  workloads: [
    linpack(500, 3),
    linpack(1000, 3),
    linpackCutOff(3000, 20),
    linpackWhole(3000, 3),
    bonnie(350, 'write'),
    bonnie(350, 'read'),
  ],
  pauses: {
    increments: 20,
    fulls: 6,
    handoffs: 8,
    checkpointsByHandoff: 6,
    restores: 8,
    workingSetPages: 5_120,
  },
  loss: { turns: 10, windowMs: 1_000 },
  ramMb: 512,
  diskMiB: 1_024,
} as const;

const smokeSize = {
  workloads: [linpack(300, 1), bonnie(8, 'write'), bonnie(8, 'read')],
  pauses: {
    increments: 2,
    fulls: 1,
    handoffs: 1,
    checkpointsByHandoff: 1,
    restores: 1,
    workingSetPages: 512,
  },
  loss: { turns: 1, windowMs: 200 },
  ramMb: 192,
  diskMiB: 64,
} as const;

/** Undefined if nothing is wanted. Whatever is measured under checkpoints is measured alone, too. */
export const checkpointPlan = (smoke: boolean, wanted: WantedCases): CheckpointPlan | undefined => {
  const { workloads, pauses, loss, ...size } = smoke ? smokeSize : full;
  const methodsOf = new Map<Workload, readonly Method[]>();
  for (const workload of workloads) {
    const asked = workload.methods.filter((method) => {
      const name = caseName(workload, method);
      return workload.isOnlyIfNamed ? wanted.wantsNamed(name, workload.name) : wanted.wants(name);
    });
    const others = asked.filter((method) => method !== 'alone');
    if (asked.length > 0) methodsOf.set(workload, workload.isCutOff ? others : ['alone', ...others]);
  }
  const plan = {
    ...{ workloads: [...methodsOf.keys()], methodsOf, ...size },
    pauses: wanted.wants('pauses') ? pauses : undefined,
    loss: wanted.wants('loss') ? loss : undefined,
  };
  return methodsOf.size === 0 && plan.pauses === undefined && plan.loss === undefined ? undefined : plan;
};
