/**
 * What this host remembers of a VM for which a session is asked: one that runs here, or that ran here before its
 * memory was there, and ended so. The record outlives the daemon that wrote it.
 */
import type { VmRecord } from '../state/records.js';
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

/**
 * Whether a record has nothing more to say to the VM's source: what was lost here was taken back by the operator.
 * The VM may stand still there again, for any other reason. Pure.
 * @param isAlive the record's process
 */
export const isTakenBack = (
  record: Pick<VmRecord, 'lacksPages'> | undefined,
  isAlive: boolean,
  asked: Asked,
): boolean => record?.lacksPages === true && !isAlive && asked.standsStill !== true;

/**
 * Why there can be no session; undefined: there can. Pure.
 * @param isAlive the record's process
 */
export const refusalOf = (
  record: Pick<VmRecord, 'role' | 'term' | 'process' | 'lacksPages'> | undefined,
  isAlive: boolean,
  asked: Asked,
): Refusal | undefined => {
  if (record === undefined || record.role !== 'active' || record.term < asked.term) return undefined;
  const { term } = record;
  // Two copies, neither to be given up for the other: this one is not whole, and that one is past.
  if (record.lacksPages === true && asked.standsStill === true) {
    return { failure: isAlive ? lacking(record) : gone(term), term: undefined };
  }
  if (!isAlive) return undefined;
  return { failure: { code: 'HOLDFAST_E_FENCED', message: `this host runs the VM in term ${term}` }, term };
};

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
