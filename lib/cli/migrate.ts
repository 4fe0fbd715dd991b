/** `holdfast migrate`: moves a running VM to another host. */
import type { Command } from 'commander';
import { AdminServer } from '../admin/server.js';
import { NotProtectedError } from '../errors.js';
import type { AnyMigration } from '../migrate/migration.js';
import { checkMigrationSettings } from '../migrate/options.js';
import { describeMigration, type MigrationOutcome, migrationError } from '../migrate/outcome.js';
import { chooseDestination } from './choose-destination.js';
import { jsonOption, loadDataPlane, loadKey, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { LaunchedVm } from './launched-vm.js';
import { makeLogger } from './logger.js';
import { checkEngine, startEngine } from './migrate-engine.js';
import { type MigrateCommandSettings, migrateCommandSettings, migrateFlags } from './migrate-settings.js';
import { narrateMigration } from './narrate-migration.js';
import type { Finish } from './program.js';
import { addFlags, gatherSettings } from './settings.js';
import { freeVmSocket } from './vm-socket.js';

export const addMigrateCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('migrate')
    .summary('move a running VM to another host')
    .description(
      'Moves a running VM to a host where a `holdfast backup` waits: its disks and memory are sent while it runs, ' +
        'in rounds, until the policy stops it; what is left is sent, it goes on over there, and the QEMU here ends. ' +
        'Nothing is lost, connections stay, and it runs on one side only, whatever fails. SIGINT or SIGTERM gives ' +
        'up: the VM runs on here. A second SIGINT ends this process at once.',
    )
    .usage('--to HOST:PORT --key-file FILE (--qmp SOCKET | --vm NAME) [options]');
  addFlags(command, migrateFlags, migrateCommandSettings);
  command.option('--dry-run', 'ask the destinations, say which would be chosen and why, and move nothing');
  command.addOption(jsonOption());
  command.action(async (flags: Record<string, unknown>) => {
    const settings = await gatherSettings(migrateCommandSettings, migrateFlags, flags);
    await migrate(settings, { json: flags.json === true, dryRun: flags.dryRun === true });
    finish(0);
  });
  teach(command, {
    notes: `
Policies, asked after each round:
  fixed  stops the VM only when what is left fits --downtime. A guest that writes
         faster than the link carries never gets there: given up at --rounds-max
         or --time-max, exit code 7
  mp     as fixed, but a guest whose rounds no longer shrink is stopped early: a
         longer downtime ends what would not end
  auto   weighs both by the measured write rate and link

Engines: holdfast sends memory by itself, and disks with it; qemu drives QEMU's own
migration by the same policies (no disks; a TCG guest's RAM must be of an odd size
under QEMU before 9, the error says which). --sender, --streams, --verify,
--device-state, --guest-clock, --move-disks and --ring-size are holdfast's.

Several --to are asked for free memory, idle CPUs, the way there and back, and the
rate that a probe of a quarter of a second finds; those that do not answer within
3 seconds are named and left out. With --dry-run only that is done.

With --skip-disk-pages, pages of the guest's page cache that are also on a disk,
replicated or attached read-only on both hosts, are sent as references of 32 bytes.
The destination reads them from its disk, and asks for those that differ there.

--resume-early stops the VM at once and runs it there within milliseconds,
whatever its size: its memory follows, demanded pages first. With auto, policy
auto may do so after some rounds. Until the last page is there the VM is lost
if this host, this process or the destination's dies: it cannot go back. A link
that is cut is waited for (--early-wait): the guest waits where it needs a page. With
--fallback DIR, checkpoints of it over there, it goes on from the newest of them if
this host or this process is lost: what came after that checkpoint is lost then.

Durations are 25, 25ms, 2s, 1m. A config file holds the same settings in
camelCase (to, keyFile, qmp, downtimeMs, timeMaxMs, …; times in ms). A running VM
must keep its RAM in a shared file, as for \`holdfast primary\`; no other client
may hold its QMP socket. One that is protected moves with \`holdfast switchover\`.`,
    examples: [
      'holdfast migrate --qmp /run/vm1.qmp --to 10.0.0.2:7788 --key-file holdfast.key',
      'holdfast migrate --qmp /run/vm1.qmp --to 10.0.0.2:7788 --key-file holdfast.key \\',
      '    --policy mp --downtime 100ms --replace tap0=tap3 --move-disks on --json',
      'holdfast migrate --vm web1 --to 10.0.0.2:7788 --key-file holdfast.key --resume-early',
      'holdfast migrate --vm web1 --to 10.0.0.2:7788 --key-file holdfast.key --resume-early \\',
      '    --fallback /srv/checkpoints/web1',
      'holdfast migrate --qmp /run/vm1.qmp --to 10.0.0.2:7788 --to 10.0.0.3:7788 \\',
      '    --key-file holdfast.key --dry-run',
      'holdfast migrate --qmp /run/vm1.qmp --to 10.0.0.2:7788 --key-file holdfast.key --engine qemu',
      'holdfast migrate --vm web1 --to 10.0.0.2:7788 --key-file holdfast.key',
    ],
    exitCodes: [
      { code: 0, meaning: 'the VM runs on the other host' },
      usageExitCode,
      { code: 3, meaning: 'this host or this VM lacks something, or the VM is paused; nothing was changed' },
      { code: 4, meaning: 'QEMU ended, or failed' },
      {
        code: 5,
        meaning: 'the destination was not reached, or lost; the message says where the VM is',
      },
      { code: 6, meaning: 'the keys of the two sides differ' },
      { code: 7, meaning: 'given up at a limit, or no space there; the VM runs on here' },
      { code: 8, meaning: 'the destination could not run it; the VM runs on here' },
      {
        code: 9,
        meaning: 'the VM runs on the destination, but its answer was lost; the one here is stopped',
      },
      { code: 130, meaning: 'cancelled; the VM runs on here, if the message does not say otherwise' },
    ],
  });
};

const migrate = async (
  command: MigrateCommandSettings,
  { json, dryRun }: { readonly json: boolean; readonly dryRun: boolean },
): Promise<void> => {
  const { keyFile, qmp: _qmp, vm: _vm, logLevel, to, engine, ...input } = command;
  checkEngine(command);
  checkMigrationSettings({ ...input, to: to[0] });
  const qmp = await freeVmSocket(
    command,
    (name) =>
      `\`holdfast switchover ${name}\` moves it to its backup; to move it elsewhere, \`holdfast detach ${name}\` first.`,
  );
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const key = await loadKey(keyFile, console);
  const start = await loadDataPlane(() => startEngine(engine));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: giving up, unless the VM is moving already`);
    stop.abort();
  });
  let running: AnyMigration | undefined;
  // Claims the name before anything is touched: two commands must not meet in one VM.
  await using _admin = await AdminServer.listen({
    runDir: command.runDir,
    name: command.name,
    handlers: { role: 'primary', commands: adminCommands(() => running) },
  });
  const chosen = await chooseDestination({ to, dryRun, qmp, key, console, signal: stop.signal });
  if (dryRun) return releaseSignals();
  const settings = checkMigrationSettings({ ...input, to: chosen });
  const launched = await LaunchedVm.atSocket(qmp);
  running = await start({ ...settings, key, qmp, signal: stop.signal, logger });
  const endNarration = narrateMigration(running, console, settings);
  const outcome = await running.ended;
  endNarration();
  releaseSignals();
  const text = describeMigration(outcome);
  if (outcome.kind === 'moved' || console.json) console.tell(text, { event: 'ended', outcome, text });
  await launched?.leave(
    outcome.kind === 'moved' || outcome.kind === 'vm-ended' || outcome.kind === 'vm-lost',
  );
  if (outcome.kind !== 'moved') throw migrationError(outcome);
};

/** `detach` is the operator's word that the VM may run on here, also where it may have been handed over. */
const adminCommands = (running: () => AnyMigration | undefined) => {
  const started = (): AnyMigration => {
    const migration = running();
    if (migration !== undefined) return migration;
    throw new NotProtectedError('the migration is starting', { cure: 'Ask again in a moment.' });
  };
  return {
    status: () => started().status(),
    detach: async () => ({ outcome: told(await started().release()) }),
  };
};

const told = (outcome: MigrationOutcome): object => ({ ...outcome, text: describeMigration(outcome) });
