import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  addFlags,
  backupCommandSettings,
  backupFlags,
  gatherSettings,
  primaryCommandSettings,
  primaryFlags,
} from '../../lib/cli/settings.js';
import { ConfigError } from '../../lib/errors.js';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-settings-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const config = async (content: unknown): Promise<string> => {
  const path = join(dir, 'config.json');
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
};

const primary = async (...argv: string[]) => {
  const command = new Command().exitOverride().argument('[qemu...]');
  addFlags(command, primaryFlags, primaryCommandSettings);
  command.parse(argv, { from: 'user' });
  const positional = command.args.length === 0 ? {} : { qemu: command.args };
  return await gatherSettings(primaryCommandSettings, primaryFlags, command.opts(), positional);
};

const backup = async (...argv: string[]) => {
  const command = new Command().exitOverride();
  addFlags(command, backupFlags, backupCommandSettings);
  command.parse(argv, { from: 'user' });
  return await gatherSettings(backupCommandSettings, backupFlags, command.opts());
};

const needed = ['--backup', 'b:1', '--key-file', '/k'];

describe('flags', () => {
  it('leave the defaults of the schema', async () => {
    const settings = await primary(...needed);
    expect(settings).toMatchObject({
      name: 'primary',
      minIntervalMs: 2,
      maxIntervalMs: 100,
      pauseBudgetMs: 5,
      gate: 'auto',
      ramDir: '/dev/shm',
      sender: 'auto',
      streams: 1,
      verify: true,
    });
    expect(settings.qmp).toBeUndefined();
    expect(settings.intervalMs).toBeUndefined();
    expect(settings.delayBudgetMs).toBeUndefined();
  });

  it('set every key of a primary', async () => {
    const settings = await primary(
      ...needed,
      ...['--qmp', '/q', '--name', 'web1', '--interval', '50ms', '--capture', 'direct'],
      ...['--min-interval', '3', '--max-interval', '1s', '--pause-budget', '7ms', '--delay-budget', '12ms'],
      ...['--speculate', 'off'],
      ...['--device-state', 'migrate-fd', '--sender', 'splice', '--gate', 'none', '--held-max', '4M'],
      ...['--guest-clock', 'qemu'],
      ...['--streams', '3', '--verify', 'off'],
      ...['--on-backup-lost', 'release', '--heartbeat-interval', '20', '--heartbeat-timeout', '1s'],
      ...['--retry', '2s', '--ack-timeout', '3s', '--connect-timeout', '4s', '--staging', '1G'],
      ...['--copy-threads', '4', '--base-rounds', '5', '--replace', 'tap0=tap1', '--replace', '/a=/b'],
      ...['--disk-dir', '/d', '--ring-size', '128M', '--move-disks', 'on'],
      ...['--run-dir', '/run/x', '--ram-dir', '/mnt', '--log-level', 'debug'],
    );
    expect(settings).toEqual({
      backup: 'b:1',
      keyFile: '/k',
      qmp: '/q',
      name: 'web1',
      intervalMs: 50,
      captureMode: 'direct',
      minIntervalMs: 3,
      maxIntervalMs: 1_000,
      pauseBudgetMs: 7,
      delayBudgetMs: 12,
      speculate: 'off',
      deviceState: 'migrate-fd',
      sender: 'splice',
      streams: 3,
      verify: false,
      gate: 'none',
      heldMiB: 4,
      guestClock: 'qemu',
      onBackupLost: 'release',
      heartbeatIntervalMs: 20,
      heartbeatTimeoutMs: 1_000,
      retryMs: 2_000,
      ackTimeoutMs: 3_000,
      connectTimeoutMs: 4_000,
      stagingMiB: 1_024,
      copyThreads: 4,
      baseRoundsMax: 5,
      diskDir: '/d',
      ringMiB: 128,
      moveDisks: true,
      replace: [
        { from: 'tap0', to: 'tap1' },
        { from: '/a', to: '/b' },
      ],
      runDir: '/run/x',
      ramDir: '/mnt',
      logLevel: 'debug',
    });
  });

  it('set every key of a backup', async () => {
    const settings = await backup(
      ...['--listen', '[::1]:7', '--key-file', '/k', '--name', 'b2', '--bulk-port', '7790'],
      ...['--disk-dir', '/d', '--journal-size', '1G', '--adopt-disks', 'on'],
      ...['--takeover', 'manual', '--connection-grace', '1s', '--reconnect-grace', '9s'],
      ...[
        '--ram-dir',
        '/mnt',
        '--qemu',
        '/opt/qemu',
        '--replace',
        'a=b',
        '--run-dir',
        '/r',
        '--log-level',
        'info',
      ],
    );
    expect(settings).toEqual({
      listen: '[::1]:7',
      keyFile: '/k',
      name: 'b2',
      bulkPort: 7790,
      diskDir: '/d',
      journalMiB: 1_024,
      adoptDisks: true,
      takeover: 'manual',
      connectionGraceMs: 1_000,
      reconnectGraceMs: 9_000,
      ramDir: '/mnt',
      qemu: '/opt/qemu',
      replace: [{ from: 'a', to: 'b' }],
      runDir: '/r',
      logLevel: 'info',
    });
  });

  it('take a command line after --', async () => {
    const settings = await primary(...needed, '--', 'qemu-system-x86_64', '-m', '512');
    expect(settings.qemu).toEqual(['qemu-system-x86_64', '-m', '512']);
  });

  it.each([
    [['--interval', '0'], /^--interval: /],
    [['--capture', 'fast'], /^--capture: /],
    [['--name', 'a/b'], /^--name: .*A-Z/],
    [['--run-dir', 'relative'], /^--run-dir: .*absolute/],
    [['--staging', '1.5M'], /^--staging: /],
    [['--backup', 'nowhere'], /^--backup: .*HOST:PORT/],
    [['--sender', 'pigeon'], /^--sender: .*"auto"/],
    [['--streams', '0'], /^--streams: /],
    [['--streams', '17'], /^--streams: /],
    [['--ring-size', '48M'], /^--ring-size: .*power of two/],
    [['--ring-size', '2M'], /^--ring-size: /],
    [['--disk-dir', 'disks'], /^--disk-dir: .*absolute/],
    [['--verify', 'no'], /^--verify: 'no' is neither on nor off/],
  ])('%j is refused by its name', async (argv, message) => {
    await expect(primary(...needed, ...argv)).rejects.toThrow(message);
  });

  it('that are needed and missing are named, all of them', async () => {
    await expect(primary()).rejects.toThrow(
      /--backup <host:port> is required.*--key-file <file> is required/,
    );
    await expect(backup()).rejects.toThrow(/--listen <host:port> is required/);
  });
});

describe('a config file', () => {
  it('sets keys, and flags come before it', async () => {
    const path = await config({ backup: 'file:1', keyFile: '/k', intervalMs: 100, stagingMiB: 64 });
    const settings = await primary('--config', path, '--interval', '50');
    expect(settings).toMatchObject({ backup: 'file:1', intervalMs: 50, stagingMiB: 64 });
  });

  it('may name the VM, and means its paths from its own place', async () => {
    const path = await config({ backup: 'b:1', keyFile: 'holdfast.key', qmp: 'vm.qmp' });
    const settings = await primary('--config', path);
    expect(settings).toMatchObject({ keyFile: join(dir, 'holdfast.key'), qmp: join(dir, 'vm.qmp') });
    const launching = await config({
      backup: 'b:1',
      keyFile: '/k',
      qemu: ['qemu-system-x86_64', '-m', '1G'],
    });
    expect((await primary('--config', launching)).qemu).toEqual(['qemu-system-x86_64', '-m', '1G']);
  });

  it("adds its replacements after the flags', whose match counts first", async () => {
    const path = await config({ backup: 'b:1', keyFile: '/k', replace: [{ from: 'a', to: 'file' }] });
    const settings = await primary('--config', path, '--replace', 'a=flag');
    expect(settings.replace).toEqual([
      { from: 'a', to: 'flag' },
      { from: 'a', to: 'file' },
    ]);
  });

  it.each([
    [{ intervalMs: '25' }, 'intervalMs: '],
    [{ replace: [{ from: 'a' }] }, 'replace.0.to: '],
    [{ interval: 25 }, "unknown key 'interval'"],
    [{ captureMode: 'fast' }, 'captureMode: '],
    [{ verify: 'off' }, 'verify: '],
    [{ qemu: 'qemu-system-x86_64' }, 'qemu: '],
  ])('with %j is refused; the error names file and key', async (content, message) => {
    const path = await config({ backup: 'b:1', keyFile: '/k', ...content });
    const failed = primary('--config', path);
    await expect(failed).rejects.toThrow(ConfigError);
    await expect(failed).rejects.toThrow(`${path}: ${message}`);
  });

  it('that is no JSON object is refused', async () => {
    await expect(primary('--config', await config('{'))).rejects.toThrow(/config.json: not JSON/);
    await expect(primary('--config', await config('[1]'))).rejects.toThrow(/one JSON object/);
    await expect(primary('--config', join(dir, 'none.json'))).rejects.toThrow(/--config: cannot read/);
  });
});
