/**
 * What the record of a VM says that runs here before its memory has come, from then to its end. Pure.
 *
 *   lacking ─ all has come ─► whole                      lacking: nobody has all of it as it was here
 *      └ pages lost ─► fallen, where that was agreed on  fallen: it runs, or ran, from a checkpoint, by this daemon
 *            │            └ all has come ─► arrived      arrived: … by itself
 *            └──────► lost                               lost: as lacking, and nobody goes on any more
 */
import type { FallBackPoint } from '../migrate/fall-back-point.js';
import type { VmRecord } from '../state/records.js';
import type { ProcessIdentity } from '../vm/process.js';

type State = 'lacksPages' | 'fallsBackTo' | 'fellBackTo';

/** @param fallBack from what `daemon`, this one, goes on should the pages not come */
export const lackingRecord = (
  whole: Omit<VmRecord, State>,
  fallBack: { readonly point: FallBackPoint; readonly daemon: ProcessIdentity } | undefined,
): VmRecord => {
  if (fallBack === undefined) return { ...whole, lacksPages: true };
  const { point, daemon } = fallBack;
  return { ...whole, lacksPages: true, fallsBackTo: { dir: point.dir, epoch: point.epoch, daemon } };
};

export const wholeRecord = ({
  lacksPages: _lacks,
  fallsBackTo: _falls,
  fellBackTo: _fell,
  ...whole
}: VmRecord): VmRecord => whole;

/**
 * @param runs where it does now
 * @param daemon which brings its memory from the checkpoint
 */
export const fallenRecord = (
  lacking: VmRecord,
  { dir, epoch }: FallBackPoint,
  runs: Pick<VmRecord, 'process' | 'qmpPath' | 'ramPath'>,
  daemon: ProcessIdentity,
): VmRecord => ({ ...wholeRecord(lacking), ...runs, fellBackTo: { dir, epoch, daemon } });

export const arrivedRecord = ({ fellBackTo, ...fallen }: VmRecord): VmRecord =>
  fellBackTo === undefined
    ? fallen
    : { ...fallen, fellBackTo: { dir: fellBackTo.dir, epoch: fellBackTo.epoch } };

export const lostRecord = (record: VmRecord): VmRecord => ({ ...wholeRecord(record), lacksPages: true });
