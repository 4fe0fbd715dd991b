/** `holdfast primary`: protects one VM onto a backup, until it ends, moves or is detached. */
import type { Command } from 'commander';
import { AdminServer } from '../admin/server.js';
import { ConfigError, NotProtectedError } from '../errors.js';
import type { Outcome } from '../primary/machine.js';
import { checkPrimarySettings } from '../primary/options.js';
import { describeOutcome, outcomeError } from '../primary/outcome.js';
import type { Primary, PrimaryStatus } from '../primary/primary.js';
import { jsonOption, loadDataPlane, loadKey, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { LaunchedVm } from './launched-vm.js';
import { makeLogger } from './logger.js';
import { narratePrimary } from './narrate-primary.js';
import type { Finish } from './program.js';
import {
  addFlags,
  gatherSettings,
  type PrimaryCommandSettings,
  primaryCommandSettings,
  primaryFlags,
} from './settings.js';

export const addPrimaryCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('primary')
    .summary('protect a VM of this host onto a backup')
    .description(
      'Protects one VM of this host onto a backup: a VM that runs already (--qmp), without a restart, or one ' +
        'that is launched (-- qemu-system-…) with what is needed added. SIGINT or SIGTERM detaches: the VM runs ' +
        'on, unprotected. A second SIGINT ends this process at once; the VM then stays as it is, and the same ' +
        'command takes it up again.',
    )
    .argument('[qemu...]', 'after --: the command line of a VM to launch')
    .usage('--backup HOST:PORT --key-file FILE (--qmp SOCKET | -- qemu-system-x86_64 …) [options]');
  addFlags(command, primaryFlags, primaryCommandSettings);
  command.addOption(jsonOption());
  command.action(async (qemu: string[], flags: Record<string, unknown>) => {
    const positional = qemu.length === 0 ? {} : { qemu };
    const settings = await gatherSettings(primaryCommandSettings, primaryFlags, flags, positional);
    finish(await primary(settings, flags.json === true));
  });
  teach(command, {
    notes: `
Durations are 25, 25ms, 2s, 1m; sizes 256M, 1G. A config file holds the same
settings in camelCase (backup, keyFile, intervalMs, captureMode, …; times in ms;
stagingMiB; replace as [{"from": …, "to": …}]), and the VM as qmp, or as
qemu: ["qemu-system-x86_64", …].

A running VM must keep its RAM in a shared file, and no other client may hold
the QMP socket:
  -object memory-backend-file,id=ram,size=1G,share=on,mem-path=/dev/shm/vm1
  -machine q35,memory-backend=ram -qmp unix:/run/vm1.qmp,server=on,wait=off
A launched VM gets both, and outlives this command.`,
    examples: [
      'holdfast primary --backup 10.0.0.2:7788 --key-file holdfast.key --qmp /run/vm1.qmp',
      'holdfast primary --backup 10.0.0.2:7788 --key-file holdfast.key --interval 50ms \\',
      '    --replace tap0=tap3 -- qemu-system-x86_64 -M q35 -m 1G -nodefaults -vga none -display none …',
      'holdfast primary --config /etc/holdfast/web1.json',
    ],
    exitCodes: [
      { code: 0, meaning: 'detached, switched over, or the VM ended by itself' },
      usageExitCode,
      { code: 3, meaning: 'this host or this VM lacks something; nothing was changed' },
      { code: 4, meaning: 'QEMU was lost or failed (the backup takes over)' },
      { code: 5, meaning: 'the backup was not reached, at the first attempt' },
      { code: 6, meaning: 'the keys of the two sides differ' },
      { code: 9, meaning: 'fenced: the VM runs on the backup; the one here is stopped' },
      { code: 130, meaning: 'ended by a second Ctrl-C' },
    ],
  });
};

const primary = async (command: PrimaryCommandSettings, json: boolean): Promise<number> => {
  const { keyFile, qmp, qemu, ramDir, logLevel, ...input } = command;
  const settings = checkPrimarySettings(input);
  if ((qmp === undefined) === (qemu === undefined)) {
    throw new ConfigError(
      qmp === undefined
        ? 'which VM? neither --qmp nor -- qemu-system-… is given'
        : '--qmp and -- qemu-system-… exclude each other',
      { cure: '--qmp SOCKET attaches to a running VM; -- qemu-system-x86_64 … launches one.' },
    );
  }
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const key = await loadKey(keyFile, console);
  const { Primary } = await loadDataPlane(() => import('../primary/primary.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: detaching; the VM runs on`);
    stop.abort();
  });
  let running: Primary | undefined;
  // Claims the name before anything is touched: two daemons must not meet in one VM.
  await using _admin = await AdminServer.listen({
    runDir: settings.runDir,
    name: settings.name,
    handlers: {
      role: 'primary',
      commands: {
        status: () => started(running).status(),
        switchover: async () => {
          const current = started(running);
          const { phase } = current.status();
          if (phase !== 'protected') throw notProtected(phase);
          const outcome = await current.switchover();
          const error = outcomeError(outcome);
          if (error !== undefined) throw error;
          return { outcome: { ...outcome, text: describeOutcome(outcome) } };
        },
        detach: async () => {
          const outcome = await started(running).detach();
          const error = outcomeError(outcome);
          if (error !== undefined) throw error;
          return { outcome: { ...outcome, text: describeOutcome(outcome) } };
        },
      },
    },
  });
  const vm = await findVm(command, stop.signal, console);
  try {
    running = await Primary.start({
      ...settings,
      key,
      qmp: vm?.qmpPath ?? qmp!,
      signal: stop.signal,
      logger,
    });
  } catch (error) {
    // A VM that was launched only to be protected, and can't be, leaves nothing behind.
    if (vm?.isNew) await vm.quit();
    throw error;
  }
  const endNarration = narratePrimary(running, console, settings);
  const outcome = await running.ended;
  endNarration();
  const runsOn = vm === undefined ? isLeftRunning(outcome) : await vm.leave(!isLeftRunning(outcome));
  const text = describeOutcome(outcome);
  const error = outcomeError(outcome);
  if (error === undefined || console.json) console.tell(text, { event: 'ended', outcome, text });
  if (runsOn) tellHowToGoOn(running.status(), console);
  releaseSignals();
  if (error !== undefined) throw error;
  return 0;
};

const started = (running: Primary | undefined): Primary => {
  if (running === undefined) throw notProtected('starting');
  return running;
};

const notProtected = (phase: string): NotProtectedError =>
  new NotProtectedError(`the VM is not protected now (${phase})`, {
    cure: 'Wait until `holdfast status` says protected.',
  });

/** The VM if Holdfast launched it, now or earlier; undefined for a stranger behind --qmp. */
const findVm = async (
  { qmp, qemu, runDir, ramDir, name }: PrimaryCommandSettings,
  signal: AbortSignal,
  console: CommandConsole,
): Promise<LaunchedVm | undefined> => {
  if (qemu === undefined) return await LaunchedVm.atSocket(qmp!);
  const { native } = await loadDataPlane(() => import('../native.js'));
  const vm = await LaunchedVm.ensure({ runDir, ramDir, name, commandLine: qemu, native, signal });
  console.tell(
    vm.isNew
      ? `launched the VM: process ${vm.pid}, QMP ${vm.qmpPath}, log ${vm.logPath}`
      : `the VM runs already: process ${vm.pid}, QMP ${vm.qmpPath}; attaching to it`,
    { event: vm.isNew ? 'launched' : 'found', pid: vm.pid, qmp: vm.qmpPath, log: vm.logPath },
  );
  return vm;
};

/** Outcomes after which the QEMU here is meant to exist. */
const isLeftRunning = (outcome: Outcome): boolean =>
  outcome.kind === 'detached' || outcome.kind === 'failed' || outcome.kind === 'fenced';

const tellHowToGoOn = ({ vm, outputHeld }: PrimaryStatus, console: CommandConsole): void => {
  const held = outputHeld ? ', its output held' : '';
  console.hint(
    `QEMU stays (process ${vm.pid}${held}); the same command, or --qmp ${vm.qmp}, protects the VM again`,
  );
};
