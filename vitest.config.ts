import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['dist/**', 'node_modules/**'],
    // Real QEMUs on few cores: one file at a time, each in a process of its own, since labs and
    // the addon's threads belong to a process.
    pool: 'forks',
    fileParallelism: false,
    // Whole machines on two shared cores: a test that failed is run once more, and is named in the report.
    retry: 1,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 30_000,
  },
});
