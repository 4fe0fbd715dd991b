import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { checkEngine } from '../../lib/cli/migrate-engine.js';
import {
  type MigrateCommandSettings,
  migrateCommandSettings,
  migrateFlags,
} from '../../lib/cli/migrate-settings.js';
import { addFlags, gatherSettings } from '../../lib/cli/settings.js';
import { ConfigError, UnsupportedVmError } from '../../lib/errors.js';
import { assertDisksStay } from '../../lib/migrate/examine-qemu-vm.js';

const settingsOf = async (...argv: string[]): Promise<MigrateCommandSettings> => {
  const command = new Command().exitOverride();
  addFlags(command, migrateFlags, migrateCommandSettings);
  command.parse(['--key-file', '/k', ...argv], { from: 'user' });
  return await gatherSettings(migrateCommandSettings, migrateFlags, command.opts());
};

describe('01 destinations', () => {
  it('are one or several; a config file may name one as a string', async () => {
    expect((await settingsOf('--to', 'a:1')).to).toEqual(['a:1']);
    expect((await settingsOf('--to', 'a:1', '--to', '[::1]:2')).to).toEqual(['a:1', '[::1]:2']);
    expect(migrateCommandSettings.parse({ keyFile: '/k', to: 'a:1' }).to).toEqual(['a:1']);
    await expect(settingsOf('--to', 'a:1', '--to', 'b')).rejects.toThrow('--to: must be HOST:PORT');
    await expect(settingsOf()).rejects.toThrow('--to <host:port> is required');
  });
});

describe('02 engines', () => {
  it('each takes what it knows; settings of the other one are refused by name', async () => {
    const to = ['--to', 'a:1'];
    const own = ['--sender', 'splice', '--streams', '2', '--move-disks', 'on'];
    checkEngine(await settingsOf(...to, ...own));
    checkEngine(await settingsOf(...to, '--engine', 'qemu', '--policy', 'mp', '--downtime', '50ms'));
    const both = await settingsOf(...to, ...own, '--engine', 'qemu');
    expect(() => checkEngine(both)).toThrow(ConfigError);
    expect(() => checkEngine(both)).toThrow('nothing of --sender, --streams, --move-disks');
    const early = ['--skip-disk-pages', '--resume-early', '--fallback', '/ckpt'];
    const spared = await settingsOf(...to, '--engine', 'qemu', ...early);
    expect(() => checkEngine(spared)).toThrow('nothing of --resume-early, --fallback, --skip-disk-pages');
  });

  it('of QEMU moves no disk that is written to', () => {
    const drive = { name: 'd0', readOnly: true, format: 'raw', file: '/images/d0' };
    assertDisksStay([drive]);
    expect(() => assertDisksStay([drive, { ...drive, readOnly: false, name: 'd1' }])).toThrow(
      UnsupportedVmError,
    );
    expect(() => assertDisksStay([{ ...drive, readOnly: false }])).toThrow('the VM writes to d0');
  });
});
