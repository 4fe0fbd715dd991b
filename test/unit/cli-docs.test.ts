/** The documents say what the code does: the example daemon, flags, exit codes. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { checkpointFlags, restoreFlags } from '../../lib/cli/checkpoint-settings.js';
import { migrateFlags } from '../../lib/cli/migrate-settings.js';
import { buildProgram } from '../../lib/cli/program.js';
import {
  backupCommandSettings,
  backupFlags,
  primaryCommandSettings,
  primaryFlags,
} from '../../lib/cli/settings.js';
import * as errors from '../../lib/errors.js';

const read = (path: string): Promise<string> =>
  readFile(fileURLToPath(new URL(`../../docs/${path}`, import.meta.url)), 'utf8');

describe('docs/embedding.md', () => {
  it('shows the example daemon as it is', async () => {
    expect(await read('embedding.md')).toContain(`\`\`\`ts\n${await read('examples/ft-daemon.ts')}\`\`\`\n`);
  });

  it('shows a daemon that runs', async () => {
    const daemon = fileURLToPath(new URL('../../dist/docs/examples/ft-daemon.js', import.meta.url));
    const { code, stderr } = await new Promise<{ code: number | null; stderr: string }>((resolve) => {
      const argv = [daemon, 'backup', '127.0.0.1:0', '/nonexistent'];
      const child = execFile(process.execPath, argv, (_error, _stdout, text) =>
        resolve({ code: child.exitCode, stderr: text }),
      );
    });
    expect(stderr).toMatch(/^HOLDFAST_E_CONFIG: key-file: cannot read \/nonexistent/);
    expect(code).toBe(2);
  }, 30_000);
});

describe('docs/trace.md', () => {
  it('names every flag of `holdfast trace`, and none that is not there', async () => {
    const command = buildProgram(() => {}).commands.find((one) => one.name() === 'trace');
    const flags = (command?.options ?? []).map(({ long }) => long ?? '');
    const named = new Set((await read('trace.md')).match(/(?<=[\s`(])--[a-z][a-z-]+/g));
    for (const flag of flags) expect(named).toContain(flag);
    const known = new Set([...flags, '--trace', '--pid']); // of primary, and of a container's runtime
    for (const flag of named) expect(known).toContain(flag);
  });
});

describe('docs/operations.md', () => {
  it('has the exit code and the code of every error', async () => {
    const table = (await read('operations.md')).split('## Exit codes')[1] ?? '';
    const rows = table.split('\n').filter((line) => /^\| \d+ /.test(line));
    const classes = Object.values(errors).filter(
      (value) => value.prototype instanceof errors.HoldfastError,
    ) as (new (
      message: string,
    ) => errors.HoldfastError)[];
    expect(classes.length).toBeGreaterThan(15);
    for (const ErrorClass of classes) {
      const { code, exitCode } = new ErrorClass('');
      const row = rows.find((line) => line.startsWith(`| ${exitCode} |`)) ?? '';
      expect(row, `${code} with exit code ${exitCode}`).toContain(code.replace('HOLDFAST_E_', '_').slice(1));
    }
  });

  it.each(['operations.md', 'checkpoints.md'])('%s names only flags that exist', async (page) => {
    const tables = [primaryFlags, backupFlags, migrateFlags, checkpointFlags, restoreFlags];
    const flags = tables.flatMap((table) => Object.values(table).map(({ flag }) => flag.split(' ')[0]));
    const known = new Set([...flags, '--config', '--json', '--help', '--watch', '--sparse', '--dry-run']);
    const named = (await read(page)).match(/(?<=[\s`(])--[a-z][a-z-]+/g) ?? [];
    expect(named.length).toBeGreaterThan(10);
    for (const flag of named) expect(known).toContain(flag);
  });

  it('shows configuration files that are valid', async () => {
    const blocks = [...(await read('operations.md')).matchAll(/```json\n([\s\S]*?)```/g)];
    expect(blocks).toHaveLength(2);
    primaryCommandSettings.parse(JSON.parse(blocks[0]![1]!));
    backupCommandSettings.parse(JSON.parse(blocks[1]![1]!));
  });
});
