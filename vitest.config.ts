import { defineConfig } from 'vitest/config';

/**
 * Files that have the machine to themselves: what changes it (huge pages, KVM), and the native programs, which
 * run two at a time by themselves. All others run two at a time: what they wait for is events, and what they
 * make has names of its own.
 */
const alone = ['test/e2e/{huge-pages,kvm}.test.ts', 'test/lab-flat.test.ts', 'test/native/wire.test.ts'];
const exclude = ['dist/**', 'node_modules/**'];

export default defineConfig({
  test: {
    // Each file in a process of its own, since labs and the addon's threads belong to a process.
    pool: 'forks',
    // Whole machines on two shared cores: a test that failed is run once more, and is named at the end.
    retry: 1,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 30_000,
    projects: [
      {
        extends: true,
        test: {
          name: 'beside',
          include: ['test/**/*.test.ts'],
          exclude: [...exclude, ...alone],
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: 'alone',
          include: alone,
          exclude,
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
