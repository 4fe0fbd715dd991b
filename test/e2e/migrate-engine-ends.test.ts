/**
 * QEMU's engine between daemons, around the hand-over: everything has arrived, and then something ends. A bare
 * machine over loopback is enough: what counts is on which side it runs.
 */

import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Backup } from '../../lib/backup/backup.js';
import { readKeyFile } from '../../lib/control/auth.js';
import { ConfigError, FencedError } from '../../lib/errors.js';
import type { MigrationStatus } from '../../lib/migrate/migration.js';
import { QemuEngineMigration } from '../../lib/migrate/qemu-migration.js';
import { repositoryRoot } from '../lab/guest.js';
import { JsonProcess } from '../lab/json-process.js';
import { LabProcess } from '../lab/process.js';
import { isRunning, withQmp } from './support/lab.js';

const HOST = '127.0.0.1';

let dir: string;
let port: number;
const cleanUps: (() => unknown)[] = [];

beforeEach(async () => {
  dir = mkdtempSync('/dev/shm/holdfast-migend-');
  writeFileSync(join(dir, 'key'), '0123456789abcdef\n', { mode: 0o600 });
  const server = createServer().listen(0, HOST);
  await once(server, 'listening');
  ({ port } = server.address() as { port: number });
  server.close();
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  rmSync(dir, { recursive: true, force: true });
});

const killLater = (pid: number): void => {
  cleanUps.push(() => isRunning(pid) && process.kill(pid, 'SIGKILL'));
};

/** Firmware that finds nothing to boot. Its RAM is of a size that QEMU 7.2 migrates soundly under TCG. */
const startVm = async (): Promise<{ pid: number; qmpPath: string }> => {
  const qmpPath = join(dir, 'vm.qmp');
  const { pid } = await LabProcess.start('qemu-system-x86_64', [
    ...['-M', 'q35', '-accel', 'tcg', '-m', '65544K', '-nodefaults', '-vga', 'none', '-display', 'none'],
    ...['-object', `memory-backend-file,id=ram0,size=65544K,mem-path=${join(dir, 'vm.ram')},share=on`],
    ...['-machine', 'memory-backend=ram0', '-qmp', `unix:${qmpPath},server=on,wait=off`],
  ]);
  killLater(pid);
  return { pid, qmpPath };
};

const startDaemon = async (): Promise<JsonProcess> => {
  const daemon = new JsonProcess(
    await LabProcess.start(process.execPath, [
      join(repositoryRoot(), 'dist/lib/cli/main.js'),
      ...['backup', '--listen', `${HOST}:${port}`, '--key-file', join(dir, 'key'), '--json'],
      ...['--run-dir', join(dir, 'run-b'), '--ram-dir', dir],
    ]),
  );
  killLater(daemon.pid);
  await daemon.message('idle');
  return daemon;
};

const migrate = async (qmp: string, settings: { to?: string } = {}): Promise<QemuEngineMigration> =>
  await QemuEngineMigration.start({
    ...{ key: await readKeyFile(join(dir, 'key')), qmp, to: `${HOST}:${port}`, runDir: join(dir, 'run-a') },
    ...{ retryMs: 50, heartbeatTimeoutMs: 400, ...settings },
  });

const phase = async (migration: QemuEngineMigration, wanted: MigrationStatus['phase']): Promise<void> => {
  await expect.poll(() => migration.status().phase, { timeout: 20_000, interval: 5 }).toBe(wanted);
};

const stateOf = async (qmpPath: string): Promise<string> =>
  await withQmp(qmpPath, async (qmp) => (await qmp.execute('query-status')).status);

const startBackup = async (): Promise<Backup> => {
  const key = await readKeyFile(join(dir, 'key'));
  const listen = `${HOST}:${port}`;
  const backup = await Backup.start({ key, listen, runDir: join(dir, 'run-b'), ramDir: dir });
  cleanUps.push(() => backup.close());
  return backup;
};

test('01 the QEMU there dies with all of it: the VM goes on here', async () => {
  const vm = await startVm();
  const backup = await startBackup();
  const migration = await migrate(vm.qmpPath);
  migration.once('final', () => process.kill(backup.status().standbyPid ?? 0, 'SIGKILL'));
  expect(await migration.ended).toMatchObject({
    kind: 'stayed',
    failure: { code: 'HOLDFAST_E_STATE_LOAD' },
    mayRunThere: false,
  });
  expect(await stateOf(vm.qmpPath)).toBe('running');
  expect(backup.takeover).toBeUndefined();
  await expect.poll(() => backup.status().phase).toBe('idle');
});

test('02 no answer to the hand-over: it stands still until the same destination is asked again', async () => {
  const vm = await startVm();
  const killed = await startDaemon();
  const unanswered = await migrate(vm.qmpPath);
  unanswered.once('final', () => process.kill(killed.pid, 'SIGKILL'));
  await phase(unanswered, 'waiting');
  expect(unanswered.status().vm.running).toBe(false);
  expect(await unanswered.cancel()).toMatchObject({ kind: 'stayed', mayRunThere: true });
  expect(await stateOf(vm.qmpPath)).toBe('postmigrate');

  const elsewhere = await migrate(vm.qmpPath, { to: `${HOST}:1` }).catch((error: unknown) => error);
  expect(elsewhere).toBeInstanceOf(ConfigError);
  expect(String(elsewhere)).toContain(`moved to ${HOST}:${port}`);
  const asking = await migrate(vm.qmpPath);
  await phase(asking, 'waiting');
  const daemon = await startDaemon();
  expect(await asking.ended).toMatchObject({ kind: 'moved', term: 2 });
  const { pid, qmp } = await daemon.message('took-over');
  killLater(Number(pid));
  expect(isRunning(vm.pid)).toBe(false);
  expect(await stateOf(String(qmp))).toBe('running');
});

test('03 the answer comes too late: it runs on one side', async () => {
  const vm = await startVm();
  const daemon = await startDaemon();
  const migration = await migrate(vm.qmpPath);
  migration.once('final', () => process.kill(daemon.pid, 'SIGSTOP'));
  await phase(migration, 'waiting');
  process.kill(daemon.pid, 'SIGCONT');
  const outcome = await migration.ended;
  const { pid, qmp } = await daemon.message('took-over');
  killLater(Number(pid));
  expect(['fenced', 'moved']).toContain(outcome.kind);
  expect(await stateOf(String(qmp))).toBe('running');
  if (isRunning(vm.pid)) expect(await stateOf(vm.qmpPath)).not.toBe('running');
  // What was fenced is known to be: it does not move, or run, again.
  if (outcome.kind === 'fenced') await expect(migrate(vm.qmpPath)).rejects.toThrow(FencedError);
});

test('04 the QEMU here dies when all is over there: nothing is lost, it runs on our word', async () => {
  const vm = await startVm();
  const backup = await startBackup();
  const migration = await migrate(vm.qmpPath);
  backup.once('committed', () => process.kill(vm.pid, 'SIGKILL'));
  const { kind } = await migration.ended;
  // The hand-over may have been on its way.
  expect(['vm-lost', 'moved']).toContain(kind);
  if (kind === 'vm-lost') await expect.poll(() => backup.status().phase).toMatch(/grace|active/);
  const { pid, qmp } = backup.takeover ?? (await backup.takeOver());
  killLater(pid);
  expect(await stateOf(qmp)).toBe('running');
});
