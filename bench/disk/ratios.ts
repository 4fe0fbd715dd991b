/** The suite's figures to reach: what remains of a disk when its VM is protected, and how fast a disk is copied. */
import { type BenchResult, metricOf } from '../report.js';

/** Of those that were measured. */
const mean = (values: readonly number[]): number => {
  const known = values.filter(Number.isFinite);
  return known.reduce((sum, value) => sum + value, 0) / known.length;
};

export const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const of = (name: string, key = 'rateShare'): number => metricOf(results, name, key);
  const reads = (setUp: string, key?: string): number =>
    mean(
      ['sequential-read-1m', 'sequential-read-4k', 'random-read-1m', 'random-read-4k'].map((probe) =>
        of(`${probe}-${setUp}`, key),
      ),
    );
  const rate = (name: string): number => of(name, 'dataMbPerSP50');
  return {
    diskSequentialWriteShare: of('sequential-write-1m-protected'),
    diskReadShare: reads('protected'),
    diskCopiesPerWrittenByte: of('copies', 'copiesPerWrittenByte'),
    diskBaseCopyVsPeers: rate('base-copy') / Math.max(rate('nbdcopy'), rate('qemu-img')),
    diskSequentialWriteFloorShare: of('sequential-write-1m-floor'),
    diskSequentialWriteOfFloorShare: of('sequential-write-1m-protected', 'rateOfFloorShare'),
    diskSequentialWriteApartShare: of('sequential-write-1m-apart'),
    diskReadFloorShare: reads('floor'),
    diskReadOfFloorShare: reads('protected', 'rateOfFloorShare'),
    diskReadApartShare: reads('apart'),
    diskSequentialWrite4kShare: of('sequential-write-4k-protected'),
    diskRandomWrite4kShare: of('random-write-4k-protected'),
    diskRandomWrite1mShare: of('random-write-1m-protected'),
    diskFsyncShare: of('fsync-protected', 'operationsShare'),
    diskBonnieWriteShare: of('bonnie-protected', 'writeShare'),
    diskBonnieRewriteShare: of('bonnie-protected', 'rewriteShare'),
    diskBonnieReadShare: of('bonnie-protected', 'readShare'),
    diskBonnieSeeksShare: of('bonnie-protected', 'seeksShare'),
    diskServerVsRawSequentialWrite: of('sequential-write-1m-server'),
    diskServerVsRawRandomWrite4k: of('random-write-4k-server'),
    diskServerVsRawReads: reads('server'),
    diskServerVsRawFsync: of('fsync-server', 'operationsShare'),
    diskBaseCopyVsNbdcopy: rate('base-copy') / rate('nbdcopy'),
    diskBaseCopyVsQemuImg: rate('base-copy') / rate('qemu-img'),
  };
};
