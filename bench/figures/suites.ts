/** What is shown of each suite. A suite without figures of its own gets its tables. */
import type { BenchReport } from '../report.js';
import type { Chart } from './chart.js';
import { checkpointFigures } from './checkpoint.js';
import { diskFigures } from './disk.js';
import { epochFigures } from './epoch.js';
import { latencyFigures } from './latency.js';
import { migrateFigures } from './migrate.js';
import { peersFigures } from './peers.js';
import { sendFigures } from './send.js';
import { type Table, tablesByShape } from './table.js';
import { timeFigures } from './time.js';
import { traceFigures } from './trace.js';

export interface SuiteFigures {
  readonly title: string;
  /** What was measured, and how. */
  readonly about: string;
  charts(report: BenchReport): readonly Chart[];
  tables(report: BenchReport): readonly Table[];
  /** Tables too long for a page; the HTML report has them folded. */
  details?(report: BenchReport): readonly Table[];
}

const plain: SuiteFigures = {
  title: 'Results',
  about: '',
  charts: () => [],
  tables: (report) => tablesByShape(report, report.results, 'All results'),
};

const suites: Readonly<Record<string, SuiteFigures>> = {
  checkpoint: checkpointFigures,
  send: sendFigures,
  epoch: epochFigures,
  latency: latencyFigures,
  disk: diskFigures,
  migrate: migrateFigures,
  peers: peersFigures,
  time: timeFigures,
  trace: traceFigures,
};

/** Those that have figures of their own. */
export const suiteNames: readonly string[] = Object.keys(suites).sort();

export const figuresOf = (suite: string): SuiteFigures => suites[suite] ?? { ...plain, title: suite };
