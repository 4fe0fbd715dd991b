/** `holdfast handoff`: a running VM goes on in another QEMU of this host. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { ConfigError } from '../errors.js';
import type { HandoffProgress, HandoffResult } from '../handoff/options.js';
import { VmRecords } from '../state/records.js';
import type { ProcessIdentity } from '../vm/process.js';
import { jsonOption, loadDataPlane, onStopSignals, runDirOption, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import { LaunchedVm } from './launched-vm.js';
import type { Finish } from './program.js';
import { sizeText } from './values.js';
import { daemonsOf, vmSocket } from './vm-socket.js';

interface HandoffFlags {
  readonly qmp?: string;
  readonly vm?: string;
  readonly binary?: string;
  readonly runDir: string;
  readonly json?: boolean;
}

export const addHandoffCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('handoff')
    .summary('give a running VM to another QEMU of this host')
    .description(
      'Upgrades QEMU under a running VM: starts another QEMU over the same memory, stops the VM for some ' +
        'milliseconds, gives it to the new one and ends the old one. Memory, disks, connections and names stay. ' +
        'It runs in one of them only, whatever fails. SIGINT or SIGTERM, while the new QEMU starts, gives up: ' +
        'the VM runs on where it is, and nothing else is left.',
    )
    .usage('(--qmp SOCKET | --vm NAME) [--binary PATH] [options] [-- qemu-system-… ARGUMENTS]')
    .argument('[qemu...]', 'the new QEMU with a command line of its own, after `--`')
    .option('--qmp <socket>', 'QMP socket of the VM')
    .option('--vm <name>', 'instead: the VM that Holdfast launched under this name')
    .option('--binary <path>', 'the new QEMU (default: the path of the one that runs, as it is now)')
    .addOption(runDirOption())
    .addOption(jsonOption())
    .action(async (qemu: readonly string[], flags: HandoffFlags) => {
      await handoff(qemu, flags);
      finish(0);
    });
  teach(command, {
    notes: `
The VM must keep its RAM in a shared file, as for \`holdfast primary\`, and not be
protected at the moment. Sockets on which QEMU listens, and its pid file, keep
their names; who was connected to them connects again. Command lines after \`--\`
may differ in what the guest does not see; where RAM is, is kept.`,
    examples: [
      'holdfast handoff --qmp /run/vm1.qmp',
      'holdfast handoff --vm web1 --binary /opt/qemu-10.0/bin/qemu-system-x86_64 --json',
    ],
    exitCodes: [
      { code: 0, meaning: 'the VM runs in the new QEMU' },
      usageExitCode,
      { code: 3, meaning: 'this VM cannot be handed over; nothing was changed' },
      { code: 4, meaning: 'a QEMU ended, or failed; the message says where the VM is' },
      { code: 5, meaning: 'the relay of the VM was not reached; nothing was changed' },
      { code: 8, meaning: 'the new QEMU did not take the VM; the message says where it is' },
      { code: 12, meaning: 'a QEMU did not answer in time; the message says where the VM is' },
      { code: 130, meaning: 'cancelled; the VM runs on in the QEMU that had it' },
    ],
  });
};

const handoff = async ([binary, ...argv]: readonly string[], flags: HandoffFlags): Promise<void> => {
  if (binary !== undefined && flags.binary !== undefined) {
    throw new ConfigError('--binary and `-- qemu-system-… …` exclude each other');
  }
  const qmp = resolve(await vmSocket(flags));
  const launched = await LaunchedVm.atSocket(qmp);
  await refuseWatched(qmp, flags.runDir);
  const console = new CommandConsole({ json: flags.json === true });
  const { handOff } = await loadDataPlane(() => import('../handoff/handoff.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: giving up, unless the VM is being handed over already`);
    stop.abort();
  });
  try {
    const result = await handOff({
      qmp,
      binary: binary ?? flags.binary,
      ...(binary === undefined ? {} : { argv }),
      signal: stop.signal,
      whenItRuns: moveRecords(launched, flags.runDir),
      onProgress: (progress) => narrateHandoff(progress, console),
    });
    const text = describeHandoff(result);
    console.tell(text, { event: 'ended', ...result, text });
  } finally {
    releaseSignals();
  }
};

/** Whoever finds the VM by what is written down finds it in its new process. */
export const moveRecords =
  (launched: LaunchedVm | undefined, runDir: string) =>
  async (from: ProcessIdentity, to: ProcessIdentity): Promise<void> => {
    await launched?.moveTo(to);
    for (const writer of ['primary', 'backup'] as const) {
      await new VmRecords(runDir, writer).moveTo(from, to);
    }
  };

/** A daemon that watches the VM's process would take its end for the VM's. @throws ConfigError */
export const refuseWatched = async (qmp: string, runDir: string): Promise<void> => {
  const [holder] = await daemonsOf(qmp, runDir);
  if (holder === undefined) return;
  const { name, role } = holder;
  throw role === 'primary'
    ? new ConfigError(`the VM is protected by the daemon '${name}', which has its monitor`, {
        cure: `\`holdfast detach ${name}\` first, and protect the VM again afterwards.`,
      })
    : new ConfigError(`the backup '${name}' has taken the VM over and watches its process`, {
        cure: 'End that daemon first (SIGTERM): the VM runs on.',
      });
};

export const narrateHandoff = (progress: HandoffProgress, console: CommandConsole): void => {
  switch (progress.step) {
    case 'starting': {
      const { from, binary, ramBytes, name } = progress;
      const vm = name === undefined ? 'the VM' : `'${name}'`;
      const text = `handing ${vm} (process ${from.pid}, QEMU ${from.version}, ${sizeText(ramBytes)} of RAM) over to ${binary}`;
      console.tell(text, { event: 'starting', from, binary, ramBytes });
      return;
    }
    case 'ready': {
      const { to, startMs } = progress;
      const text = `  process ${to.pid}, QEMU ${to.version}, is ready after ${Math.round(startMs)} ms; stopping the VM`;
      console.tell(text, { event: 'ready', to, startMs });
      return;
    }
    case 'runs': {
      const { to, downtimeMs } = progress;
      console.tell('  the new QEMU has it', { event: 'runs', to, downtimeMs });
      return;
    }
    case 'warning':
      console.warn(progress.error);
      return;
  }
};

const describeHandoff = ({ to, running, downtimeMs, parts, totalMs }: HandoffResult): string => {
  const ms = (value: number): string => `${value.toFixed(1)} ms`;
  const took = `${Math.round(totalMs).toLocaleString('en')} ms in all`;
  if (!running) return `handed over: process ${to.pid} has the VM, paused as it was; ${took}`;
  const { stopMs, stateMs, namesMs, resumeMs } = parts;
  return `handed over: the VM runs in process ${to.pid}; it stood still for ${ms(downtimeMs)} (stop ${ms(stopMs)}, state ${ms(stateMs)}, names and network ${ms(namesMs)}, resume ${ms(resumeMs)}); ${took}`;
};
