/** `holdfast restore`: starts a VM from a checkpoint. */
import type { Command } from 'commander';
import type { MemoryArrival } from '../checkpoint/restore.js';
import { timeText } from '../migrate/words.js';
import { type RestoreCommandSettings, restoreCommandSettings, restoreFlags } from './checkpoint-settings.js';
import { jsonOption, loadDataPlane, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { LaunchedVm } from './launched-vm.js';
import { makeLogger } from './logger.js';
import type { Finish } from './program.js';
import { addFlags, gatherSettings } from './settings.js';

export const addRestoreCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('restore')
    .summary('start a VM from a checkpoint')
    .description(
      'Starts a VM as it was when the checkpoint was taken: memory, devices, disks. It runs at once; its memory ' +
        'follows, first what it touches, and this process ends when all is there. Everything is checked before it ' +
        'is used; a damaged checkpoint is refused by its number. The VM outlives this process, and can be ' +
        'checkpointed, protected and migrated like any that Holdfast launches.',
    )
    .usage('[options] DIR [-- qemu-system-x86_64 …]')
    .argument('<dir>', 'directory of the checkpoints')
    .argument('[qemu...]', "after --: QEMU's command line; default: that of the VM that was checkpointed");
  addFlags(command, restoreFlags, restoreCommandSettings);
  command.addOption(jsonOption());
  command.action(async (dir: string, qemu: readonly string[], flags: Record<string, unknown>) => {
    const settings = await gatherSettings(restoreCommandSettings, restoreFlags, flags, { dir });
    await restore(settings, qemu, flags.json === true);
    finish(0);
  });
  teach(command, {
    notes: `
The command line is that of the VM that was checkpointed; RAM file, monitors and what
starts a VM are put in by Holdfast. Disks are copied from the checkpoint to where the
command line has them, which must be free: --replace gives them another place. The
monitor of the restored VM is RUNDIR/vm-NAME/qmp.sock.`,
    examples: [
      'holdfast restore /var/checkpoints/vm1',
      'holdfast restore --at 12 --replace /srv/vm1.raw=/srv/vm1-restored.raw /var/checkpoints/vm1',
      'holdfast restore /var/checkpoints/vm1 -- qemu-system-x86_64 -M q35 -m 2G …',
    ],
    exitCodes: [
      { code: 0, meaning: 'the VM runs' },
      usageExitCode,
      { code: 4, meaning: 'QEMU could not be started' },
      { code: 7, meaning: 'no space for its RAM or disks' },
      { code: 8, meaning: 'QEMU did not load the device state' },
      { code: 14, meaning: 'the checkpoint is damaged; nothing runs' },
      { code: 130, meaning: 'cancelled; nothing runs' },
    ],
  });
};

const restore = async (
  settings: RestoreCommandSettings,
  qemu: readonly string[],
  json: boolean,
): Promise<void> => {
  const { dir, at, name, replace, onDemand, overwriteDisks, ramDir, runDir, logLevel } = settings;
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const { restoreCheckpoint } = await loadDataPlane(() => import('../checkpoint/restore.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    stop.abort();
    if (arriving !== undefined) console.hint(`${signal}: the VM runs; ending when its memory is there`);
  });
  let arriving: Promise<MemoryArrival> | undefined;
  try {
    const commandLine = qemu.length === 0 ? undefined : qemu;
    await LaunchedVm.restoring({ runDir, ramDir, name }, async (paths) => {
      const restored = await restoreCheckpoint({
        ...{ dir, at, commandLine, replace, onDemand, overwriteDisks, logger },
        ...{ ramPath: paths.ramPath, qmpPath: paths.qmpPath, logPath: paths.logPath },
        scratchDir: paths.dir,
        signal: stop.signal,
      });
      const { epoch, startMs, loadMs, totalMs, vm } = restored;
      console.tell(
        `checkpoint ${epoch} runs as '${name}' (process ${vm.pid}) after ${timeText(totalMs)}; QEMU took ${timeText(startMs)} of it; monitor: ${paths.qmpPath}`,
        {
          event: 'restored',
          ...{ epoch, name, pid: vm.pid, qmp: paths.qmpPath },
          ...{ startMs, loadMs, totalMs },
        },
      );
      arriving = restored.complete;
      return { process: vm.identity, commandLine: restored.commandLine };
    });
    const arrival = await arriving;
    if (onDemand && arrival !== undefined) {
      console.tell(arrivalText(arrival), { event: 'complete', ...arrival });
    }
  } finally {
    releaseSignals();
  }
};

const arrivalText = ({ pages, demandedPages, faultP99Us }: MemoryArrival): string =>
  `its memory is there: ${pages} pages, of which it waited for ${demandedPages} (99 % of them within ${timeText(faultP99Us / 1_000)})`;
