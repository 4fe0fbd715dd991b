/** `holdfast checkpoint --method handoff`: another QEMU goes on with the VM, and the one that had it is saved. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { HandoffCheckpointReport } from '../checkpoint/by-handoff.js';
import { ConfigError } from '../errors.js';
import { bytesText, timeText } from '../migrate/words.js';
import type { CheckpointCommandSettings } from './checkpoint-settings.js';
import { loadDataPlane, onStopSignals } from './command.js';
import { CommandConsole } from './console.js';
import { moveRecords, narrateHandoff, refuseWatched } from './handoff.js';
import { LaunchedVm } from './launched-vm.js';
import { makeLogger } from './logger.js';
import { phasesText, upkeepText } from './narrate-checkpoints.js';
import { vmSocket } from './vm-socket.js';

export const checkpointByHandoff = async (
  settings: CheckpointCommandSettings,
  flags: Readonly<Record<string, unknown>>,
  command: Command,
): Promise<void> => {
  refuseForeign(settings, command);
  const { dir, keep, runDir, logLevel } = settings;
  const qmp = resolve(await vmSocket(settings));
  const launched = await LaunchedVm.atSocket(qmp);
  await refuseWatched(qmp, runDir);
  const console = new CommandConsole({ json: flags.json === true });
  const { takeByHandoff } = await loadDataPlane(() => import('../checkpoint/by-handoff.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: giving up, unless the VM is being handed over already`);
    stop.abort();
  });
  try {
    const report = await takeByHandoff({
      ...{ qmp, dir, keep, signal: stop.signal, logger: makeLogger(logLevel, console) },
      whenItRuns: moveRecords(launched, runDir),
      onProgress: (progress) => narrateHandoff(progress, console),
      onUpkeep: (step) => console.tell(`  ${upkeepText(step)}`, { event: 'upkeep', ...step }),
      onWarning: (error) => console.warn(error),
    });
    console.tell(reportText(report), { event: 'taken', method: 'handoff', ...report });
  } finally {
    releaseSignals();
  }
};

/** What only a VM that stays in its process has a use for. @throws ConfigError */
const refuseForeign = ({ everyMs }: CheckpointCommandSettings, command: Command): void => {
  if (everyMs !== undefined) {
    throw new ConfigError('--every goes with --method capture, not with handoff', {
      cure: 'Each hand-off starts another QEMU and saves all of memory. Leave --every out, or --method handoff.',
    });
  }
  for (const [name, flag] of [
    ['staging', '--staging'],
    ['copyThreads', '--copy-threads'],
  ] as const) {
    if (command.getOptionValueSource(name) !== 'cli') continue;
    throw new ConfigError(`${flag} goes with --method capture, not with handoff`, {
      cure: 'It is for the pauses of captures; what a hand-off saves is a QEMU that stands still. Leave it out.',
    });
  }
};

const reportText = (report: HandoffCheckpointReport): string => {
  const { epoch, pages, bytes, allMs, pauseMs, to } = report;
  return [
    `checkpoint ${epoch} (all of RAM): ${pages} pages (${bytesText(bytes)}) in ${timeText(allMs)}; the VM stood still for ${timeText(pauseMs)}, and runs in process ${to.pid}`,
    phasesText(report),
  ].join('\n');
};
