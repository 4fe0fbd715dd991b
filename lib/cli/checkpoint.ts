/** `holdfast checkpoint`: a running VM onto disk, once or again and again. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import type { Checkpointing } from '../checkpoint/checkpointing.js';
import { CancelledError, toHoldfastError, VmGoneError } from '../errors.js';
import { checkpointByHandoff } from './checkpoint-handoff.js';
import {
  type CheckpointCommandSettings,
  checkpointCommandSettings,
  checkpointFlags,
} from './checkpoint-settings.js';
import { jsonOption, loadDataPlane, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { makeLogger } from './logger.js';
import { narrateCheckpoints } from './narrate-checkpoints.js';
import type { Finish } from './program.js';
import { addFlags, gatherSettings } from './settings.js';
import { freeVmSocket } from './vm-socket.js';

export const addCheckpointCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('checkpoint')
    .summary('save a running VM to disk, and let it run on')
    .description(
      'Takes a checkpoint of a running VM into a directory: memory, devices and disks of one moment. The VM stands ' +
        'still only while that moment is captured, for some milliseconds; writing goes on behind it. The first one ' +
        'has all of the memory, later ones of the same run what has changed. SIGINT or SIGTERM ends it: what is not ' +
        'complete is given up, and the VM runs on.',
    )
    .usage('(--qmp SOCKET | --vm NAME) [--method capture|handoff] [options] DIR')
    .argument('<dir>', 'directory of the checkpoints; made if it is not there');
  addFlags(command, checkpointFlags, checkpointCommandSettings);
  command.addOption(jsonOption());
  command.action(async (dir: string, flags: Record<string, unknown>) => {
    const settings = await gatherSettings(checkpointCommandSettings, checkpointFlags, flags, { dir });
    if (settings.method === 'handoff') await checkpointByHandoff(settings, flags, command);
    else await checkpoint(settings, flags.json === true);
    finish(0);
  });
  teach(command, {
    notes: `
A checkpoint is there, whole, or not at all, whenever this process or the host ends.
Those of one VM go into one directory, of which nothing else writes. A running VM
must keep its RAM in a shared file, as for \`holdfast primary\`; no other client may
hold its QMP socket. docs/checkpoints.md has the rest.

Two methods. With capture the VM stays in its QEMU: what it writes is tracked, so later
checkpoints are increments. With handoff a new QEMU is started, the VM is stopped and
goes on there, and the one that had it, which stands still, is saved; then it ends. So
each is a full one, of one VM at a time: --every needs capture. Disks must be raw
images. Both tell the same phases: all, save state, copy file, commit, migrate.`,
    examples: [
      'holdfast checkpoint --qmp /run/vm1.qmp /var/checkpoints/vm1',
      'holdfast checkpoint --qmp /run/vm1.qmp --every 10s --keep 5 /var/checkpoints/vm1',
      'holdfast checkpoint --qmp /run/vm1.qmp --method handoff --json /var/checkpoints/vm1',
    ],
    exitCodes: [
      { code: 0, meaning: 'taken; or, with --every, ended by a signal' },
      usageExitCode,
      { code: 3, meaning: 'this host or this VM lacks something, or the VM is paused; nothing was changed' },
      { code: 4, meaning: 'QEMU ended, or failed' },
      { code: 5, meaning: 'handoff: the relay of the VM was not reached; nothing was changed' },
      { code: 7, meaning: 'no space; the checkpoints before are whole' },
      { code: 8, meaning: 'handoff: the new QEMU did not take the VM; the message says where it is' },
      { code: 12, meaning: 'a QEMU did not answer in time; the message says where the VM is' },
      { code: 13, meaning: 'a disk cannot be checkpointed, or failed; the message says what of it is left' },
      { code: 130, meaning: 'cancelled before there was one; the VM runs on' },
    ],
  });
};

const checkpoint = async (command: CheckpointCommandSettings, json: boolean): Promise<void> => {
  const { qmp: _qmp, vm: _vm, method: _method, everyMs, logLevel, ...settings } = command;
  const qmp = await freeVmSocket(command);
  const console = new CommandConsole({ json });
  const logger = makeLogger(logLevel, console);
  const { Checkpointing: Engine } = await loadDataPlane(() => import('../checkpoint/checkpointing.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: ending; the VM runs on`);
    stop.abort();
  });
  try {
    await using running = await Engine.start({ ...settings, qmp, signal: stop.signal, logger });
    const endNarration = narrateCheckpoints(running, console);
    try {
      await takeAll(running, everyMs, stop.signal, (error) => console.warn(toHoldfastError(error)));
    } catch (error) {
      running.cancel(); // no merging behind a failure
      throw error;
    } finally {
      await running.idle(); // what comes behind the last one is told as well: a disk that stays on its overlay
      endNarration();
    }
  } finally {
    releaseSignals();
  }
};

/** Failures in a row after which `--every` gives up: a full disk may be emptied meanwhile. */
const FAILURES_MAX = 5;

const takeAll = async (
  running: Checkpointing,
  everyMs: number | undefined,
  signal: AbortSignal,
  onFailure: (error: unknown) => void,
): Promise<void> => {
  if (everyMs === undefined) {
    await running.take();
    return;
  }
  let failures = 0;
  for (let nextMs = performance.now(); ; nextMs = Math.max(nextMs + everyMs, performance.now())) {
    const isGone = await Promise.race([
      running.vmGone.then(() => true),
      delay(Math.max(0, nextMs - performance.now()), false, { signal }).catch(() => false),
    ]);
    if (signal.aborted) return;
    if (isGone)
      throw new VmGoneError('QEMU has ended', { cure: '`holdfast restore` starts it from a checkpoint.' });
    try {
      await running.take();
      failures = 0;
    } catch (error) {
      if (signal.aborted || error instanceof CancelledError) return;
      failures += 1;
      if (failures >= FAILURES_MAX) throw error;
      onFailure(error);
    }
  }
};
