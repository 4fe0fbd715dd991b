/**
 * Names of metrics and parameters, in words and with their unit.
 *
 * A name says all there is to know, unit and statistic last: pauseMsP50, cpuMsPerMb,
 * dirtyPagesP99, guestWorkShareP50. So a new metric needs no entry anywhere to be
 * shown rightly; the few entries below only replace stems that read badly.
 */

export interface Metric {
  readonly name: string;
  /** In words, without unit: `pause`. */
  readonly label: string;
  /** As an axis or a column shows it; empty for a mere number. */
  readonly unit: string;
  /** `p50`, `p99`, `max`; empty if it is the only figure of its kind. */
  readonly statistic: string;
}

/** Longest first: GbPerS is not S. */
const units: readonly (readonly [suffix: string, unit: string])[] = [
  ['MsPerMb', 'ms per MB'],
  ['UsPerMb', 'µs per MB'],
  ['CallsPerMb', 'calls per MB'],
  ['PagesPerS', 'pages per s'],
  ['BytesPerS', 'bytes per s'],
  ['GbitPerS', 'Gbit/s'],
  ['GbPerS', 'GB/s'],
  ['MbPerS', 'MB/s'],
  ['PerMb', 'per MB'],
  ['Ppm', 'ppm'],
  ['PerS', 'per s'],
  ['Percent', '%'],
  ['Share', 'share'],
  ['Pages', 'pages'],
  ['Bytes', 'bytes'],
  ['MiB', 'MiB'],
  ['Mb', 'MB'],
  ['Ms', 'ms'],
  ['Us', 'µs'],
  ['S', 's'],
];

const stems: Readonly<Record<string, string>> = {
  prestage: 'prestaged before the pause',
  device: 'device state',
  gate: 'output boundary',
  ack: 'acknowledgement',
  apply: 'apply on the backup',
  throughput: 'throughput that remains',
  gap: 'longest between two',
  releaseDelay: 'boundary to release',
  outputDelay: 'output delay, at most',
  outputWait: 'first frame held to release',
  outputTriggered: 'epochs that waiting output ended',
  prestaged: 'of these prestaged',
  superseded: 'of those superseded',
  ahead: 'of these sent ahead',
  aheadSend: 'sent ahead of the pause',
  heldBack: 'left for the pause, hot',
  supersededSent: 'sent ahead in vain',
  deviceSent: 'device state, what travelled',
  rest: 'the rest of the pause',
  sendCpu: 'CPU of the sending thread',
  primaryOwn: 'anonymous memory of the primary',
  killToRunning: 'kill to running',
  load: 'loading the device state',
  guestWork: 'guest’s work that remains',
  workUnprotected: 'work unprotected',
  workProtected: 'work protected',
  pageBytes: 'throughput of page bytes',
  senderCpu: 'sender CPU',
  senderProcessCpu: 'CPU of the sending process',
  receiverCpu: 'receiver CPU',
  pauseWithQmp: 'pause with QMP’s round trips',
  measuredInterval: 'interval measured',
  ram: 'RAM',
  clientGap: 'client’s gap',
  allowedDowntime: 'downtime allowed',
  handOver: 'hand-over',
  standbyLoad: 'of it loading the device state',
  runsThere: 'start to running over there',
  link: 'over the link',
  stayedLink: 'over the link, of those that stayed',
  stopped: 'stands still',
  workloadVsAlone: 'workload ÷ alone',
  prefix: 'short stop before',
  allStops: 'both together',
  written: 'written to the disk',
  runsAfter: 'asked to running',
  qemuStart: 'of it starting QEMU',
};

/** Names that are no stem and unit. */
const named: Readonly<Record<string, { readonly label: string; readonly unit: string }>> = {
  bytes: { label: 'on the bulk connection', unit: 'bytes' },
  lostPercent: { label: 'work lost', unit: '%' },
  linkMbitPerS: { label: 'link', unit: 'Mbit/s' },
  pagesPerSecond: { label: 'rate of writing', unit: 'pages per s' },
};

/** `receiveCpu` → `receive CPU`. */
const words = (camel: string): string =>
  camel
    .replace(/([a-z0-9])([A-Z])/g, '$1 $2')
    .toLowerCase()
    .replace(/\b(cpu|ram|qmp|tcp|colo|qemu|id)\b/g, (word) => word.toUpperCase());

export const describeMetric = (name: string): Metric => {
  const [, bare = name, statistic = ''] = /^(.+?)(P\d{2}|Max|Min|Mean)?$/.exec(name) ?? [];
  const [suffix, unit] = units.find(([end]) => bare.endsWith(end) && bare !== end) ?? ['', ''];
  const stem = bare.slice(0, bare.length - suffix.length);
  const known = named[bare] ?? { label: stems[stem] ?? words(stem), unit };
  // `dirty pages`, not `dirty, pages`.
  const counted = unit === 'pages' && stems[stem] === undefined && named[bare] === undefined;
  return {
    name,
    ...(counted ? { label: words(bare), unit: '' } : known),
    statistic: statistic.toLowerCase(),
  };
};

/** Three figures or so; whole numbers as they are. */
export const formatNumber = (value: number): string => {
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString('en-US');
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.095 || size < 0.0005) return value.toFixed(2);
  return value.toFixed(3);
};

/** On an axis: `2.5`, not `2.50`. */
export const formatTick = (value: number): string =>
  value.toLocaleString('en-US', { maximumSignificantDigits: 4 });

interface Scale {
  readonly unit: string;
  readonly factor: number;
}

/** Bytes as kB or MB where the largest of the values needs it, and shares in percent. */
export const scaleFor = (unit: string, values: readonly number[]): Scale => {
  const largest = Math.max(0, ...values.map(Math.abs));
  if (unit === 'share') return { unit: '%', factor: 100 };
  if (unit !== 'bytes') return { unit, factor: 1 };
  if (largest >= 1e9) return { unit: 'GB', factor: 1e-9 };
  if (largest >= 1e6) return { unit: 'MB', factor: 1e-6 };
  return largest >= 1e4 ? { unit: 'kB', factor: 1e-3 } : { unit, factor: 1 };
};
