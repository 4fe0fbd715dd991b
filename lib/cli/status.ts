/** `holdfast status`: what the daemons of this host are doing. */
import { setTimeout as delay } from 'node:timers/promises';
import { type Command, Option } from 'commander';
import { type DaemonView, viewDaemons } from '../admin/client.js';
import { NoDaemonError } from '../errors.js';
import { jsonOption, runDirOption, teach, timeoutOption, usageExitCode } from './command.js';
import { CommandConsole, type JsonObject } from './console.js';
import type { Finish } from './program.js';
import { daemonText, isProtected } from './render.js';
import { parseDurationMs } from './values.js';

interface StatusFlags {
  readonly runDir: string;
  readonly timeout: number;
  readonly watch?: boolean;
  readonly every: number;
  readonly json?: boolean;
}

export const addStatusCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('status')
    .summary('show what the daemons of this host are doing')
    .description(
      'Asks the daemons of this host, primaries and backups, what they are doing: phase, VM, term, epochs, ' +
        'and what an epoch costs (pause, send, acknowledgement, output delay; median and 99th percentile).',
    )
    .argument('[name]', 'ask this daemon only')
    .option('--watch', 'show it again and again, until Ctrl-C')
    .addOption(
      new Option('--every <duration>', 'with --watch: how often')
        .argParser((text: string) => parseDurationMs(text, '--every'))
        .default(1_000, '1s'),
    )
    .addOption(runDirOption())
    .addOption(timeoutOption('2s'))
    .addOption(jsonOption())
    .action(async (name: string | undefined, flags: StatusFlags) => finish(await status(name, flags)));
  teach(command, {
    examples: [
      'holdfast status',
      'holdfast status web1 --watch',
      "holdfast status --json | jq '.daemons[].distributions.pauseMs'",
    ],
    exitCodes: [
      { code: 0, meaning: 'every daemon asked protects its VM, or (a backup) runs it' },
      usageExitCode,
      { code: 10, meaning: 'at least one does not: connecting, syncing, waiting, idle, in grace, ended' },
      { code: 11, meaning: 'no daemon runs here, or none of this name' },
      { code: 12, meaning: 'a daemon did not answer within --timeout' },
    ],
    notes: 'With --watch the exit code is 0 when you end it.',
  });
};

const status = async (name: string | undefined, flags: StatusFlags): Promise<number> => {
  const console = new CommandConsole({ json: flags.json === true });
  const look = (): Promise<readonly DaemonView[]> =>
    viewDaemons(flags.runDir, { timeoutMs: flags.timeout }, name === undefined ? undefined : [name]);
  if (flags.watch === true) return await watch(look, flags, console);
  const views = await look();
  const [first] = views;
  if (first === undefined) throw nothingRuns(flags.runDir);
  if (name !== undefined && 'error' in first) throw first.error;
  console.tell(views.map(daemonText).join('\n\n'), toJson(views));
  return exitCodeOf(views);
};

const nothingRuns = (runDir: string): NoDaemonError =>
  new NoDaemonError(`no daemon runs here (${runDir})`, {
    cure: 'Start one with `holdfast backup` or `holdfast primary`; --run-dir must be the one it was started with.',
  });

const toJson = (views: readonly DaemonView[]): JsonObject => ({
  daemons: views.map((view) =>
    'status' in view
      ? { ...view.status, protected: isProtected(view.status) }
      : { name: view.name, protected: false, error: view.error.toJSON() },
  ),
});

const exitCodeOf = (views: readonly DaemonView[]): number => {
  const failed = views.find((view) => 'error' in view);
  if (failed !== undefined) return failed.error.exitCode;
  return views.every((view) => 'status' in view && isProtected(view.status)) ? 0 : 10;
};

const watch = async (
  look: () => Promise<readonly DaemonView[]>,
  flags: StatusFlags,
  console: CommandConsole,
): Promise<number> => {
  const ended = new AbortController();
  const end = (): void => ended.abort();
  process.once('SIGINT', end);
  process.once('SIGTERM', end);
  while (!ended.signal.aborted) {
    const views = await look();
    const text = views.length === 0 ? nothingRuns(flags.runDir).message : views.map(daemonText).join('\n\n');
    if (console.isLive) console.live(`${text}\n`);
    else console.tell(`${text}\n`, { at: new Date().toISOString(), ...toJson(views) });
    await delay(flags.every, undefined, { signal: ended.signal }).catch(() => {});
  }
  console.endLive();
  return 0;
};
