/** What Holdfast's own engine makes of a policy, of its settings, and of how a migration ended. */
import { describe, expect, it } from 'vitest';
import { CommandConsole } from '../../lib/cli/console.js';
import { narrateMigration } from '../../lib/cli/narrate-migration.js';
import { afterRound } from '../../lib/migrate/after-round.js';
import { downtimeParts } from '../../lib/migrate/downtime-parts.js';
import type { Migration } from '../../lib/migrate/migration.js';
import { asPrimarySettings, checkMigrationSettings } from '../../lib/migrate/options.js';
import { describeMigration, type MigrationOutcome, migrationError } from '../../lib/migrate/outcome.js';
import type { MigrationPolicy, MigrationStep } from '../../lib/migrate/policy.js';
import type { RoundStats } from '../../lib/primary/convergence.js';
import { checkPrimarySettings } from '../../lib/primary/options.js';

const limits = { downtimeMs: 300, pageBytes: 4_096, overheadMs: 10 };

const round = (roundMs: number): RoundStats => ({
  ...{ pages: 100, zeroPages: 0, bytes: 409_600, dirtyPages: 50 },
  ...{ roundMs, scanMs: 1, sendMs: roundMs - 1 },
});

const always =
  (step: MigrationStep): MigrationPolicy =>
  () => ({ step, expectedDowntimeMs: 400, reason: 'Much is left.' });

describe('after a round', () => {
  const limit = { roundsMax: 3, totalMsMax: 100 };

  it('the policy says what comes next; an engine without post-copy stops the VM for it', () => {
    const rounds = [round(10)];
    expect(afterRound({ policy: always('next-round'), limits, limit })(rounds)).toBe('next-round');
    expect(afterRound({ policy: always('stop-and-copy'), limits, limit })(rounds)).toBe('stop-and-copy');
    expect(afterRound({ policy: always('post-copy'), limits, limit })(rounds)).toBe('stop-and-copy');
  });

  it('the limits end what the policy would not, and say why', () => {
    const next = afterRound({ policy: always('next-round'), limits, limit });
    expect(next([round(10), round(10)])).toBe('next-round');
    const failure = { code: 'HOLDFAST_E_LIMIT', message: expect.stringMatching(/within 3 rounds; Much is/) };
    expect(next([round(10), round(10), round(10)])).toMatchObject(failure);
    expect(next([round(60), round(60)])).toMatchObject({ message: expect.stringContaining('100 ms') });
  });

  it('a policy that stops is not kept from it by a limit', () => {
    const next = afterRound({ policy: always('stop-and-copy'), limits, limit });
    expect(next([round(10), round(10), round(200)])).toBe('stop-and-copy');
  });
});

describe('settings', () => {
  const needed = { to: '10.0.0.2:7788' };

  it('have defaults, and name what is wrong', () => {
    expect(checkMigrationSettings(needed)).toMatchObject({
      ...{ name: 'migration', policy: 'auto', downtimeMs: 300, timeMaxMs: 1_800_000, ackTimeoutMs: 60_000 },
      heartbeatTimeoutMs: 2_000,
    });
    expect(() => checkMigrationSettings({ ...needed, policy: 'soon' })).toThrow(/policy: /);
    expect(() => checkMigrationSettings({ ...needed, gate: 'relay' })).toThrow(/gate/);
    expect(() => checkMigrationSettings({ ...needed, heartbeatTimeoutMs: 50 })).toThrow(/heartbeatTimeoutMs/);
  });

  it('are those of a primary that holds nothing and stages nothing', () => {
    const settings = asPrimarySettings(checkMigrationSettings({ ...needed, streams: 3 }));
    expect(checkPrimarySettings(settings)).toMatchObject({
      ...{ backup: needed.to, gate: 'none', captureMode: 'direct', streams: 3, ackTimeoutMs: 60_000 },
    });
  });
});

describe('the end of a migration', () => {
  const failure = {
    code: 'HOLDFAST_E_PEER_LOST',
    message: 'the backup is silent since 200 ms',
    cure: 'Look.',
  };

  it('moved: how long it took, and how long the VM stood still', () => {
    const moved: MigrationOutcome = {
      ...{ kind: 'moved', term: 2, totalMs: 1_234, downtimeMs: 12.3, resumeMs: 5, firstStopMs: 0, rounds: 3 },
      ...{ bytes: 100 << 20, diskBytes: 0, final: undefined, downtimeParts: undefined },
    };
    expect(describeMigration(moved)).toBe(
      'moved: the VM runs over there (term 2); it stood still for 12 ms; 1,234 ms in all, 3 rounds, 100 MiB',
    );
    expect(describeMigration({ ...moved, firstStopMs: 4 })).toContain('12 ms, and for 4 ms before the first');
    expect(describeMigration({ ...moved, diskBytes: 1 << 30 })).toContain('100 MiB and 1 GiB of disks');
  });

  it('moved: the parts of its downtime are all of it', () => {
    const parts = downtimeParts(
      { stopMs: 0.5, ackMs: 1.5, ackedAfterMs: 3 },
      { downtimeMs: 11, resumeMs: 6 },
    );
    expect(parts).toEqual({ stopMs: 0.5, captureMs: 1, transferMs: 1.5, handOverMs: 2, resumeMs: 6 });
    expect(Object.values(parts).reduce((sum, ms) => sum + ms, 0)).toBe(11);
  });

  it('stayed: the error says why, and where the VM is', () => {
    const runs = migrationError({ kind: 'stayed', failure, mayRunThere: false });
    expect(runs).toMatchObject({ code: failure.code, exitCode: 5, cure: 'Look.' });
    expect(runs.message).toBe(`${failure.message}; the VM stays here`);
    const stopped = migrationError({ kind: 'stayed', failure, mayRunThere: true });
    expect(stopped.message).toContain('left stopped here, for it may run over there');
    expect(stopped.cure).toContain('The same command');
  });

  it('each with an exit code of its own', () => {
    const exitCode = (code: string) =>
      migrationError({ kind: 'stayed', failure: { code, message: 'x' }, mayRunThere: false }).exitCode;
    expect(exitCode('HOLDFAST_E_LIMIT')).toBe(7);
    expect(exitCode('HOLDFAST_E_STATE_LOAD')).toBe(8);
    expect(exitCode('HOLDFAST_E_CANCELLED')).toBe(130);
    expect(migrationError({ kind: 'fenced', term: 2, message: 'it took over' }).exitCode).toBe(9);
    expect(migrationError({ kind: 'vm-lost', reason: 'killed' }).exitCode).toBe(4);
    expect(migrationError({ kind: 'vm-ended', reason: 'guest-shutdown' }).exitCode).toBe(4);
  });
});

describe('what is told', () => {
  const narrated = (json: boolean) => {
    const lines: string[] = [];
    const listeners = new Map<string, (value: unknown) => void>();
    const migration = {
      on: (event: string, listener: (value: unknown) => void) => listeners.set(event, listener),
      off: (event: string) => listeners.delete(event),
      movedDisks: undefined,
      status: () => ({ phase: 'connecting', vm: { running: true }, term: 1 }),
    } as unknown as Migration;
    const out = { write: (text: string) => lines.push(text) };
    const settings = checkMigrationSettings({ to: '10.0.0.2:7788' });
    const end = narrateMigration(migration, new CommandConsole({ json, out, err: out }), settings);
    return { lines, say: (event: string, value: unknown) => listeners.get(event)?.(value), end, listeners };
  };
  const progress = {
    ...{ ...round(100), round: 2, bytesPerSecond: 4_096_000 },
    decision: { step: 'next-round', expectedDowntimeMs: 400, reason: 'Much is left.' },
  };

  it('each round, and what the policy made of it', () => {
    const { lines, say, end, listeners } = narrated(false);
    say('round', progress);
    say('round', { ...progress, skippedPages: 40 });
    say('final', { dirtyPages: 7, bytes: 28_672, stopMs: 0.4, ackMs: 3 });
    expect(lines).toEqual([
      'connecting to 10.0.0.2:7788\n',
      '  round 2: 100 pages (400 KiB) and 0 zero pages in 100 ms, 3.9 MiB/s\n    Much is left. Another round.\n',
      '  round 2: 100 pages (400 KiB) and 0 zero pages in 100 ms, 3.9 MiB/s\n    40 skipped: written again meanwhile\n    Much is left. Another round.\n',
      '  stopped: 7 pages (28 KiB) in 3 ms, after 0.4 ms for the stop; handing over\n',
    ]);
    end();
    expect(listeners.size).toBe(0);
  });

  it('what the disks had of it', () => {
    const { lines, say } = narrated(false);
    const diskPages = { referenced: 70, verified: 60, mismatched: 8, unread: 2, resent: 10 };
    say('disks-indexed', {
      ...{ ended: true, dataBytes: 3 << 20, readBytes: 3 << 20, blocks: 700, millis: 12 },
      images: ['/srv/a.img', '/srv/b.img'],
    });
    say('round', { ...progress, diskPages: { ...diskPages, savedBytes: 245_760 } });
    say('round', { ...progress, diskPages: { ...diskPages, mismatched: 0, unread: 0, savedBytes: -1 } });
    expect(
      lines.slice(1).flatMap((line) => line.split('\n').filter((part) => part.includes('disks'))),
    ).toEqual([
      '  disks looked through for pages: 3 MiB of /srv/a.img, /srv/b.img in 12 ms',
      '    60 pages read from disks there, 240 KiB saved; 8 were something else there and 2 could not be read there in time, and were sent',
      '    60 pages read from disks there, 0 B saved',
    ]);
  });

  it('from where it goes on should this host be lost', () => {
    const { lines, say } = narrated(false);
    say('fallback', { dir: '/ckpt', epoch: 3, takenAt: new Date(Date.now() - 120_000).toISOString() });
    say('runs-early', { term: 2, downtimeMs: 50, pages: 900 });
    expect(lines.slice(1)).toEqual([
      '  should this host be lost before all of its memory has come, the VM over there goes on from checkpoint 3 of /ckpt, taken 120 s ago\n',
      '  it runs over there, after 50 ms; 900 pages follow. If this host dies before they are there, it goes on from checkpoint 3 of /ckpt\n',
    ]);
  });

  it('as JSON, with all figures', () => {
    const { lines, say, end } = narrated(true);
    say('round', progress);
    end();
    expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
      { event: 'connecting', term: 1 },
      { event: 'round', ...progress },
    ]);
  });
});
