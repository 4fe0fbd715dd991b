/** The whole command line: the commands, and how a run of one of them ends. */
import { Command, CommanderError } from 'commander';
import { ConfigError } from '../errors.js';
import { addBackupCommand } from './backup.js';
import { addCheckpointCommand } from './checkpoint.js';
import { addCheckpointsCommand } from './checkpoints.js';
import { asHoldfastError } from './command.js';
import { CommandConsole } from './console.js';
import { addDetachCommand } from './detach.js';
import { addDoctorCommand } from './doctor.js';
import { addMigrateCommand } from './migrate.js';
import { addPrimaryCommand } from './primary.js';
import { addRelayCommand } from './relay.js';
import { addRestoreCommand } from './restore.js';
import { addStatusCommand } from './status.js';
import { addSwitchoverCommand } from './switchover.js';
import { addTakeoverCommand } from './takeover.js';
import { addTraceCommand } from './trace.js';
import { addVerifyCommand } from './verify.js';
import { packageVersion } from './version.js';

/** A command's own result is its exit code; what it throws has one too. */
export type Finish = (exitCode: number) => void;

export const buildProgram = (finish: Finish): Command => {
  const program = new Command('holdfast')
    .description(
      'Keeps a QEMU virtual machine running when its host dies: checkpoints it many times a second onto a ' +
        'backup host, holds its output until the checkpoint is there, and resumes it there within milliseconds.',
    )
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'teach this command')
    .helpCommand('help [command]', 'teach a command')
    .showHelpAfterError(false)
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ outputError: () => {} }); // runCli reports it, in the form that was asked for
  addDoctorCommand(program, finish);
  addBackupCommand(program, finish);
  addPrimaryCommand(program, finish);
  addRelayCommand(program, finish);
  addStatusCommand(program, finish);
  addSwitchoverCommand(program, finish);
  addMigrateCommand(program, finish);
  addDetachCommand(program, finish);
  addTakeoverCommand(program, finish);
  addTraceCommand(program, finish);
  addCheckpointCommand(program, finish);
  addCheckpointsCommand(program, finish);
  addRestoreCommand(program, finish);
  addVerifyCommand(program, finish);
  program.addHelpText(
    'after',
    `
Two hosts in four steps:
  both:     holdfast doctor
  one:      head -c 32 /dev/urandom | base64 > holdfast.key      (and copy it to the other)
  backup:   holdfast backup --listen 10.0.0.2:7788 --key-file holdfast.key
  primary:  holdfast primary --backup 10.0.0.2:7788 --key-file holdfast.key --qmp /run/vm.qmp

\`holdfast COMMAND --help\` teaches each command, its settings and its exit codes.
`,
  );
  return program;
};

/**
 * Runs one command line, without the node and script words.
 * @returns the exit code
 */
export const runCli = async (argv: readonly string[]): Promise<number> => {
  let exitCode = 0;
  const program = buildProgram((code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0; // help and version
    const separator = argv.indexOf('--');
    const own = separator === -1 ? argv : argv.slice(0, separator);
    const console = new CommandConsole({ json: own.includes('--json') });
    const failure = error instanceof CommanderError ? usageError(error, own) : asHoldfastError(error);
    // Without a command commander has printed the help, which says more than an error.
    if (!(error instanceof CommanderError && error.code === 'commander.help')) console.fail(failure);
    return failure.exitCode;
  }
};

const usageError = (error: CommanderError, argv: readonly string[]): ConfigError => {
  const command = argv.find((word) => /^[a-z]+$/.test(word));
  const known = error.code === 'commander.unknownCommand' || command === undefined ? '' : ` ${command}`;
  return new ConfigError(error.message.replace(/^error: /, '').replaceAll('\n', ' '), {
    cure: `\`holdfast${known} --help\` shows what there is.`,
  });
};
