import { defineConfig } from 'vitest/config';

/**
 * Files that run two at a time: what they wait for is events, and what they make has names of its own. All
 * others have the machine to themselves: benchmarks, and what changes the machine (huge pages, KVM).
 */
const beside = [
  'test/unit/**/*.test.ts',
  'test/sim/**/*.test.ts',
  'test/native/{exit,relay,relay-property,transfer,transfer-exit,transfer-faults,transfer-property}.test.ts',
  'test/e2e/{faults-backup,faults-moves,faults-primary,faults-strangers}.test.ts',
  'test/e2e/{detach,memory,memory-failover,migrate-qemu,output,plug,qmp-describe,qmp-recipes,reboot}.test.ts',
];
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
        test: { name: 'beside', include: beside, exclude, maxWorkers: 2, sequence: { groupOrder: 1 } },
      },
      {
        extends: true,
        test: {
          name: 'alone',
          include: ['test/**/*.test.ts'],
          exclude: [...exclude, ...beside],
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
