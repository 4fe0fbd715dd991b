/**
 * What this host remembers of a VM for which a session is asked: one that runs here, or that ran here before its
 * memory was there, and ended so, or went on from a checkpoint. The record outlives the daemon that wrote it.
 */
import { pointText } from '../migrate/fall-back-point.js';
import type { VmRecord } from '../state/records.js';
import type { ProcessIdentity } from '../vm/process.js';
import { arrivedRecord } from './lacking-record.js';
import type { Failure } from './machine.js';

export interface Refusal {
  readonly failure: Failure;
  /** In which the VM runs here. */
  readonly term: number | undefined;
}

/** What is asked: `standsStill`: the VM does, where it is. One that runs there has gone on by its operator's word. */
interface Asked {
  readonly term: number;
  readonly standsStill?: boolean | undefined;
}

export const NOTHING_KNOWN = { record: undefined, isHeld: false } as const;

/**
 * What a record says as long as its processes live: whether somebody has the VM here, its QEMU, or the daemon that
 * goes on from a checkpoint when that one has ended; and that nobody does any more once that daemon has ended. One
 * that has gone on so lacks pages, too, if that daemon ended before they had come.
 */
export const asOfNow = async (
  record: VmRecord,
  isAlive: (process: ProcessIdentity) => Promise<boolean>,
): Promise<{ readonly record: VmRecord; readonly isHeld: boolean }> => {
  const { fallsBackTo, ...withoutDaemon } = record;
  const bringsPages = record.fellBackTo?.daemon;
  if (bringsPages !== undefined && !(await isAlive(bringsPages))) {
    return { record: { ...arrivedRecord(record), lacksPages: true }, isHeld: await isAlive(record.process) };
  }
  if (fallsBackTo !== undefined && (await isAlive(fallsBackTo.daemon))) return { record, isHeld: true };
  return { record: withoutDaemon, isHeld: await isAlive(record.process) };
};

/**
 * Whether a record has nothing more to say to the VM's source: what was lost here was taken back by the operator.
 * The VM may stand still there again, for any other reason. Pure.
 * @param isHeld see asOfNow()
 */
export const isTakenBack = (
  record: Pick<VmRecord, 'lacksPages' | 'fellBackTo'> | undefined,
  isHeld: boolean,
  asked: Asked,
): boolean =>
  (record?.lacksPages === true || record?.fellBackTo !== undefined) && !isHeld && asked.standsStill !== true;

/**
 * Why there can be no session; undefined: there can. Pure.
 * @param isHeld see asOfNow()
 */
export const refusalOf = (
  record:
    | Pick<VmRecord, 'role' | 'term' | 'process' | 'lacksPages' | 'fallsBackTo' | 'fellBackTo'>
    | undefined,
  isHeld: boolean,
  asked: Asked,
): Refusal | undefined => {
  if (record === undefined || record.role !== 'active' || record.term < asked.term) return undefined;
  const { term, fellBackTo } = record;
  // Two copies, neither to be given up for the other: this one is not whole, and that one is past.
  if (record.lacksPages === true && asked.standsStill === true) {
    return { failure: lackingFailure(record, isHeld), term: undefined };
  }
  if (isHeld) return { failure: fenced(term, fellBackTo), term };
  if (fellBackTo === undefined || asked.standsStill !== true) return undefined;
  return { failure: fell(term, fellBackTo), term: undefined };
};

type Point = NonNullable<VmRecord['fellBackTo']>;

const lackingFailure = (
  record: Pick<VmRecord, 'term' | 'process' | 'fallsBackTo' | 'fellBackTo'>,
  isHeld: boolean,
): Failure => {
  const { term, fallsBackTo, fellBackTo } = record;
  if (fellBackTo !== undefined) return isHeld ? stranded(record, fellBackTo) : fell(term, fellBackTo);
  if (!isHeld) return gone(term);
  return fallsBackTo === undefined ? lacking(record) : falling(term, fallsBackTo);
};

const fenced = (term: number, point: Point | undefined): Failure => ({
  code: 'HOLDFAST_E_FENCED',
  message: `this host runs the VM in term ${term}${point === undefined ? '' : `, from ${pointText(point)} since its source was lost`}`,
});

const gone = (term: number): Failure => ({
  code: 'HOLDFAST_E_VM_LOST',
  message: `the VM ran here in term ${term}, or was about to, and was lost before all of its memory had come`,
  cure: 'What ran here is gone. The source has the VM as it was when it was stopped there: QMP cont goes back to that moment; then it can be moved again.',
});

const lacking = ({ term, process }: Pick<VmRecord, 'term' | 'process'>): Failure => ({
  code: 'HOLDFAST_E_VM_LOST',
  message: `the VM runs on the destination in term ${term}, where some of its memory has not come`,
  cure: `The source has all of the VM, as it was when it was stopped there: keep it. What runs on the destination is ended by its daemon after --early-wait, unless its memory still comes; without that daemon it waits for ever: end process ${process.pid} there. Once it has ended, and not before, QMP cont at the source goes back to that moment.`,
});

const falling = (term: number, point: Point): Failure => ({
  code: 'HOLDFAST_E_VM_LOST',
  message: `the destination has the VM in term ${term}, where some of its memory has not come; if that is lost it goes on there from ${pointText(point)}`,
  cure: 'Leave the VM at the source stopped: `holdfast status` on the destination tells how it went on there. Only if it does not run there any more: QMP cont at the source goes back to the moment when it was stopped.',
});

const stranded = ({ term, process }: Pick<VmRecord, 'term' | 'process'>, point: Point): Failure => ({
  code: 'HOLDFAST_E_VM_LOST',
  message: `the destination has the VM in term ${term}, from ${pointText(point)} since its source was lost; its daemon ended before all of its memory had come from there`,
  cure: `It waits for ever: end process ${process.pid} on the destination. Then \`holdfast restore ${point.dir}\` there goes on from a checkpoint; QMP cont at the source from the moment when the VM was stopped there. One of the two, never both.`,
});

const fell = (term: number, point: Point): Failure => ({
  code: 'HOLDFAST_E_VM_LOST',
  message: `the VM ran here in term ${term}, from ${pointText(point)} since its source was lost, and has ended`,
  cure: `\`holdfast restore ${point.dir}\` on the destination goes on from a checkpoint; QMP cont at the source from the moment when the VM was stopped there. One of the two, never both.`,
});
