/**
 * The phases of each checkpoint beside the thesis's: a row per experiment, of two in a row one for each; a column per
 * method, the thesis's first; in a cell the phases, as the thesis lists them.
 */
import type { BenchReport, BenchResult } from '../report.js';
import { pivotTable, type Table } from './table.js';

const PHASES = ['all', 'saveState', 'copyFile', 'commit', 'migrate'] as const;
const SECONDS = ['allS', 'workloadS', 'saveStateS', 'copyFileS', 'commitS', 'migrateS'] as const;
const SHARES = PHASES.map((phase) => `${phase}Share`);

const isPublished = ({ params }: BenchResult): boolean => params.source === 'published';
/** One that was taken under a workload. */
const isCheckpoint = ({ params, metrics }: BenchResult): boolean => 'workload' in params && 'allS' in metrics;

/** `bonnie-read-capture-two-second` and `thesis-bonnie-read-second-of-two` are both of `bonnie-read, second of two`. */
const experimentOf = ({ name }: BenchResult): string =>
  name
    .replace(/^thesis-/, '')
    .replace(/-(?:(?:capture|handoff)-one|savevm)$/, '')
    .replace(/-(?:(?:capture|handoff)-two-)?(first|second)(?:-of-two)?$/, ', $1 of two');

const methodOf = (result: BenchResult): string =>
  isPublished(result) ? 'thesis' : String(result.params.method).replace(/-(?:one|two)$/, '');

/** Of the workload alone; what that took the thesis does not tell, but only with the checkpoint in it. */
const asShares = ({ metrics, ...result }: BenchResult): BenchResult => ({
  ...result,
  metrics: Object.fromEntries(
    PHASES.flatMap((phase) => {
      const share = metrics[`${phase}OfAloneShare`] ?? metrics[`${phase}OfWorkloadShare`];
      return share === undefined ? [] : [[`${phase}Share`, share]];
    }),
  ),
});

/** What is in the tables below. */
export const isPhase = (metric: string): boolean =>
  PHASES.some((phase) => metric === `${phase}S` || metric === `${phase}OfAloneShare`);

export const phaseTables = (report: BenchReport): (Table | undefined)[] => {
  const ours = report.results.filter(isCheckpoint);
  if (ours.length === 0) return [];
  // Whole, it is what the thesis has timed; else the one that is cut off is the nearest to it.
  const whole = ours.map(experimentOf).find((experiment) => experiment.endsWith('-whole'));
  const row = (result: BenchResult): string => {
    const experiment = experimentOf(result);
    return isPublished(result) && `${experiment}-whole` === whole ? whole : experiment;
  };
  const inOrder = [...report.results.filter(isPublished), ...ours].toSorted((a, b) =>
    row(a).localeCompare(row(b), 'en', { numeric: true }),
  );
  const table = (
    title: string,
    results: readonly BenchResult[],
    metrics: readonly string[],
    note: string,
  ): Table | undefined =>
    pivotTable(report, results, { title, note, metrics, corner: 'experiment', row, column: methodOf });
  return [
    table(
      'Phases of each checkpoint, beside the thesis’s',
      inOrder,
      SECONDS,
      'The thesis’s averages are of another machine. Two in a row fall into one run of the workload, whose time stands in both rows. Nothing migrates by capture.',
    ),
    table(
      'Phases as shares of the workload',
      inOrder.map(asShares),
      SHARES,
      'Of the time that the workload takes alone; the thesis’s of the time with the checkpoint in it, for it tells no other.',
    ),
  ];
};
