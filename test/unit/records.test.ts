import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type VmRecord, VmRecords } from '../../lib/state/records.js';
import { identifyProcess, isAlive } from '../../lib/vm/process.js';

let runDir = '';
beforeEach(async () => {
  runDir = await mkdtemp(join(tmpdir(), 'holdfast-records-'));
});
afterEach(() => rm(runDir, { recursive: true, force: true }));

const VM = '11111111-2222-4333-8444-555555555555';

const record = async (changes: Partial<VmRecord> = {}): Promise<VmRecord> => ({
  vmId: VM,
  vmName: 'redis',
  term: 3,
  role: 'active',
  process: await identifyProcess(process.pid),
  qmpPath: '/run/vm/qmp.sock',
  ramPath: '/dev/shm/vm.ram',
  ...changes,
});

describe('records', () => {
  it('come back as they were written, until they are removed', async () => {
    const records = new VmRecords(runDir, 'backup');
    expect(await records.read(VM)).toBeUndefined();
    expect(await records.list()).toEqual([]);
    const value = await record();
    await records.write(value);
    expect(await records.read(VM)).toEqual(value);
    await records.write({ ...value, term: 4, role: 'superseded' });
    expect(await records.read(VM)).toMatchObject({ term: 4, role: 'superseded' });
    await records.remove(VM);
    await records.remove(VM);
    expect(await records.read(VM)).toBeUndefined();
  });

  it('are written whole, for their owner only, and leave nothing else behind', async () => {
    const records = new VmRecords(runDir, 'primary');
    await records.write(await record());
    const [name, ...others] = await readdir(join(runDir, 'vms'));
    expect(others).toEqual([]);
    expect((await stat(join(runDir, 'vms', name ?? ''))).mode & 0o777).toBe(0o600);
  });

  it('of a primary and of a backup of one VM do not overwrite each other', async () => {
    const [primary, backup] = [new VmRecords(runDir, 'primary'), new VmRecords(runDir, 'backup')];
    await backup.write(await record({ term: 4, role: 'active' }));
    await primary.write(await record({ term: 3, role: 'superseded' }));
    expect(await backup.read(VM)).toMatchObject({ term: 4, role: 'active' });
    expect(await primary.read(VM)).toMatchObject({ term: 3, role: 'superseded' });
  });

  it('that are damaged or of another version count as absent', async () => {
    const records = new VmRecords(runDir, 'backup');
    await records.write(await record());
    const [name] = await readdir(join(runDir, 'vms'));
    const path = join(runDir, 'vms', name ?? '');
    for (const text of ['', '{"vmId":', JSON.stringify({ ...(await record()), color: 'red' })]) {
      await writeFile(path, text);
      expect(await records.read(VM)).toBeUndefined();
      expect(await records.list()).toEqual([]);
    }
  });

  it('are found by the very process, not by its number alone', async () => {
    const records = new VmRecords(runDir, 'backup');
    const value = await record();
    await records.write(value);
    expect(await records.ofProcess(value.process)).toEqual(value);
    expect(await records.ofProcess({ ...value.process, startTicks: '1' })).toBeUndefined();
    expect(await isAlive(value.process)).toBe(true);
    expect(await isAlive({ ...value.process, startTicks: '1' })).toBe(false);
  });

  it('of one writer move to another process (a hand-off), those of the other stay what they are', async () => {
    const [primary, backup] = [new VmRecords(runDir, 'primary'), new VmRecords(runDir, 'backup')];
    const [from, to] = [
      { pid: 4187, startTicks: '7' },
      { pid: 4312, startTicks: '9' },
    ];
    const old = await record({ process: from, term: 3, role: 'superseded' });
    const taken = await record({ process: from, term: 4, disks: ['/run/d.sock'] });
    await primary.write(old);
    await backup.write(taken);
    await primary.moveTo(from, to);
    expect(await primary.read(VM)).toEqual({ ...old, process: to });
    expect(await backup.read(VM)).toEqual(taken);
    await backup.moveTo(from, to);
    expect(await primary.read(VM)).toEqual({ ...old, process: to });
    expect(await backup.read(VM)).toEqual({ ...taken, process: to });
    await primary.remove(VM);
    await backup.moveTo(to, from);
    expect(await primary.read(VM)).toBeUndefined();
  });
});
