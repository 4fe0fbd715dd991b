/** `holdfast primary`: protects one VM onto a backup, until it ends, moves or is detached. */
import type { Command } from 'commander';
import { type AdminHandlers, AdminServer } from '../admin/server.js';
import { ConfigError, NotProtectedError } from '../errors.js';
import type { Outcome } from '../primary/machine.js';
import { checkPrimarySettings } from '../primary/options.js';
import { describeOutcome, outcomeError } from '../primary/outcome.js';
import type { Primary, PrimaryStatus } from '../primary/primary.js';
import { checkTraceFile } from '../trace/write.js';
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
        'on, unprotected; but one whose lost backup may have taken over is left stopped. A second SIGINT ends ' +
        'this process at once; the VM then stays as it is, and the same command takes it up again.',
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
settings in camelCase (backup, keyFile, delayBudgetMs, captureMode, …; times in ms;
stagingMiB; replace as [{"from": …, "to": …}]), and the VM as qmp, or as
qemu: ["qemu-system-x86_64", …].

A running VM must keep its RAM in a shared file, and no other client may hold
the QMP socket:
  -object memory-backend-file,id=ram,size=1G,share=on,mem-path=/dev/shm/vm1
  -machine q35,memory-backend=ram -qmp unix:/run/vm1.qmp,server=on,wait=off
A launched VM gets both, and outlives this command.`,
    examples: [
      'holdfast primary --backup 10.0.0.2:7788 --key-file holdfast.key --qmp /run/vm1.qmp',
      'holdfast primary --backup 10.0.0.2:7788 --key-file holdfast.key --delay-budget 15ms \\',
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
      { code: 10, meaning: 'ended by a signal while the backup was lost: the VM is left stopped' },
      { code: 130, meaning: 'ended by a second Ctrl-C' },
    ],
  });
};

const primary = async (command: PrimaryCommandSettings, json: boolean): Promise<number> => {
  const { keyFile, qmp, qemu, ramDir, logLevel, trace, ...input } = command;
  const settings = checkPrimarySettings(input);
  if ((qmp === undefined) === (qemu === undefined)) {
    throw new ConfigError(
      qmp === undefined
        ? 'which VM? neither --qmp nor -- qemu-system-… is given'
        : '--qmp and -- qemu-system-… exclude each other',
      { cure: '--qmp SOCKET attaches to a running VM; -- qemu-system-x86_64 … launches one.' },
    );
  }
  if (trace !== undefined) await checkTraceFile(trace, '--trace');
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const key = await loadKey(keyFile, console);
  const { Primary } = await loadDataPlane(() => import('../primary/primary.js'));
  const stop = new AbortController();
  let running: Primary | undefined;
  let leaveHeld: () => void = () => {};
  const leftHeld = new Promise<'left-held'>((resolve) => {
    leaveHeld = () => resolve('left-held');
  });
  const releaseSignals = onStopSignals((signal) => {
    if (running !== undefined && isHeldAlone(running)) {
      leaveHeld();
    } else {
      console.hint(`${signal}: detaching; the VM runs on`);
      stop.abort();
    }
  });
  // Claims the name before anything is touched: two daemons must not meet in one VM.
  await using _admin = await AdminServer.listen({
    runDir: settings.runDir,
    name: settings.name,
    handlers: { role: 'primary', commands: adminCommands(() => running) },
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
    // A VM that was launched only to be protected, and can't be, leaves nothing behind. After a reboot
    // it may even be a second copy of one that its backup runs.
    if (vm?.isNew) await vm.quit();
    throw error;
  }
  tellMoved(running, console);
  let everConnected = false;
  running.on('phase', ({ phase }) => {
    everConnected ||= phase === 'syncing';
  });
  const endNarration = narratePrimary(running, console, settings);
  const endTrace = trace === undefined ? undefined : await startTrace(running, trace, console);
  const outcome = await Promise.race([running.ended, leftHeld]);
  endNarration();
  await endTrace?.();
  releaseSignals();
  const status = running.status();
  if (outcome === 'left-held') {
    console.tell(
      `QEMU is left stopped (process ${status.vm.pid}), its output held: the backup may be running the VM. This command takes it up again; \`holdfast detach\`, while it runs, lets the VM run on without a backup`,
      { event: 'left-held', vm: status.vm },
    );
    return NOT_PROTECTED;
  }
  const text = describeOutcome(outcome);
  const error = outcomeError(outcome);
  if (error === undefined || console.json) console.tell(text, { event: 'ended', outcome, text });
  if (vm?.isNew && outcome.kind === 'failed' && !everConnected) {
    await vm.quit();
    console.hint('the VM that was launched is ended again: there is no backup for it');
  } else {
    const leftRunning = isLeftRunning(outcome);
    const runsOn = vm === undefined ? leftRunning : await vm.leave(!leftRunning);
    if (runsOn) tellWhatIsLeft(status, outcome, console);
  }
  if (error !== undefined) throw error;
  return 0;
};

/** Loaded late, for it needs the addon. */
const startTrace = async (
  primary: Primary,
  path: string,
  console: CommandConsole,
): Promise<() => Promise<void>> => {
  const { traceEpochs } = await import('./trace-epochs.js');
  return await traceEpochs(primary, path, console);
};

const tellMoved = ({ movedDisks }: Primary, console: CommandConsole): void => {
  if (movedDisks === undefined) return;
  const { disks, pauseMs } = movedDisks;
  const ids = disks.map(({ id }) => id).join(', ');
  console.tell(`moved to disk servers: ${ids}; the VM stood still for ${pauseMs.toFixed(0)} ms`, {
    event: 'disks-moved',
    ...movedDisks,
  });
};

/** Exit code of NotProtectedError. */
const NOT_PROTECTED = 10;

/**
 * The backup is lost and may have taken over. A signal, which also comes when a host shuts down, is not
 * the operator's word that this side may go on (one active side): only `holdfast detach` is.
 */
const isHeldAlone = (primary: Primary): boolean => {
  const { phase, outputHeld, committedEpoch, vm } = primary.status();
  if (phase !== 'waiting' && phase !== 'connecting') return false;
  return outputHeld || (!vm.running && (committedEpoch > 0 || primary.mayRunThere));
};

const adminCommands = (running: () => Primary | undefined): AdminHandlers['commands'] => {
  const told = (outcome: Outcome): { readonly outcome: object } => {
    const error = outcomeError(outcome);
    if (error !== undefined) throw error;
    return { outcome: { ...outcome, text: describeOutcome(outcome) } };
  };
  return {
    status: () => started(running()).status(),
    switchover: async () => {
      const current = started(running());
      const { phase } = current.status();
      if (phase !== 'protected') throw notProtected(phase);
      return told(await current.switchover());
    },
    detach: async () => told(await started(running()).detach()),
  };
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
  { qmp, qemu, runDir, ramDir, name, gate, heldMiB, diskDir, ringMiB }: PrimaryCommandSettings,
  signal: AbortSignal,
  console: CommandConsole,
): Promise<LaunchedVm | undefined> => {
  if (qemu === undefined) return await LaunchedVm.atSocket(qmp!);
  const { native } = await loadDataPlane(() => import('../native.js'));
  const heldBytesMax = heldMiB * (1 << 20);
  const vm = await LaunchedVm.ensure({
    ...{ runDir, ramDir, name, commandLine: qemu, gate, heldBytesMax, native, signal },
    ...{ diskDir, ringBytes: ringMiB * (1 << 20) },
  });
  console.tell(
    vm.isNew
      ? `launched the VM: process ${vm.pid}, QMP ${vm.qmpPath}, log ${vm.logPath}`
      : `the VM runs already: process ${vm.pid}, QMP ${vm.qmpPath}; attaching to it`,
    {
      event: vm.isNew ? 'launched' : 'found',
      ...{ pid: vm.pid, qmp: vm.qmpPath, log: vm.logPath, relays: vm.relays, disks: vm.disks },
    },
  );
  for (const { netdev, reason } of vm.notRelayed) {
    console.hint(`netdev ${netdev} does not go over a relay: ${reason}`);
  }
  return vm;
};

/** Outcomes after which the QEMU here is meant to exist. */
const isLeftRunning = (outcome: Outcome): boolean =>
  outcome.kind === 'detached' || outcome.kind === 'failed' || outcome.kind === 'fenced';

const tellWhatIsLeft = (
  { vm, outputHeld }: PrimaryStatus,
  outcome: Outcome,
  console: CommandConsole,
): void => {
  if (outcome.kind === 'fenced') {
    console.hint(
      `QEMU is left stopped (process ${vm.pid}), so that nothing is lost; end it with: kill ${vm.pid}`,
    );
    return;
  }
  const held = outputHeld ? ', its output held' : '';
  console.hint(
    `QEMU is left running (process ${vm.pid}${held}); this command, or one with --qmp ${vm.qmp}, protects it again`,
  );
};
