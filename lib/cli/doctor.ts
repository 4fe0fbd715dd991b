/** `holdfast doctor`: what this host can do, and the cure for what it can't. */
import type { Command } from 'commander';
import { renderDoctorReport, runDoctor } from '../doctor/doctor.js';
import type { NativeBinding } from '../native.js';
import { jsonOption, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import type { Finish } from './program.js';

interface DoctorFlags {
  readonly qemu?: string;
  readonly ramDir?: string;
  readonly json?: boolean;
}

export const addDoctorCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('doctor')
    .summary('check what this host can do')
    .description(
      'Checks what Holdfast needs of this host, by trying it: the kernel (dirty tracking), privileges, ' +
        'QEMU and its features, memory for RAM files. Each lack comes with its cure. Changes nothing.',
    )
    .option('--qemu <path>', 'QEMU binary to examine (default: qemu-system-x86_64 on PATH)')
    .option('--ram-dir <dir>', 'where RAM files and replicas will be kept (default: /dev/shm)')
    .addOption(jsonOption())
    .action(async (flags: DoctorFlags) => finish(await doctor(flags)));
  teach(command, {
    examples: [
      'holdfast doctor',
      'holdfast doctor --qemu /opt/qemu/bin/qemu-system-x86_64 --ram-dir /mnt/hugepages',
      'holdfast doctor --json | jq \'.checks[] | select(.status != "ok")\'',
    ],
    exitCodes: [
      { code: 0, meaning: 'this host can protect VMs (warnings are allowed)' },
      usageExitCode,
      { code: 3, meaning: 'something that is needed is missing' },
    ],
  });
};

const doctor = async (flags: DoctorFlags): Promise<number> => {
  const console = new CommandConsole({ json: flags.json === true });
  const report = await runDoctor({
    native: await loadNative(),
    ...(flags.qemu === undefined ? {} : { qemuBinary: flags.qemu }),
    ...(flags.ramDir === undefined ? {} : { ramDir: flags.ramDir }),
  });
  const color = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;
  console.tell(renderDoctorReport(report, { color }), { ...report });
  return report.ok ? 0 : 3;
};

/** An addon that can't be loaded is a finding, not a failure of this command. */
const loadNative = async (): Promise<NativeBinding | Error> => {
  try {
    return (await import('../native.js')).native;
  } catch (error) {
    return error as Error;
  }
};
