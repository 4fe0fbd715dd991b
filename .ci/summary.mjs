// The last line of a test run, from vitest's JSON report: node summary.mjs REPORT VITEST_EXIT_CODE

import { existsSync, readFileSync } from 'node:fs';

const [reportPath, exitCode] = process.argv.slice(2);
let passed = 0;
let failed = 0;
let skipped = 0;
if (existsSync(reportPath)) {
  for (const { assertionResults, status, name, message } of JSON.parse(readFileSync(reportPath, 'utf8')).testResults) {
    const failedBefore = failed;
    for (const { status: result } of assertionResults) {
      if (result === 'passed') passed += 1;
      else if (result === 'failed') failed += 1;
      else skipped += 1;
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
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
process.exit(failed > 0 ? 1 : 0);
