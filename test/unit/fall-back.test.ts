/** Whether a VM that is resumed early could go on from a checkpoint, what is agreed on, and what is said when not. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FallBack, fallBackFailure, isOfSource } from '../../lib/backup/fall-back.js';
import { assertFits, assertMayFallBack, assertRoomFor } from '../../lib/backup/fall-back-check.js';
import {
  arrivedRecord,
  fallenRecord,
  lackingRecord,
  lostRecord,
  wholeRecord,
} from '../../lib/backup/lacking-record.js';
import { digestOf } from '../../lib/checkpoint/device-state.js';
import type { Entry } from '../../lib/checkpoint/directory.js';
import {
  MANIFEST_MAGIC,
  MANIFEST_VERSION,
  type Manifest,
  renderManifest,
} from '../../lib/checkpoint/manifest.js';
import type { SessionMessage } from '../../lib/control/messages.js';
import {
  NoSpaceError,
  PeerLostError,
  StandbyError,
  toHoldfastError,
  UnsupportedVmError,
} from '../../lib/errors.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { ageMs, agreedPoint } from '../../lib/migrate/fall-back-point.js';
import { checkMigrationSettings } from '../../lib/migrate/options.js';
import { lossOf, migrationError } from '../../lib/migrate/outcome.js';
import { outlivesItsVm, type VmRecord } from '../../lib/state/records.js';

const DEVICE = Buffer.from('devices');

const session: SessionMessage = {
  ...{ type: 'session', vmId: '11111111-2222-4333-8444-555555555555', vmName: 'redis' },
  ...{ term: 1, outputHeld: false, ramBytes: 64 << 20, pageSize: 4096, deviceBytesMax: 1 << 20 },
  ...{ heartbeatIntervalMs: 100, heartbeatTimeoutMs: 1_000, handOverOnly: true, resumeEarly: 'now' },
  standby: {
    ...{ binary: 'qemu-system-x86_64', qemuVersion: '7.2.0', cwd: '/none' },
    ...{ machineType: 'pc-q35-7.2', backendId: 'ram0', replacements: [] },
    argv: [
      ...['-machine', 'pc-q35-7.2,memory-backend=ram0', '-m', '64'],
      ...['-object', 'memory-backend-file,id=ram0,size=64M,mem-path=/r,share=on'],
    ],
  },
};

const vm: Manifest['vm'] = {
  ...{ name: 'redis', qemuVersion: '7.2.22', binary: '/usr/bin/qemu-system-x86_64', argv: [], cwd: '/' },
  ...{ machineType: 'pc-q35-7.2', accelerator: 'tcg', vcpus: 1, ramBytes: 64 << 20, pageSize: 4096 },
  ramId: 'ram0',
};

const manifestOf = (epoch: number, changes: Partial<Manifest> = {}): Manifest => ({
  ...{ magic: MANIFEST_MAGIC, version: MANIFEST_VERSION, epoch, parent: null, pauseMs: 5, vm },
  takenAt: '2026-11-22T01:00:00.000Z',
  ram: { file: 'ram', index: 'ram.index', digest: '0123456789abcdef', pages: 1_000, zeroPages: 0 },
  device: { file: 'device', bytes: DEVICE.length, sha256: digestOf(DEVICE) },
  disks: [],
  ...changes,
});

const entryOf = (epoch: number, changes?: Partial<Manifest>): Entry => ({
  ...{ epoch, dir: `/ckpt/epoch-00000${epoch}`, isRetired: false },
  manifest: manifestOf(epoch, changes),
});

describe('01 a session', () => {
  it('may have a fallback if it is resumed early, by Holdfast, without disks', () => {
    assertMayFallBack(session);
    const { resumeEarly: _now, ...whole } = session;
    expect(() => assertMayFallBack(whole)).toThrow('a fallback is for a VM that is resumed early');
    expect(() => assertMayFallBack({ ...session, qemuEngine: true })).toThrow('resumed early');
    const disks = [{ id: 'd0', imagePath: '/images/d0', imageBytes: 1 << 20 }];
    expect(() => assertMayFallBack({ ...session, disks })).toThrow(UnsupportedVmError);
  });

  it.each([
    ['its name', { vm: { ...vm, name: 'mail' } }],
    ['its emulator', { vm: { ...vm, binary: 'qemu-system-aarch64' } }],
    [
      'its machine type is pc-i440fx-7.2 there, and pc-q35-7.2 now',
      { vm: { ...vm, machineType: 'pc-i440fx-7.2' } },
    ],
    ['its RAM, in bytes, is 1048576 there', { vm: { ...vm, ramBytes: 1 << 20 } }],
    ['the size of its pages', { vm: { ...vm, pageSize: 2 << 20 } }],
    ['its memory backend is ram there, and ram0 now', { vm: { ...vm, ramId: 'ram' } }],
  ])('does not go on from a checkpoint of another VM: %s', (said, changes) => {
    expect(() => assertFits({ entry: entryOf(3, changes) }, session, '7.2.22')).toThrow(
      /^checkpoint 3 \(\/ckpt\/epoch-000003\) is not one of the VM that is to come: /,
    );
    expect(() => assertFits({ entry: entryOf(3, changes) }, session, '7.2.22')).toThrow(said);
  });

  it('nor from one with disks, nor by a QEMU that is too old', () => {
    const disk = { name: 'd0', file: 'disk-0.raw', image: '/d0', format: 'raw', bytes: 1 } as const;
    const disks = [{ ...disk, digest: '0123456789abcdef' }];
    expect(() => assertFits({ entry: entryOf(3, { disks }) }, session, '7.2.22')).toThrow(
      'it has disks (d0)',
    );
    expect(() => assertFits({ entry: entryOf(3) }, session, '6.2.0')).toThrow(StandbyError);
    assertFits({ entry: entryOf(3) }, session, '7.2.0');
    assertFits({ entry: entryOf(3, { vm: { ...vm, name: '' } }) }, session, '10.0.2');
  });

  it('needs room for what the layers have together, and for no more than RAM', () => {
    const entry = entryOf(2, { parent: 1 });
    const chain = { entry, layers: [entryOf(1), entry] };
    assertRoomFor(chain, { dir: '/ram', freeBytes: 2_000 * 4096 });
    expect(() => assertRoomFor(chain, { dir: '/ram', freeBytes: 2_000 * 4096 - 1 })).toThrow(NoSpaceError);
    const ram = { ...entry.manifest.ram, pages: 16_000 };
    const large = { entry, layers: [entryOf(1, { ram }), entry] };
    assertRoomFor(large, { dir: '/ram', freeBytes: vm.ramBytes });
  });
});

describe('02 the directory', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'holdfast-fall-back-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const put = (manifest: Manifest, device = DEVICE): void => {
    const path = join(dir, `epoch-00000${manifest.epoch}`);
    mkdirSync(path);
    writeFileSync(join(path, 'manifest.json'), renderManifest(manifest));
    writeFileSync(join(path, 'device'), device);
  };
  const readers = (): string[] => readdirSync(join(dir, '.holders'));
  const place = (qemu = '/bin/false') => ({
    ...{ dir: join(dir, 'g2'), ramPath: join(dir, 'g2.ram') },
    ...{ qemu, replacements: [], log: NOTHING_LOGGED },
  });
  const prepare = (asked = session) => FallBack.prepare(asked, dir, '7.2.22', place());

  it('gives its newest checkpoint, which nobody merges away until it is let go', async () => {
    put(manifestOf(1));
    put(manifestOf(2, { parent: 1, takenAt: '2026-11-22T01:00:10.000Z' }));
    const fallBack = await prepare();
    expect(fallBack.point).toEqual({ dir, epoch: 2, takenAt: '2026-11-22T01:00:10.000Z' });
    expect(readers()).toHaveLength(1);
    await fallBack.release();
    await fallBack.release();
    expect(readers()).toEqual([]);
  });

  it('is refused with its reason, and let go', async () => {
    await expect(prepare()).rejects.toThrow(`there is no checkpoint in ${dir}`);
    put(manifestOf(2, { parent: 1 }));
    await expect(prepare()).rejects.toThrow('checkpoint 2 cannot be restored: it stands on 1');
    put(manifestOf(3), Buffer.from('DEVICES'));
    await expect(prepare()).rejects.toMatchObject({ code: 'HOLDFAST_E_DAMAGED' });
    put(manifestOf(4, { vm: { ...vm, machineType: 'microvm' } }));
    await expect(prepare()).rejects.toMatchObject({ code: 'HOLDFAST_E_CONFIG', cure: expect.any(String) });
    expect(readers()).toEqual([]);
    await expect(FallBack.prepare(session, join(dir, 'none'), '7.2.22', place())).rejects.toThrow(
      `there is no directory ${join(dir, 'none')}`,
    );
  });

  it('is refused where it could not be started: by its command line, or for want of a QEMU', async () => {
    put(manifestOf(1));
    const large = session.standby.argv.map((word) => word.replace(/^64$/, '128'));
    await expect(prepare({ ...session, standby: { ...session.standby, argv: large } })).rejects.toThrow(
      'the command line gives the VM 134217728 bytes of RAM, and checkpoint 1 has 67108864',
    );
    await expect(FallBack.prepare(session, dir, '7.2.22', place('/none/qemu'))).rejects.toThrow(
      '/none/qemu was not found on this host',
    );
    expect(readers()).toEqual([]);
  });

  it('goes on from what was agreed on, also where it was given up since, when the VM that lacks pages has ended', async () => {
    put(manifestOf(1));
    const fallBack = await prepare();
    const entry = join(dir, 'epoch-000001');
    renameSync(join(entry, 'manifest.json'), join(entry, 'retired.json'));
    const calls: string[] = [];
    const lacking = {
      killVm: async () => void calls.push('killed'),
      removeFiles: async () => void calls.push('removed'),
    };
    // What is started is no QEMU: nothing runs, and nothing is left of it.
    await expect(fallBack.goOn(lacking, async () => void calls.push('claimed'))).rejects.toMatchObject({
      code: 'HOLDFAST_E_VM_GONE',
      message: expect.stringContaining('QEMU ended before it was ready'),
    });
    expect(calls).toEqual(['killed', 'removed']);
    expect(existsSync(fallBack.runs.ramPath)).toBe(false);
    await fallBack.release();
    expect(readers()).toEqual([]);
  });
});

describe('03 what is agreed on', () => {
  const answer = { epoch: 3, takenAt: '2026-11-22T01:00:00.000Z' };

  it('is what the destination names, and nothing by default', () => {
    expect(agreedPoint('/ckpt', answer)).toEqual({ dir: '/ckpt', ...answer });
    expect(agreedPoint(undefined, undefined)).toBeUndefined();
  });

  it('an older destination would not do it: nothing moves there', () => {
    expect(() => agreedPoint('/ckpt', undefined)).toThrow('would not go on from a checkpoint');
  });

  it('is as old as the clocks say, and never from the future', () => {
    const takenMs = Date.parse(answer.takenAt);
    expect(ageMs(answer, takenMs + 12_000)).toBe(12_000);
    expect(ageMs(answer, takenMs - 500)).toBe(0);
  });

  it('is asked for with resumeEarly only, by an absolute path, and without moving disks', () => {
    const settings = { to: '10.0.0.2:7788', resumeEarly: 'now', fallback: '/ckpt' } as const;
    expect(checkMigrationSettings(settings)).toMatchObject({ fallback: '/ckpt' });
    const check = (changes: object) => () => checkMigrationSettings({ ...settings, ...changes });
    expect(check({ resumeEarly: 'never' })).toThrow('without resumeEarly nothing is lost');
    expect(check({ fallback: 'ckpt' })).toThrow('must be an absolute path, on the destination');
    expect(check({ moveDisks: true })).toThrow('cannot go on from a checkpoint');
  });
});

describe('04 the record of the VM', () => {
  const point = { dir: '/ckpt', epoch: 3, takenAt: '2026-11-22T01:00:00.000Z' };
  const [qemu, daemon, restored] = [1, 2, 3].map((pid) => ({ pid, startTicks: '9' })) as [Id, Id, Id];
  type Id = { readonly pid: number; readonly startTicks: string };
  const whole: VmRecord = {
    ...{ vmId: session.vmId, vmName: 'redis', term: 2, role: 'active', process: qemu },
    ...{ qmpPath: '/g1/qmp', ramPath: '/g1.ram' },
  };
  const lacking = lackingRecord(whole, { point, daemon });

  it('says who goes on from what while it lacks pages, and nothing of it when all have come', () => {
    expect(lacking).toEqual({
      ...whole,
      lacksPages: true,
      fallsBackTo: { dir: '/ckpt', epoch: 3, daemon },
    });
    expect(lackingRecord(whole, undefined)).toEqual({ ...whole, lacksPages: true });
    expect(wholeRecord(lacking)).toEqual(whole);
    expect([whole, lacking].map(outlivesItsVm)).toEqual([false, true]);
  });

  it('names the process that runs from the checkpoint, or that nobody does', () => {
    const runs = { process: restored, qmpPath: '/g2/qmp', ramPath: '/g2.ram' };
    const fallen = fallenRecord(lacking, point, runs, daemon);
    expect(fallen).toEqual({ ...whole, ...runs, fellBackTo: { dir: '/ckpt', epoch: 3, daemon } });
    const arrived = arrivedRecord(fallen);
    expect(arrived).toEqual({ ...whole, ...runs, fellBackTo: { dir: '/ckpt', epoch: 3 } });
    expect([fallen, arrived].map(outlivesItsVm)).toEqual([true, true]);
    expect(arrivedRecord(whole)).toEqual(whole);
    for (const each of [lacking, fallen, arrived]) {
      expect(lostRecord(each)).toEqual({ ...wholeRecord(each), lacksPages: true });
    }
  });
});

describe('05 the end', () => {
  const point = { dir: '/ckpt', epoch: 3, takenAt: '2026-11-22T01:00:00.000Z' };

  it('at a source that gave up: where the VM goes on', () => {
    const failure = { code: 'HOLDFAST_E_PEER_LOST', message: 'not reached', cure: 'Look there.' };
    const outcome = { kind: 'stayed', failure, mayRunThere: true, pagesLost: true, fallback: point } as const;
    const error = migrationError(outcome);
    expect(error).toMatchObject({ exitCode: 5, cure: 'Look there.' });
    expect(error.message).toContain(
      'left stopped here, for it goes on over there from checkpoint 3 of /ckpt, if its daemon and its QEMU there lived',
    );
  });

  it('at a source that had sent all, and was not told: it may run there whole', () => {
    const failure = { code: 'HOLDFAST_E_PEER_LOST', message: 'not heard', cure: 'Look there.' };
    const sent = lossOf({ failure, ranThere: true, pagesLeft: 0, fallback: point });
    expect(sent).toEqual({ pagesLost: true });
    const error = migrationError({ kind: 'stayed', failure, mayRunThere: true, ...sent });
    expect(error).toMatchObject({
      ...{ code: failure.code, cure: 'Look there.' },
      message: 'not heard; the VM is left stopped here, for it may run over there',
    });
    const some = lossOf({ failure, ranThere: true, pagesLeft: 1, fallback: point });
    expect(some).toEqual({ pagesLost: true, fallback: point });
    expect(lossOf({ failure, ranThere: true, pagesLeft: 1, fallback: undefined })).toEqual(sent);
    expect(lossOf({ failure, ranThere: false, pagesLeft: 0, fallback: point })).toEqual({});
  });

  it('at a source whose question was refused: the refusal says where the VM is', () => {
    const failure = { code: 'HOLDFAST_E_VM_LOST', message: 'it was lost there', cure: 'QMP cont.' };
    const lost = lossOf({ failure, ranThere: false, pagesLeft: 900, fallback: point });
    const error = migrationError({ kind: 'stayed', failure, mayRunThere: true, ...lost });
    expect(error).toMatchObject({
      ...{ code: failure.code, cure: 'QMP cont.' },
      message: 'it was lost there; the VM is left stopped here',
    });
  });

  it('where the checkpoint does not run either: both reasons, and what is left to do', () => {
    const loss = new PeerLostError('the source was lost');
    const error = fallBackFailure(loss, new StandbyError('no', { cure: 'Its log is L.' }), point);
    expect(error).toMatchObject({
      ...{ code: 'HOLDFAST_E_PEER_LOST', exitCode: 5 },
      message: 'the source was lost; and it does not go on from checkpoint 3 of /ckpt: no',
    });
    expect(error.cure).toMatch(/^Its log is L\. Nobody runs the VM\. .*holdfast restore \/ckpt/);
    const stuck = fallBackFailure(loss, new StandbyError('no'), point, true);
    expect(stuck.cure).toMatch(/^Once it has ended, and not before: `holdfast restore \/ckpt/);
  });

  it('is the source that is lost: of any other loss it has the whole VM', () => {
    expect(isOfSource(new PeerLostError('not back'))).toBe(true);
    expect(isOfSource(new NoSpaceError('no room for a page that has come'))).toBe(false);
    expect(isOfSource(toHoldfastError(Object.assign(new Error(), { code: 'HOLDFAST_E_SYSCALL' })))).toBe(
      false,
    );
  });
});
