import { describe, expect, it } from 'vitest';
import type { DaemonStatus } from '../../lib/admin/protocol.js';
import { CommandConsole } from '../../lib/cli/console.js';
import { humanLine, makeLogger } from '../../lib/cli/logger.js';
import { daemonText, isProtected } from '../../lib/cli/render.js';
import { ConfigError, NoDaemonError } from '../../lib/errors.js';

const sink = () => {
  const written: string[] = [];
  return { written, write: (text: string) => written.push(text) };
};

const primaryStatus: DaemonStatus = {
  role: 'primary',
  name: 'web1',
  phase: 'protected',
  vm: { name: 'vm', pid: 42, qmp: '/run/q', ramBytes: 2 ** 29, vcpus: 2, running: true },
  backup: '10.0.0.2:7788',
  term: 1,
  epoch: 8,
  committedEpoch: 7,
  outputHeld: true,
  baseRounds: 0,
  epochs: 7,
  distributions: { pauseMs: { p50: 3.14, p99: 5, max: 6 }, dirtyPages: { p50: 512, p99: 600, max: 700 } },
};

const point = { dir: '/ckpt', epoch: 3, takenAt: '2026-11-22T01:00:00.000Z' };

const backupStatus: DaemonStatus = {
  role: 'backup',
  name: 'backup',
  phase: 'idle',
  listen: ':1',
  term: 0,
  committedEpoch: 0,
};

describe('console', () => {
  it('tells a person text and a program JSON, hints and logs on stderr', () => {
    for (const json of [false, true]) {
      const [out, err] = [sink(), sink()];
      const console = new CommandConsole({ json, out, err });
      console.tell('it happened', { event: 'it' });
      console.hint('note');
      console.live('never seen without a terminal');
      expect(out.written.join('')).toBe(json ? '{"event":"it"}\n' : 'it happened\n');
      expect(err.written.join('')).toBe('note\n');
    }
  });

  it('reports an error with its cure, or as JSON on stdout', () => {
    const error = new ConfigError('name: bad', { cure: 'Choose another.' });
    const [out, err] = [sink(), sink()];
    new CommandConsole({ json: false, out, err }).fail(error);
    expect(out.written).toEqual([]);
    expect(err.written.join('')).toBe('error: name: bad\ncure: Choose another.\n');
    new CommandConsole({ json: true, out, err }).fail(error);
    expect(JSON.parse(out.written.join(''))).toEqual({
      error: {
        code: 'HOLDFAST_E_CONFIG',
        message: 'name: bad',
        cure: 'Choose another.',
        details: {},
        exitCode: 2,
      },
    });
  });
});

describe('log', () => {
  it('writes lines for a person, or JSON, from the level on', () => {
    const err = sink();
    const console = new CommandConsole({ json: false, out: sink(), err });
    const log = makeLogger('info', console);
    log.debug({}, 'unseen');
    log.warn({ pauseMs: 1.23456, reason: 'two words', epoch: 3 }, 'backup lost');
    expect(err.written).toHaveLength(1);
    expect(err.written[0]).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} warn {2}backup lost {2}pauseMs=1\.23 reason="two words" epoch=3\n$/,
    );
    makeLogger('info', new CommandConsole({ json: true, out: sink(), err })).info({ a: 1 }, 'hello');
    expect(JSON.parse(err.written[1]!)).toMatchObject({ a: 1, msg: 'hello', level: 30 });
  });

  it('leaves no space behind a message without fields', () => {
    expect(humanLine('{"level":30,"time":0,"msg":"m"}')).toBe('00:00:00.000 info  m\n');
  });
});

describe('status', () => {
  it('counts as protected only what survives a failure', () => {
    expect(isProtected(primaryStatus)).toBe(true);
    expect(isProtected({ ...primaryStatus, committedEpoch: 0 })).toBe(false);
    for (const phase of ['connecting', 'syncing', 'waiting', 'ended']) {
      expect(isProtected({ ...primaryStatus, phase })).toBe(false);
    }
    expect(isProtected({ ...backupStatus, phase: 'protecting' })).toBe(true);
    expect(isProtected({ ...backupStatus, phase: 'active' })).toBe(true);
    expect(isProtected({ ...backupStatus, phase: 'active', fallBack: { ...point, underWay: true } })).toBe(
      false,
    );
    for (const phase of ['idle', 'preparing', 'syncing', 'grace', 'taking-over', 'ended']) {
      expect(isProtected({ ...backupStatus, phase })).toBe(false);
    }
  });

  it('shows what a person looks for', () => {
    const text = daemonText({ name: 'web1', status: primaryStatus });
    expect(text).toMatch(/^web1 {2}primary {2}protected\n/);
    expect(text).toMatch(/pause +3\.1 ms +5\.0 ms +6\.0 ms/);
    expect(text).toMatch(/dirty pages +512 +600 +700/);
    expect(text).toContain('512 MiB, 2 vCPUs, process 42');
    expect(text).toContain('8, committed 7');
    expect(text).not.toContain('sender'); // a daemon of before
    expect(daemonText({ name: 'x', error: new NoDaemonError('gone') })).toContain('gone');
    expect(daemonText({ name: 'backup', status: backupStatus })).toMatch(/^backup {2}backup {2}idle\n/);
    const falling = { ...backupStatus, fallBack: { ...point, underWay: true } };
    expect(daemonText({ name: 'backup', status: falling })).toContain('goes on from checkpoint 3 of /ckpt');
  });

  it('says that a VM stands still, and why, if QEMU has stopped it', () => {
    const vm = { ...primaryStatus.vm, running: false };
    const shown = (stopReason?: string): string =>
      daemonText({ name: 'web1', status: { ...primaryStatus, vm: { ...vm, stopReason } } });
    expect(shown()).toMatch(/process 42, stopped$/m);
    expect(shown('its disk vda is full. Make room')).toMatch(
      /process 42, stopped\n {14}QEMU has stopped it: its disk vda is full\. Make room$/m,
    );
  });

  it('says what is wrong with a replica that nobody has open', () => {
    const disk = {
      id: 'vda',
      image: '/srv/a.raw',
      imageBytes: 2 ** 30,
      journalUsedBytes: 0,
      journalBytes: 1,
    };
    const disks = [{ ...disk, durableEpoch: 0, fault: 'no space', closed: true as const }];
    expect(daemonText({ name: 'backup', status: { ...backupStatus, disks } })).toContain(
      'vda, /srv/a.raw, 1 GiB (not in use; journal 0 % full; FAILS: no space)',
    );
  });

  it('shows how epochs are paced, why, and what of the pause is whose', () => {
    const pacing = {
      reason: 'when output waits',
      intervalMs: 7.04,
      pauseBudget: { budgetMs: 5, measuredMs: 3.2, met: true },
      delayBudget: { budgetMs: 10, measuredMs: 12.34, met: false },
    };
    const part = { p50: 1, p99: 2, max: 3 };
    const distributions = { pauseMs: part, stopMs: part, deviceMs: part, scanMs: part, restMs: part };
    const text = daemonText({ name: 'web1', status: { ...primaryStatus, pacing, distributions } });
    expect(text).toMatch(/^ {2}pace {8}every 7\.0 ms \(median\), when output waits$/m);
    expect(text).toContain('pause 5 ms kept (3.2 ms), delay 10 ms NOT KEPT (12.3 ms)');
    const parts = [...text.matchAll(/^ {2}( *[a-z][a-z ]*?) {2,}1\.0 ms/gm)].map(([, name]) => name);
    expect(parts).toEqual(['pause', '  stop', '  device', '  scan', '  the rest']);
  });

  it("shows whether the guest's clock makes up for the pauses, or why not", () => {
    const shown = (guestClock: { state: string; reason?: string }): string =>
      daemonText({ name: 'web1', status: { ...primaryStatus, guestClock } });
    expect(shown({ state: 'following' })).toMatch(/^ {2}clock {7}the guest makes up for the pauses$/m);
    expect(shown({ state: 'starting' })).toMatch(/^ {2}clock {7}from the first pause on$/m);
    expect(shown({ state: 'off', reason: 'KVM' })).toMatch(
      /^ {2}clock {7}the guest loses the pauses \(KVM\)$/m,
    );
  });

  it('shows how pages are sent, and why', () => {
    const sender = { strategy: 'splice', reason: 'auto: first choice, not measured yet' };
    const text = daemonText({ name: 'web1', status: { ...primaryStatus, sender } });
    expect(text).toMatch(/^ {2}sender {6}splice \(auto: first choice, not measured yet\)$/m);
    const reason = 'auto: 1 ms CPU; fragments of 2 pages; not uring: missing';
    expect(daemonText({ name: 'web1', status: { ...primaryStatus, sender: { ...sender, reason } } })).toMatch(
      /^ {2}sender {6}splice \(auto: 1 ms CPU\)\n {14}fragments of 2 pages\n {14}not uring: missing$/m,
    );
    const settings = { streams: 3, verify: false };
    expect(daemonText({ name: 'web1', status: { ...primaryStatus, sender, settings } })).toContain(
      'splice over 3 streams, not verified (auto: ',
    );
  });
});
