/** What switchover, detach and takeover are made of: find the daemon that is meant, ask it, tell the result. */
import type { Command } from 'commander';
import { type AskOptions, askDaemon, viewDaemons } from '../admin/client.js';
import { type AdminCommand, adminSocketPath } from '../admin/protocol.js';
import { ConfigError, NoDaemonError } from '../errors.js';
import { jsonOption, runDirOption, teach, timeoutOption } from './command.js';
import { CommandConsole, type JsonObject } from './console.js';
import type { Finish } from './program.js';
import { parseDurationMs } from './values.js';

interface RequestFlags {
  readonly runDir: string;
  readonly timeout: number;
  readonly json?: boolean;
}

/** Time for a daemon to say who it is. */
const LOOK_TIMEOUT_MS = parseDurationMs('2s', 'look');

/** A command that one daemon carries out. */
export interface RequestCommand {
  readonly command: AdminCommand;
  /** Of the daemon that can do it. */
  readonly role: 'primary' | 'backup';
  readonly summary: string;
  readonly description: string;
  /** Default of --timeout. */
  readonly timeout: string;
  /** What is shown on a terminal until the answer is there. */
  readonly underWay: string;
  /** The answer, for a person. */
  readonly done: (name: string, result: JsonObject) => string;
  readonly help: Parameters<typeof teach>[1];
}

export const addRequestCommand = (program: Command, finish: Finish, spec: RequestCommand): void => {
  const command = program
    .command(spec.command)
    .summary(spec.summary)
    .description(spec.description)
    .argument('[name]', 'name of the daemon; not needed if only one of its role runs here')
    .addOption(runDirOption())
    .addOption(timeoutOption(spec.timeout))
    .addOption(jsonOption())
    .action(async (name: string | undefined, flags: RequestFlags) => {
      await request(spec, name, flags);
      finish(0);
    });
  teach(command, spec.help);
};

/** What the answer to switchover and detach says. */
export const outcomeText = (name: string, { outcome }: JsonObject): string =>
  `${name}: ${(outcome as { readonly text: string }).text}`;

/** @throws NoDaemonError, ConfigError (several daemons could be meant), and what the daemon answers */
const request = async (
  { command, role, underWay, done }: RequestCommand,
  name: string | undefined,
  flags: RequestFlags,
): Promise<void> => {
  const console = new CommandConsole({ json: flags.json === true });
  const { runDir } = flags;
  const target = name ?? (await onlyDaemon(runDir, role, command));
  console.live(`${target}: ${underWay} …`);
  const options: AskOptions = { timeoutMs: flags.timeout };
  try {
    const result = (await askDaemon(adminSocketPath(runDir, target), command, options)) as JsonObject;
    console.live('');
    console.tell(done(target, result), { name: target, ...result });
  } finally {
    console.live('');
  }
};

/** The one daemon of a role that runs here. */
const onlyDaemon = async (
  runDir: string,
  role: 'primary' | 'backup',
  command: AdminCommand,
): Promise<string> => {
  const views = await viewDaemons(runDir, { timeoutMs: LOOK_TIMEOUT_MS });
  const names = views.flatMap((view) => ('status' in view && view.status.role === role ? [view.name] : []));
  const [only, ...others] = names;
  if (only === undefined) {
    throw new NoDaemonError(`${command}: no ${role} runs here (${runDir})`, {
      cure: '`holdfast status` lists what runs; --run-dir must be the one it was started with.',
    });
  }
  if (others.length > 0) {
    throw new ConfigError(`${command}: several could be meant: ${names.join(', ')}`, {
      cure: `Name one: holdfast ${command} ${only}`,
    });
  }
  return only;
};
