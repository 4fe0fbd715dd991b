/** `npm run bench -- SUITE [--smoke] [--json FILE]`. */
import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { runEpochSuite, type SuiteOutput } from './epoch.js';
import { makeReport, renderReport } from './report.js';

const suites: Readonly<
  Record<string, (smoke: boolean, progress: (text: string) => void) => Promise<SuiteOutput>>
> = {
  epoch: runEpochSuite,
};

const program = new Command('bench')
  .description('Measures Holdfast on this machine, with real QEMUs in namespaces of its own. Needs root.')
  .argument('<suite>', `one of: ${Object.keys(suites).join(', ')}`)
  .option('--smoke', 'a small run that only shows that the suite works', false)
  .option('--json <file>', 'also write the report as JSON')
  .showHelpAfterError();

program.parse();
const [suite = ''] = program.args;
const options = program.opts<{ smoke: boolean; json?: string }>();
const run = suites[suite];
if (run === undefined) {
  process.stderr.write(`bench: there is no suite ${suite}; there is ${Object.keys(suites).join(', ')}\n`);
  process.exit(2);
}
const { results, ratios } = await run(options.smoke, (text) => process.stderr.write(`bench: ${text}\n`));
const report = makeReport(suite, options.smoke, results, ratios);
process.stdout.write(`${renderReport(report)}\n`);
if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(report, null, 2)}\n`);
