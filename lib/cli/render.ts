/** Statuses and reports as text for a person. Pure. */
import type { DaemonView } from '../admin/client.js';
import type { DaemonStatus } from '../admin/protocol.js';
import type { TakeoverReport } from '../backup/backup.js';
import type { FallBackReport } from '../backup/fall-back.js';
import { pointText } from '../migrate/fall-back-point.js';
import { timeText } from '../migrate/words.js';
import { copyText, primaryDiskTexts, replicaDiskTexts } from './render-disks.js';
import { sizeText } from './values.js';

/** True if a failure of the primary's host would be survived, or was: docs/operations.md, exit code 10. */
export const isProtected = (status: DaemonStatus): boolean =>
  status.role === 'primary'
    ? status.phase === 'protected' && status.committedEpoch > 0
    : status.phase === 'protecting' || (status.phase === 'active' && status.fallBack?.underWay !== true);

const LABEL_WIDTH = 12;

const row = (label: string, value: string): string => `  ${label.padEnd(LABEL_WIDTH)}${value}`;

/** One daemon, several lines. */
export const daemonText = (view: DaemonView): string => {
  if ('error' in view) return [`${view.name}`, row('error', view.error.message)].join('\n');
  const { status } = view;
  return (status.role === 'primary' ? primaryLines(status) : backupLines(status)).join('\n');
};

type PrimaryView = Extract<DaemonStatus, { role: 'primary' }>;
type BackupView = Extract<DaemonStatus, { role: 'backup' }>;

const primaryLines = (status: PrimaryView): string[] => {
  const { vm } = status;
  const table = distributionTable([
    ['pause', status.distributions.pauseMs, 'ms'],
    ...pauseRows(status),
    ['send', status.distributions.sendMs, 'ms'],
    ['send CPU', status.distributions.sendCpuMs, 'ms'],
    ['ack', status.distributions.ackMs, 'ms'],
    ['output delay', status.distributions.outputDelayMs, 'ms'],
    ['reply delay', status.distributions.outputWaitMs, 'ms'],
    ['dirty pages', status.distributions.dirtyPages, ''],
    ...(status.disks === undefined
      ? []
      : [['disk KiB', scaled(status.distributions.diskBytes, 1 / 1_024), ''] as const]),
  ]);
  return [
    `${status.name}  primary  ${phaseText(status)}`,
    row(
      'VM',
      `${vmName(vm.name)}, ${sizeText(vm.ramBytes)}, ${vm.vcpus} vCPU${vm.vcpus === 1 ? '' : 's'}, process ${vm.pid}${vm.running ? '' : ', stopped'}`,
    ),
    ...(vm.stopReason === undefined ? [] : [row('', `QEMU has stopped it: ${vm.stopReason}`)]),
    row('QMP', vm.qmp),
    row('backup', status.backup),
    row('term', String(status.term)),
    row('epoch', `${status.epoch}, committed ${status.committedEpoch}`),
    ...primaryDiskTexts(status).map((text) => row('disk', text)),
    row('output', outputText(status)),
    ...guestClockRow(status),
    ...senderRow(status),
    ...pacingRows(status),
    ...table,
  ];
};

/** The parts of the pause, in their order. Device state and boundary run beside scan and copy. */
const pauseRows = ({ distributions }: PrimaryView): readonly DistributionRow[] => [
  ['  stop', distributions.stopMs, 'ms'],
  ['  device', distributions.deviceMs, 'ms'],
  ['  scan', distributions.scanMs, 'ms'],
  ['  copy', distributions.copyMs, 'ms'],
  ['  boundary', distributions.gateMs, 'ms'],
  ['  cont', distributions.contMs, 'ms'],
  ['  the rest', distributions.restMs, 'ms'],
];

const pacingRows = ({ pacing }: PrimaryView): string[] => {
  if (pacing === undefined) return [];
  const every = pacing.intervalMs === undefined ? '' : `every ${pacing.intervalMs.toFixed(1)} ms (median), `;
  const budgets = [budgetText('pause', pacing.pauseBudget), budgetText('delay', pacing.delayBudget)].filter(
    (text) => text !== undefined,
  );
  return [
    row('pace', `${every}${pacing.reason}`),
    ...(budgets.length === 0 ? [] : [row('budgets', budgets.join(', '))]),
  ];
};

type BudgetView = NonNullable<PrimaryView['pacing']>['pauseBudget'];

const budgetText = (name: string, budget: BudgetView): string | undefined =>
  budget &&
  `${name} ${budget.budgetMs} ms ${budget.met ? 'kept' : 'NOT KEPT'} (${budget.measuredMs.toFixed(1)} ms)`;

const outputText = ({ outputHeld, gate }: PrimaryView): string => {
  if (!outputHeld) return 'not held';
  if (gate === undefined) return 'held until acknowledged';
  const { kind, heldBytesMax, backPressure, stalledMs = 0, droppedFrames } = gate;
  const facts = [
    kind,
    ...(heldBytesMax === undefined ? [] : [`at most ${sizeText(heldBytesMax)} so far`]),
    ...(backPressure ? [`the guest had to wait ${backPressure} times, ${Math.round(stalledMs)} ms`] : []),
    ...(droppedFrames ? [`${droppedFrames} packets dropped on the way out`] : []),
  ];
  return `held until acknowledged (${facts.join('; ')})`;
};

const guestClockRow = ({ guestClock }: PrimaryView): string[] => {
  if (guestClock === undefined) return [];
  const { state, reason } = guestClock;
  if (state === 'off') return [row('clock', `the guest loses the pauses (${reason ?? 'no reason given'})`)];
  return [
    row('clock', state === 'following' ? 'the guest makes up for the pauses' : 'from the first pause on'),
  ];
};

const senderRow = ({ sender, settings }: PrimaryView): string[] => {
  if (sender === undefined) return [];
  const { streams = 1, verify = true } = settings ?? {};
  const how = [
    `${sender.strategy}${streams === 1 ? '' : ` over ${streams} streams`}`,
    ...(verify ? [] : ['not verified']),
  ];
  const [why, ...notes] = sender.reason.split('; ');
  return [row('sender', `${how.join(', ')} (${why})`), ...notes.map((note) => row('', note))];
};

const backupLines = (status: BackupView): string[] => {
  const { vm, takeover } = status;
  return [
    `${status.name}  backup  ${phaseText(status)}`,
    row('listens on', status.listen),
    ...(vm === undefined ? [] : [row('VM', `${vmName(vm.name)}, ${sizeText(vm.ramBytes)}`)]),
    ...(status.primary === undefined ? [] : [row('primary', status.primary)]),
    ...(status.term === 0 ? [] : [row('term', String(status.term))]),
    ...(status.committedEpoch === 0 ? [] : [row('epoch', `committed ${status.committedEpoch}`)]),
    ...(status.standbyPid === undefined ? [] : [row('QEMU', `process ${status.standbyPid}`)]),
    ...(status.replica === undefined ? [] : [row('replica', status.replica)]),
    ...replicaDiskTexts(status).map((text) => row('disk', text)),
    ...(takeover === undefined
      ? []
      : [
          row(
            'took over',
            `epoch ${takeover.epoch} at ${new Date(takeover.resumedAtMs).toISOString()}, running ${takeover.resumeMs.toFixed(1)} ms after the decision (${takeover.reason})`,
          ),
          ...(takeover.fellBack === undefined ? [] : [row('fell back', fellBackRow(takeover.fellBack))]),
          row('QMP', takeover.qmp),
        ]),
    ...(status.fallBack === undefined ? [] : [row('fallback', fallBackRow(status.fallBack))]),
    ...(status.pages === undefined ? [] : [row('pages', pagesText(status.pages))]),
    ...distributionTable([
      ['receive', status.receiveMs, 'ms'],
      ['apply', status.applyMs, 'ms'],
    ]),
  ];
};

const fellBackRow = ({
  resumedAtMs,
  reason,
  ...point
}: NonNullable<NonNullable<BackupView['takeover']>['fellBack']>): string =>
  `to ${pointText(point)} of ${point.takenAt}, at ${new Date(resumedAtMs).toISOString()} (${reason})`;

const fallBackRow = ({ underWay, ...point }: NonNullable<BackupView['fallBack']>): string =>
  underWay
    ? `the source is lost; the VM goes on from ${pointText(point)} in a moment`
    : `${pointText(point)}, taken ${point.takenAt}, should the source be lost`;

const pagesText = ({ pages, pagesLeft, faults, faultP50Us }: NonNullable<BackupView['pages']>): string =>
  `${pagesLeft} of ${pages} still to come; ${faults} page faults, median ${(faultP50Us / 1_000).toFixed(1)} ms`;

const vmName = (name: string): string => (name === '' ? '(no name)' : name);

const phaseText = (status: DaemonStatus): string => {
  return `${status.phase}${syncText(status)}${status.reason === undefined ? '' : `: ${status.reason}`}`;
};

const syncText = (status: DaemonStatus): string => {
  if (status.role !== 'primary' || status.phase !== 'syncing') return '';
  if (status.diskCopy !== undefined) return ` (copying disks: ${copyText(status.diskCopy)})`;
  return ` (base sync, ${status.baseRounds} rounds done)`;
};

type DistributionRow = readonly [
  label: string,
  values: { readonly p50: number; readonly p99: number; readonly max: number } | undefined,
  unit: string,
];

const scaled = (values: DistributionRow[1], factor: number): DistributionRow[1] =>
  values && { p50: values.p50 * factor, p99: values.p99 * factor, max: values.max * factor };

const distributionTable = (rows: readonly DistributionRow[]): string[] => {
  const present = rows.filter(([, values]) => values !== undefined);
  if (present.length === 0) return [];
  const cell = (value: number, unit: string): string =>
    (unit === '' ? String(Math.round(value)) : `${value.toFixed(1)} ${unit}`).padStart(11);
  return [
    row('', ['p50', 'p99', 'max'].map((name) => name.padStart(11)).join('')),
    ...present.map(([label, values, unit]) =>
      row(label, [values!.p50, values!.p99, values!.max].map((value) => cell(value, unit)).join('')),
    ),
  ];
};

/** The same for a VM that went on from a checkpoint. */
export const fellBackText = (report: FallBackReport): string =>
  [
    `the VM goes on from ${pointText(report)}, of ${report.takenAt}, ${timeText(report.totalMs)} after its source was given up; what came since then is lost`,
    `  it runs as process ${report.pid}; its QMP socket is ${report.qmp}. Do not continue the one at the source`,
    '  to protect it again, start a backup on another host, then run here:',
    `    holdfast primary --qmp ${report.qmp} --backup HOST:PORT --key-file FILE`,
  ].join('\n');

/** What the operator must know after a takeover: where the VM runs, and how to protect it again. */
export const takeoverText = (report: TakeoverReport): string =>
  [
    `took over ${report.vmName === '' ? 'the VM' : `'${report.vmName}'`} at epoch ${report.epoch}, term ${report.term}: ${report.reason}`,
    `  detected after ${report.detectMs.toFixed(1)} ms, fenced in ${report.fenceMs.toFixed(1)} ms, state loaded in ${report.loadMs.toFixed(1)} ms; running ${report.resumeMs.toFixed(1)} ms after the decision${report.disksMs === undefined ? '' : `, its disks ${report.disksMs.toFixed(1)} ms later`}`,
    `  it runs as process ${report.pid}; its QMP socket is ${report.qmp}`,
    '  to protect it again, start a backup on another host, then run here:',
    `    holdfast primary --qmp ${report.qmp} --backup HOST:PORT --key-file FILE`,
  ].join('\n');
