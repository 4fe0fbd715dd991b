// The last line of a test run, from vitest's JSON report: node summary.mjs REPORT VITEST_EXIT_CODE

import { existsSync, readFileSync } from 'node:fs';
import { relative } from 'node:path';

const [reportPath, exitCode] = process.argv.slice(2);
let passed = 0;
let failed = 0;
let skipped = 0;
const retried = [];
if (existsSync(reportPath)) {
  for (const { assertionResults, status, name, message } of JSON.parse(readFileSync(reportPath, 'utf8')).testResults) {
    const failedBefore = failed;
    for (const { status: result, fullName, failureMessages } of assertionResults) {
      if (result === 'passed') passed += 1;
      else if (result === 'failed') failed += 1;
      else skipped += 1;
      // What passed and has failures nevertheless, passed when it was run again.
      if (result === 'passed' && failureMessages.length > 0) {
        const [cause] = failureMessages[0].split('\n', 1);
        retried.push(`retried: ${relative('', name)}: ${fullName}: ${cause}`);
      }
    }
    // A file that could not be loaded, or whose hooks failed, is a failure without a test.
    if (status === 'failed' && failed === failedBefore) {
      console.log(`${name}: ${message}`);
      failed += 1;
    }
  }
}
// An unhandled rejection or a crash of vitest itself has no test's name either.
if (exitCode !== '0' && failed === 0) {
  console.log(`vitest ended with ${exitCode}; what failed is above`);
  failed = 1;
}
for (const line of retried) console.log(line);
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
process.exit(failed > 0 ? 1 : 0);
