/** The suite's figures to reach: policies against each other, engines against each other, and what stands for itself. */
import { type BenchResult, metricOf } from '../report.js';

export const ratiosOf = (results: readonly BenchResult[]): Record<string, number> => {
  const metric = (name: string, key: string): number => metricOf(results, name, key);
  const total = (name: string): number => metric(name, 'totalMsP50');
  const downtime = (name: string): number => metric(name, 'downtimeMsP50');
  const gap = (name: string): number => metric(name, 'clientGapMsP50');
  const bytes = (name: string): number => metric(name, 'linkBytesP50');
  const arrivedShare = (name: string): number => metric(name, 'arrived') / metric(name, 'trials');
  const least = (...shares: readonly number[]): number => Math.min(...shares);
  /** Holdfast's engine ÷ QEMU's. */
  const engines = (of: (name: string) => number, name: string): number =>
    of(`${name}-holdfast`) / of(`${name}-qemu`);
  return {
    migrateWriterFixedArrivedShare: Math.max(
      arrivedShare('writer-fixed-holdfast'),
      arrivedShare('writer-fixed-qemu'),
    ),
    migrateWriterMpArrivedShare: least(arrivedShare('writer-mp-holdfast'), arrivedShare('writer-mp-qemu')),
    migrateWriterAutoArrivedShare: least(
      arrivedShare('writer-auto-holdfast'),
      arrivedShare('writer-auto-qemu'),
    ),
    migrateMpVsRelaxedTotal: total('writer-mp-holdfast') / total('writer-fixed-relaxed-holdfast'),
    migrateMpVsRelaxedData: bytes('writer-mp-holdfast') / bytes('writer-fixed-relaxed-holdfast'),
    migrateMpVsRelaxedTotalQemu: total('writer-mp-qemu') / total('writer-fixed-relaxed-qemu'),
    migrateMpVsRelaxedDataQemu: bytes('writer-mp-qemu') / bytes('writer-fixed-relaxed-qemu'),
    migrateTotalVsQemuIdle: engines(total, 'idle-fixed'),
    migrateDowntimeVsQemuIdle: engines(downtime, 'idle-fixed'),
    migrateClientGapVsQemuIdle: engines(gap, 'idle-fixed'),
    migrateTotalVsQemuRedis: engines(total, 'redis-auto'),
    migrateDowntimeVsQemuRedis: engines(downtime, 'redis-auto'),
    migrateClientGapVsQemuRedis: engines(gap, 'redis-auto'),
    migrateTotalVsQemuWriter: engines(total, 'writer-mp'),
    migrateDowntimeVsQemuWriter: engines(downtime, 'writer-mp'),
    migrateClientGapVsQemuWriter: engines(gap, 'writer-mp'),
    migrateIdleDowntimeMs: downtime('idle-fixed-holdfast'),
    migrateEarlyRunsAfterMs: metric('idle-fixed-early-holdfast', 'runsThereMsP50'),
    migrateSkipVsWithoutTotal: total('cache-fixed-skip-holdfast') / total('cache-fixed-holdfast'),
    migrateSkipVsWithoutData: bytes('cache-fixed-skip-holdfast') / bytes('cache-fixed-holdfast'),
  };
};
