/** What switchover, detach and takeover share: find the daemon that is meant, ask it, tell the result. */
import type { Command } from 'commander';
import { type AskOptions, askDaemon, viewDaemons } from '../admin/client.js';
import { type AdminCommand, adminSocketPath } from '../admin/protocol.js';
import { ConfigError, NoDaemonError } from '../errors.js';
import { jsonOption, runDirOption, timeoutOption } from './command.js';
import { CommandConsole, type JsonObject } from './console.js';
import { parseDurationMs } from './values.js';

export interface RequestFlags {
  readonly runDir: string;
  readonly timeout: number;
  readonly json?: boolean;
}

/** Time for a daemon to say who it is. */
const LOOK_TIMEOUT_MS = parseDurationMs('2s', 'look');

export const addRequestOptions = (command: Command, timeout: string): Command =>
  command
    .argument('[name]', 'name of the daemon; not needed if only one of its role runs here')
    .addOption(runDirOption())
    .addOption(timeoutOption(timeout))
    .addOption(jsonOption());

export interface Request {
  readonly command: AdminCommand;
  readonly role: 'primary' | 'backup';
  readonly name: string | undefined;
  readonly flags: RequestFlags;
  readonly begin: (name: string) => string;
  readonly done: (name: string, result: JsonObject) => string;
}

/** @throws NoDaemonError, ConfigError (several daemons could be meant), and what the daemon answers */
export const request = async ({ command, role, name, flags, begin, done }: Request): Promise<void> => {
  const console = new CommandConsole({ json: flags.json === true });
  const { runDir } = flags;
  const target = name ?? (await onlyDaemon(runDir, role, command));
  console.live(begin(target));
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
