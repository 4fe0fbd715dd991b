/**
 * `npm run bench -- SUITE [--smoke] [--only NAMES] [--json FILE] [--html FILE] [--markdown FILE]` measures;
 * `npm run bench -- page REPORT… [--html FILE] [--markdown FILE]` shows what was measured before.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { CaseFilter } from './case-filter.js';
import { runDiskSuite } from './disk.js';
import { runEpochSuite } from './epoch.js';
import { renderHtml } from './html/page.js';
import { runLatencySuite } from './latency.js';
import { type Campaign, renderMarkdown } from './markdown.js';
import { runMigrateSuite } from './migrate.js';
import { runPeersSuite } from './peers.js';
import { type BenchReport, makeReport, type RunSuite, renderReport } from './report.js';
import { runSendSuite } from './send.js';
import { runTimeSuite } from './time.js';
import { runTraceSuite } from './trace.js';

const suites: Readonly<Record<string, RunSuite>> = {
  disk: runDiskSuite,
  epoch: runEpochSuite,
  latency: runLatencySuite,
  migrate: runMigrateSuite,
  peers: runPeersSuite,
  send: runSendSuite,
  time: runTimeSuite,
  trace: runTraceSuite,
};

interface Outputs {
  readonly json?: string;
  readonly html?: string;
  readonly markdown?: string;
}

interface MeasureOptions extends Outputs {
  readonly smoke: boolean;
  readonly only?: string;
}

const say = (text: string): void => {
  process.stderr.write(`bench: ${text}\n`);
};

const write = async (
  reports: readonly BenchReport[],
  { html, markdown }: Outputs,
  campaigns?: readonly Campaign[],
): Promise<void> => {
  if (html !== undefined) await writeFile(html, renderHtml(reports));
  if (markdown !== undefined) await writeFile(markdown, renderMarkdown(reports, campaigns));
};

const measure = async (suite: string, options: MeasureOptions): Promise<void> => {
  const run = suites[suite];
  if (run === undefined) {
    say(`there is no suite ${suite}; there is ${Object.keys(suites).join(', ')}`);
    process.exitCode = 2;
    return;
  }
  const startedAt = new Date();
  const filter = new CaseFilter(options.only);
  const output = await run(options.smoke, say, filter);
  if (filter.unknown.length > 0) {
    say(`${suite} has no case ${filter.unknown.join(', ')}; it has ${filter.offered.join(', ')}`);
    process.exitCode = 2;
  }
  if (output.results.length === 0) return;
  const only = filter.names === undefined ? {} : { only: filter.names };
  const report = makeReport({ suite, smoke: options.smoke, startedAt, ...only }, output);
  process.stdout.write(`${renderReport(report)}\n`);
  if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(report, null, 2)}\n`);
  await write([report], options);
};

/** The failover campaigns write JSON too, of a shape of its own. */
const isCampaign = (value: BenchReport | Campaign): value is Campaign => 'trials' in value;

const page = async (files: readonly string[], options: Outputs): Promise<void> => {
  const contents = await Promise.all(
    files.map(async (file) => JSON.parse(await readFile(file, 'utf8')) as BenchReport | Campaign),
  );
  const reports = contents.filter((value): value is BenchReport => !isCampaign(value));
  const campaigns = contents.filter(isCampaign);
  await write(reports, options, campaigns);
  if (options.html === undefined && options.markdown === undefined)
    process.stdout.write(renderMarkdown(reports, campaigns));
};

const program = new Command('bench').description(
  'Measures Holdfast on this machine, with real QEMUs in namespaces of its own. Needs root.',
);
const outputs = (command: Command): Command =>
  command
    .option('--html <file>', 'write the report as one HTML file, with charts')
    .option('--markdown <file>', 'write the tables as a Markdown page');

outputs(
  program
    .command('measure <suite>', { isDefault: true })
    .description(`measure a suite: ${Object.keys(suites).join(', ')}`)
    .option('--smoke', 'a small run that only shows that the suite works', false)
    .option('--only <names>', 'only these cases, separated by commas; * stands for anything')
    .option('--json <file>', 'write the report as JSON'),
).action(measure);
outputs(
  program
    .command('page <reports...>')
    .description(
      'show reports measured before, from their JSON files; also those of the failover campaigns. Markdown on standard output if no file is named',
    ),
).action(page);
program.showHelpAfterError();
await program.parseAsync();
