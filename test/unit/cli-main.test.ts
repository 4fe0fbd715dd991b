/** The program as a process: exit codes, what goes to stdout and what to stderr. Needs `tsc -p .`. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { type AdminHandlers, AdminServer } from '../../lib/admin/server.js';
import { NotProtectedError } from '../../lib/errors.js';

// Each test starts a few processes, on machines that do other things as well.
vi.setConfig({ testTimeout: 30_000 });

const root = fileURLToPath(new URL('../..', import.meta.url));
const main = join(root, 'dist/lib/cli/main.js');

let dir: string;
const servers: AdminServer[] = [];
beforeAll(() => {
  if (!existsSync(main)) throw new Error(`${main} is missing: run npx tsc -p .`);
});
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-cli-'));
});
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close();
  await rm(dir, { recursive: true, force: true });
});

interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const holdfast = (...argv: string[]): Promise<Run> =>
  new Promise((resolve) => {
    const child = execFile(process.execPath, [main, ...argv], (_error, stdout, stderr) => {
      resolve({ code: child.exitCode ?? -1, stdout, stderr });
    });
  });

const daemon = async (name: string, role: 'primary' | 'backup', commands: AdminHandlers['commands']) => {
  servers.push(await AdminServer.listen({ runDir: dir, name, handlers: { role, commands } }));
};

const primaryStatus = (phase: string) => ({
  role: 'primary',
  name: 'web1',
  phase,
  vm: { id: 'x', name: 'vm', pid: 42, qmp: '/run/q', ramBytes: 2 ** 29, vcpus: 2, running: true },
  backup: '10.0.0.2:7788',
  term: 1,
  epoch: 8,
  committedEpoch: 7,
  outputHeld: true,
  baseRounds: 0,
  epochs: 7,
  distributions: {},
});
const backupStatus = { role: 'backup', name: 'b', phase: 'idle', listen: ':1', term: 0, committedEpoch: 0 };

describe('help', () => {
  it.each(['doctor', 'backup', 'primary', 'relay', 'status', 'switchover', 'migrate', 'detach', 'takeover'])(
    'of %s teaches: what, examples, exit codes',
    async (command) => {
      const { code, stdout, stderr } = await holdfast(command, '--help');
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toMatch(/^Usage: holdfast /);
      expect(stdout).toContain(`Examples:\n  holdfast ${command}`);
      expect(stdout).toMatch(/Exit codes:\n {4}0 {2}\S/);
      for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(110);
    },
  );

  it('of checkpoint tells of disks, too', async () => {
    const { stdout } = await holdfast('checkpoint', '--help');
    expect(stdout).toMatch(/\n +13 {2}a disk /);
  });

  it('lists every command; without a command it is an error', async () => {
    const helped = await holdfast('--help');
    expect(helped.code).toBe(0);
    for (const command of [
      'doctor',
      'backup',
      'primary',
      'relay',
      'status',
      'switchover',
      'migrate',
      'detach',
      'takeover',
    ]) {
      expect(helped.stdout).toContain(`\n  ${command} `);
    }
    const bare = await holdfast();
    expect(bare).toMatchObject({ code: 2, stdout: '' });
    expect(bare.stderr).toContain('Usage: holdfast');
  });

  it('--version prints the version of the package', async () => {
    const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
    expect(await holdfast('--version')).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
  });
});

describe('usage errors exit with 2', () => {
  it.each([
    [['nonsense'], "unknown command 'nonsense'"],
    [['stauts'], 'Did you mean status?'],
    [['status', '--bogus'], "unknown option '--bogus'"],
    [['primary', '--interval'], "option '--interval <duration>' argument missing"],
    [['primary', '--backup', 'b:1', '--key-file', 'k'], 'which VM?'],
    [['primary', '--backup', 'b:1', '--key-file', 'k', '--qmp', 'q', '--', 'qemu'], 'exclude each other'],
    [['primary', '--backup', 'b:1', '--key-file', 'k', '--qmp', 'q', '--interval', 'x'], '--interval: '],
    [
      ['primary', '--backup', 'b:1', '--key-file', 'k', '--qmp', 'q', '--heartbeat-timeout', '50'],
      'heartbeatTimeoutMs: ',
    ],
    [['primary', '--backup', 'b:1', '--key-file', '/nonexistent', '--qmp', 'q'], 'key-file: '],
    [['migrate', '--to', 'b:1', '--key-file', 'k'], 'which VM?'],
    [['migrate', '--to', 'b:1', '--key-file', 'k', '--qmp', 'q', '--policy', 'soon'], '--policy: '],
    [
      ['migrate', '--to', 'b:1', '--key-file', 'k', '--vm', 'none', '--run-dir', '/nonexistent'],
      'no VM that',
    ],
    [['backup', '--listen', 'b:70000', '--key-file', 'k'], '--listen: port is over 65535'],
    [['status', 'a', 'b'], 'too many arguments'],
    [
      ['backup', '--listen', 'b:1', '--key-file', 'k', '--run-dir', 'run'],
      '--run-dir: must be an absolute path',
    ],
    [['status', '--run-dir', 'run'], '--run-dir: must be an absolute path'],
    [['handoff', '--qmp', 'q', '--run-dir', './run'], '--run-dir: must be an absolute path'],
  ])('%j', async (argv, message) => {
    const { code, stdout, stderr } = await holdfast(...argv);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^error: /);
    expect(stderr).toContain(message);
  });

  it('and with --json the error is JSON on stdout', async () => {
    for (const argv of [
      ['primary', '--json', '--bogus'],
      ['backup', '--json'],
    ]) {
      const { code, stdout, stderr } = await holdfast(...argv);
      expect({ code, stderr }).toEqual({ code: 2, stderr: '' });
      expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'HOLDFAST_E_CONFIG', exitCode: 2 } });
    }
  });

  it('--json that belongs to QEMU is not ours', async () => {
    const { stdout } = await holdfast('primary', '--', 'qemu', '--json');
    expect(stdout).toBe('');
  });
});

describe('status', () => {
  it('says that nothing runs: 11', async () => {
    expect((await holdfast('status', '--run-dir', dir)).code).toBe(11);
    expect((await holdfast('status', 'web1', '--run-dir', dir)).code).toBe(11);
    expect((await holdfast('status', '--run-dir', join(dir, 'none'))).code).toBe(11);
  });

  it('exits with 0 while all are protected, with 10 as soon as one is not', async () => {
    await daemon('web1', 'primary', { status: () => primaryStatus('protected') });
    const fine = await holdfast('status', '--run-dir', dir);
    expect(fine).toMatchObject({ code: 0, stderr: '' });
    expect(fine.stdout).toMatch(/^web1 {2}primary {2}protected\n/);
    await daemon('b', 'backup', { status: () => backupStatus });
    const mixed = await holdfast('status', '--run-dir', dir, '--json');
    expect(mixed.code).toBe(10);
    expect(JSON.parse(mixed.stdout)).toMatchObject({
      daemons: [
        { name: 'b', role: 'backup', protected: false },
        { name: 'web1', role: 'primary', protected: true, committedEpoch: 7 },
      ],
    });
    expect((await holdfast('status', 'web1', '--run-dir', dir)).code).toBe(0);
  });

  it('does not wait for a daemon that hangs: 12', async () => {
    await daemon('web1', 'primary', { status: () => new Promise((resolve) => setTimeout(resolve, 2_000)) });
    expect((await holdfast('status', 'web1', '--run-dir', dir, '--timeout', '50ms')).code).toBe(12);
    const all = await holdfast('status', '--run-dir', dir, '--timeout', '50ms');
    expect(all.code).toBe(12);
    expect(all.stdout).toContain('did not answer within 50 ms');
  });
});

describe('doctor', () => {
  it('exits with 3 if something needed is missing, and says what', async () => {
    const { code, stdout } = await holdfast('doctor', '--qemu', '/nonexistent', '--ram-dir', dir, '--json');
    expect(code).toBe(3);
    const report = JSON.parse(stdout) as { ok: boolean; checks: { id: string; status: string }[] };
    expect(report.ok).toBe(false);
    expect(report.checks).toContainEqual(expect.objectContaining({ id: 'qemu', status: 'fail' }));
  });
});

describe('requests', () => {
  const outcome = { kind: 'switched-over', term: 2, epoch: 9, resumeMs: 5, text: 'switched over' };

  it('find the only daemon of their role, and tell the result', async () => {
    await daemon('b', 'backup', { status: () => backupStatus });
    await daemon('web1', 'primary', {
      status: () => primaryStatus('protected'),
      switchover: async () => ({ outcome }),
    });
    expect(await holdfast('switchover', '--run-dir', dir)).toEqual({
      code: 0,
      stdout: 'web1: switched over\n',
      stderr: '',
    });
    const json = await holdfast('switchover', 'web1', '--run-dir', dir, '--json');
    expect(JSON.parse(json.stdout)).toEqual({ name: 'web1', outcome });
  });

  it('want a name if several could be meant', async () => {
    for (const name of ['web1', 'web2']) {
      await daemon(name, 'primary', { status: () => ({ ...primaryStatus('protected'), name }) });
    }
    const { code, stderr } = await holdfast('detach', '--run-dir', dir);
    expect(code).toBe(2);
    expect(stderr).toContain('web1, web2');
  });

  it("end with the daemon's own exit code and cure", async () => {
    await daemon('b', 'backup', {
      status: () => backupStatus,
      takeover: () => {
        throw new NotProtectedError('no checkpoint', { cure: 'Wait.' });
      },
    });
    const { code, stderr } = await holdfast('takeover', '--run-dir', dir);
    expect({ code, stderr }).toEqual({ code: 10, stderr: 'error: no checkpoint\ncure: Wait.\n' });
    expect((await holdfast('detach', 'b', '--run-dir', dir)).code).toBe(2);
    expect((await holdfast('switchover', '--run-dir', dir)).code).toBe(11);
  });
});

describe('the key file', () => {
  it('that everybody can read is warned about', async () => {
    const key = join(dir, 'key');
    await writeFile(key, 'x'.repeat(32), { mode: 0o600 });
    // An address that is not this host's: the command ends by itself right after.
    const argv = ['backup', '--listen', '192.0.2.1:1', '--key-file', key, '--run-dir', dir];
    const quiet = await holdfast(...argv);
    expect(quiet.code).toBe(5);
    expect(quiet.stderr).not.toContain('warning');
    await chmod(key, 0o644);
    expect((await holdfast(...argv)).stderr).toMatch(/^warning: the key file .* chmod 600/);
  });
});
