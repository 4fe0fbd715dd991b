/** What a backup that is started anew says to whoever asks for a VM that it had run. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Backup } from '../../lib/backup/backup.js';
import { asOfNow, isTakenBack, refusalOf } from '../../lib/backup/known-vm.js';
import { connectControl } from '../../lib/control/channel.js';
import type { ControlMessage, SessionMessage } from '../../lib/control/messages.js';
import { type VmRecord, VmRecords } from '../../lib/state/records.js';
import { identifyProcess } from '../../lib/vm/process.js';

const KEY = Buffer.from('a key of at least sixteen bytes');
const VM = '11111111-2222-4333-8444-555555555555';
/** No process has it. */
const ENDED_PID = 2 ** 30;

const record = {
  ...({ role: 'active', term: 2, lacksPages: true } as const),
  process: { pid: ENDED_PID, startTicks: '1' },
};
const asked = { term: 1, standsStill: true };

describe('the record of a VM', () => {
  it('that runs here refuses all of its past', () => {
    expect(refusalOf({ ...record, lacksPages: false }, true, asked)).toEqual({
      failure: { code: 'HOLDFAST_E_FENCED', message: 'this host runs the VM in term 2' },
      term: 2,
    });
    expect(refusalOf({ ...record, lacksPages: false }, true, { term: 2 })?.failure.code).toBe(
      'HOLDFAST_E_FENCED',
    );
  });

  it('that runs here and lacks pages does not make the one that stands still superseded, which is whole', () => {
    const refusal = refusalOf(record, true, asked);
    expect(refusal?.failure).toMatchObject({
      code: 'HOLDFAST_E_VM_LOST',
      message: 'the VM runs on the destination in term 2, where some of its memory has not come',
      cure: expect.stringContaining(`end process ${ENDED_PID} there`),
    });
    expect(refusal?.term).toBeUndefined();
  });

  it('that runs here fences one that runs as well, pages or none', () => {
    expect(refusalOf(record, true, { term: 1 })).toMatchObject({
      failure: { code: 'HOLDFAST_E_FENCED' },
      term: 2,
    });
  });

  it('that was lost here before its memory had come: whoever has it stopped is told to leave it so', () => {
    const refusal = refusalOf(record, false, asked);
    expect(refusal?.failure).toMatchObject({
      code: 'HOLDFAST_E_VM_LOST',
      message: expect.stringContaining('was lost before all of its memory had come'),
      cure: expect.stringContaining('QMP cont'),
    });
    expect(refusal?.term).toBeUndefined();
  });

  it('is past when the VM runs over there by the word of its operator, or came from here since', () => {
    expect(refusalOf(record, false, { term: 1 })).toBeUndefined();
    expect(refusalOf(record, false, { term: 3, standsStill: true })).toBeUndefined();
  });

  it('that ended here whole, or ran elsewhere, or is unknown is no obstacle', () => {
    expect(refusalOf({ ...record, lacksPages: false }, false, asked)).toBeUndefined();
    expect(refusalOf({ ...record, role: 'superseded' }, false, asked)).toBeUndefined();
    expect(refusalOf(undefined, false, asked)).toBeUndefined();
  });

  const point = { dir: '/ckpt', epoch: 3 };
  const daemon = { pid: 7, startTicks: '9' };

  const falling = {
    ...{ vmId: VM, vmName: 'redis', qmpPath: '/qmp', ramPath: '/ram' },
    ...{ ...record, fallsBackTo: { ...point, daemon } },
  };

  it('is as good as the processes that it names', async () => {
    const living = (...alive: readonly object[]) =>
      asOfNow(falling, async (process) => alive.includes(process));
    const { fallsBackTo: _falls, ...nobody } = falling;
    // In between QEMU has ended, and the daemon has it still.
    expect(await living(daemon)).toEqual({ record: falling, isHeld: true });
    expect(await living(daemon, record.process)).toEqual({ record: falling, isHeld: true });
    expect(await living(record.process)).toEqual({ record: nobody, isHeld: true });
    expect(await living()).toEqual({ record: nobody, isHeld: false });
  });

  it('that goes on from a checkpoint if its memory does not come: its source stays stopped', () => {
    const refusal = refusalOf(falling, true, asked);
    expect(refusal?.failure).toMatchObject({
      code: 'HOLDFAST_E_VM_LOST',
      message: expect.stringContaining('goes on there from checkpoint 3 of /ckpt'),
      cure: expect.stringContaining('`holdfast status` on the destination'),
    });
    expect(refusalOf(falling, true, { term: 1 })?.failure.code).toBe('HOLDFAST_E_FENCED');
    expect(isTakenBack(falling, true, { term: 1 })).toBe(false);
  });

  it('that runs from a checkpoint fences its source, whatever that does', () => {
    const { lacksPages: _lacks, ...whole } = record;
    const fell = { ...whole, fellBackTo: point };
    for (const each of [asked, { term: 1 }]) {
      expect(refusalOf(fell, true, each)).toEqual({
        failure: {
          code: 'HOLDFAST_E_FENCED',
          message: 'this host runs the VM in term 2, from checkpoint 3 of /ckpt since its source was lost',
        },
        term: 2,
      });
    }
    // Ended: the copy at the source does not go on by itself.
    expect(refusalOf(fell, false, asked)?.failure).toMatchObject({
      code: 'HOLDFAST_E_VM_LOST',
      cure: expect.stringContaining('`holdfast restore /ckpt`'),
    });
    expect(refusalOf(fell, false, { term: 1 })).toBeUndefined();
    expect(isTakenBack(fell, false, { term: 1 })).toBe(true);
  });

  it('that waits for pages from a checkpoint, whose daemon has ended: its source is not given up for it', async () => {
    const { lacksPages: _lacks, fallsBackTo: _falls, ...whole } = falling;
    const fallen = { ...whole, fellBackTo: { ...point, daemon } };
    const living = (...alive: readonly object[]) =>
      asOfNow(fallen, async (process) => alive.includes(process));
    expect(await living(daemon, record.process)).toEqual({ record: fallen, isHeld: true });
    const stranded = await living(record.process);
    expect(refusalOf(stranded.record, stranded.isHeld, asked)).toMatchObject({
      failure: {
        code: 'HOLDFAST_E_VM_LOST',
        cure: expect.stringMatching(
          new RegExp(`end process ${record.process.pid} on the destination.*holdfast restore /ckpt`),
        ),
      },
      term: undefined,
    });
    expect(refusalOf(stranded.record, true, { term: 1 })?.failure.code).toBe('HOLDFAST_E_FENCED');
    const ended = await living();
    expect(refusalOf(ended.record, ended.isHeld, asked)?.failure.message).toContain('and has ended');
  });

  it('is taken back by the operator who lets the VM run where it came from', () => {
    expect(isTakenBack(record, false, { term: 1 })).toBe(true);
    expect(isTakenBack(record, false, asked)).toBe(false);
    expect(isTakenBack(record, true, { term: 1 })).toBe(false);
    expect(isTakenBack({ lacksPages: false }, false, { term: 1 })).toBe(false);
    expect(isTakenBack(undefined, false, { term: 1 })).toBe(false);
  });
});

describe('a backup that is started anew', () => {
  let dir = '';
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'holdfast-known-vm-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const session: SessionMessage = {
    ...{ type: 'session', vmId: VM, vmName: 'redis', term: 1, outputHeld: false },
    ...{ ramBytes: 1 << 20, pageSize: 4096, deviceBytesMax: 1 << 20 },
    ...{ heartbeatIntervalMs: 100, heartbeatTimeoutMs: 1_000 },
    ...{ handOverOnly: true, resumeEarly: 'now', standsStill: true },
    standby: {
      ...{ binary: 'qemu-system-x86_64', qemuVersion: '7.2.0', argv: [], cwd: '/' },
      ...{ machineType: 'pc-q35-7.2', backendId: 'ram0', replacements: [] },
    },
  };

  const lose = (changes: Partial<VmRecord> = {}) =>
    new VmRecords(dir, 'backup').write({
      ...{ vmId: VM, vmName: 'redis', qmpPath: join(dir, 'qmp'), ramPath: join(dir, 'ram') },
      ...record,
      ...changes,
    });

  const start = () =>
    Backup.start({
      key: KEY,
      listen: '127.0.0.1:0',
      bulkPort: 0,
      runDir: dir,
      ramDir: dir,
      qemu: join(dir, 'no-qemu'),
    });

  const answerTo = async (backup: Backup, message: SessionMessage): Promise<ControlMessage> => {
    const channel = await connectControl({ host: '127.0.0.1', port: backup.port }, KEY);
    const answered = once(channel, 'message') as Promise<[ControlMessage]>;
    channel.start();
    channel.send(message);
    const [answer] = await answered;
    await channel.close();
    return answer;
  };

  it('remembers the VM that it lost: cause and cure', async () => {
    await lose();
    const backup = await start();
    try {
      expect(await answerTo(backup, session)).toMatchObject({
        type: 'session-refused',
        code: 'HOLDFAST_E_VM_LOST',
        message: expect.stringContaining('the VM ran here in term 2'),
        cure: expect.stringContaining('QMP cont'),
      });
      expect(backup.status().phase).toBe('idle');
    } finally {
      await backup.close();
    }
  });

  it('lets nobody go on while another daemon is about to, from a checkpoint', async () => {
    await lose({ fallsBackTo: { dir: '/ckpt', epoch: 3, daemon: await identifyProcess(process.pid) } });
    const backup = await start();
    try {
      expect(await answerTo(backup, session)).toMatchObject({
        code: 'HOLDFAST_E_VM_LOST',
        message: expect.stringContaining('from checkpoint 3 of /ckpt'),
      });
      const { standsStill: _stands, ...running } = session;
      expect(await answerTo(backup, running)).toMatchObject({ code: 'HOLDFAST_E_FENCED', term: 2 });
      expect(await new VmRecords(dir, 'backup').read(VM)).toMatchObject({ lacksPages: true });
    } finally {
      await backup.close();
    }
  });

  it('refuses a fallback before it makes anything, where there can be none', async () => {
    const backup = await start();
    const disks = [{ id: 'd0', imagePath: '/images/d0', imageBytes: 1 << 20 }];
    try {
      const answer = await answerTo(backup, { ...session, fallback: { dir: '/ckpt' }, disks });
      expect(answer).toMatchObject({
        ...{ type: 'session-refused', code: 'HOLDFAST_E_UNSUPPORTED_VM' },
        message: expect.stringContaining('--fallback'),
      });
      expect(backup.status().phase).toBe('idle');
    } finally {
      await backup.close();
    }
  });

  it('remembers it no more once the VM has run where it came from, also when it stands still again', async () => {
    await lose();
    const backup = await start();
    // There is no QEMU for a standby here: as far as that comes only what was let through.
    const letThrough = { type: 'session-refused', message: expect.stringContaining('no-qemu') };
    try {
      const { standsStill: _stands, ...running } = session;
      expect(await answerTo(backup, running)).toMatchObject(letThrough);
      expect(await new VmRecords(dir, 'backup').read(VM)).toBeUndefined();
      expect(await answerTo(backup, session)).toMatchObject(letThrough);
    } finally {
      await backup.close();
    }
  });
});
