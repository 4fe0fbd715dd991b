/** `holdfast backup`: keeps the checkpoints of one VM, and runs it when its primary dies. */
import type { Command } from 'commander';
import { AdminServer } from '../admin/server.js';
import type { Backup } from '../backup/backup.js';
import { checkBackupSettings } from '../backup/options.js';
import { type HoldfastError, NotProtectedError } from '../errors.js';
import { jsonOption, loadDataPlane, loadKey, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { makeLogger } from './logger.js';
import { narrateBackup } from './narrate-backup.js';
import type { Finish } from './program.js';
import {
  addFlags,
  type BackupCommandSettings,
  backupCommandSettings,
  backupFlags,
  gatherSettings,
} from './settings.js';

export const addBackupCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('backup')
    .summary('keep the checkpoints of a VM, and run it when its host dies')
    .description(
      'Waits for the primary of one VM, starts a standby QEMU like its own, keeps its checkpoints, and runs the ' +
        'last one when the primary dies. Then it stays as a monitor until that VM ends. SIGINT or SIGTERM ends it: ' +
        'a standby that waits is removed, a VM that was taken over runs on.',
    )
    .usage('--listen HOST:PORT --key-file FILE [options]');
  addFlags(command, backupFlags, backupCommandSettings);
  command.addOption(jsonOption());
  command.action(async (flags: Record<string, unknown>) => {
    const settings = await gatherSettings(backupCommandSettings, backupFlags, flags);
    finish(await backup(settings, flags.json === true));
  });
  teach(command, {
    notes: `
Durations are 25, 25ms, 2s, 1m. A config file holds the same settings in
camelCase (listen, keyFile, ramDir, takeover, …; times in ms; replace as
[{"from": …, "to": …}]).

The replica needs as much memory in --ram-dir as the VM has. With a firewall in
between, fix --bulk-port; open it, the port after it, and that of --listen.`,
    examples: [
      'holdfast backup --listen 10.0.0.2:7788 --key-file holdfast.key',
      'holdfast backup --listen 10.0.0.2:7788 --key-file holdfast.key --bulk-port 7790 --takeover manual',
      'holdfast backup --config /etc/holdfast/backup.json --json',
    ],
    exitCodes: [
      { code: 0, meaning: 'ended by a signal, or the VM that was taken over has ended' },
      usageExitCode,
      { code: 3, meaning: 'this host lacks something' },
      {
        code: 5,
        meaning: 'cannot listen; or the source of a VM that was resumed early was lost, and no fallback ran',
      },
      { code: 8, meaning: 'ended by a signal after a takeover that failed; the replica is kept' },
      { code: 14, meaning: 'the checkpoint that such a VM fell back to is damaged; it was ended' },
      { code: 130, meaning: 'ended by a second Ctrl-C' },
    ],
  });
};

const backup = async (command: BackupCommandSettings, json: boolean): Promise<number> => {
  const { keyFile, logLevel, ...input } = command;
  const settings = checkBackupSettings(input);
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const key = await loadKey(keyFile, console);
  const { Backup } = await loadDataPlane(() => import('../backup/backup.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: ending`);
    stop.abort();
  });
  let running: Backup | undefined;
  // Claims the name first: Backup.start removes what an earlier daemon of the same name left.
  await using _admin = await AdminServer.listen({
    runDir: settings.runDir,
    name: settings.name,
    handlers: {
      role: 'backup',
      commands: {
        status: () => started(running).status(),
        takeover: async () => {
          const current = started(running);
          const { phase, committedEpoch, takeover } = current.status();
          if (takeover !== undefined) return { report: takeover };
          if (committedEpoch === 0) throw noCheckpoint(phase);
          return { report: await current.takeOver() };
        },
      },
    },
  });
  running = await Backup.start({ ...settings, key, signal: stop.signal, logger });
  const endNarration = narrateBackup(running, console, settings);
  let failure: HoldfastError | undefined;
  running.on('took-over', () => {
    failure = undefined;
  });
  running.on('pages-lost', (error) => {
    failure = error;
  });
  running.on('fell-back', () => {
    failure = undefined;
  });
  running.on('fall-back-failed', (error) => {
    failure = error;
  });
  running.on('takeover-failed', (error) => {
    if (running?.status().phase !== 'ended') return; // a switchover; the VM stays with its primary
    failure = error;
    console.hint(
      `the checkpoint is kept; once the cause is gone: holdfast takeover ${settings.name} --run-dir ${settings.runDir}`,
    );
  });
  const outcome = await running.ended;
  endNarration();
  releaseSignals();
  if (failure !== undefined) throw failure;
  switch (outcome.kind) {
    case 'stopped':
      console.tell('ended', { event: 'ended', outcome });
      break;
    case 'left-running':
      console.tell(`ended; the VM runs on: process ${outcome.takeover.pid}, QMP ${outcome.takeover.qmp}`, {
        event: 'ended',
        outcome,
      });
      break;
    case 'vm-exited':
      console.tell(`the VM ended: ${outcome.reason}`, { event: 'ended', outcome });
      break;
  }
  return 0;
};

const started = (running: Backup | undefined): Backup => {
  if (running === undefined) throw noCheckpoint('starting');
  return running;
};

const noCheckpoint = (phase: string): NotProtectedError =>
  new NotProtectedError(`there is no checkpoint here to run (${phase})`, {
    cure: '`holdfast status` shows whether a VM is protected here.',
  });
