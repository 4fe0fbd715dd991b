/** `holdfast trace`: which core ran which vCPU, and which guest process, for a while. */
import { type Command, Option } from 'commander';
import { ConfigError } from '../errors.js';
import type { ThreadIdentity } from '../trace/document.js';
import { AGENT_RATE_PER_S } from '../trace/guest-agent-source.js';
import { RUN_QUEUE_RATE_PER_S } from '../trace/guest-run-queues.js';
import { readGuestSymbols, symbolsCommand } from '../trace/guest-symbols.js';
import type { TraceOptions } from '../trace/record.js';
import { RING_BYTES_DEFAULT } from '../trace/sched-recording.js';
import { summarize } from '../trace/summary.js';
import { lossText, summaryText } from '../trace/words.js';
import { checkTraceFile, writeTrace } from '../trace/write.js';
import { jsonOption, loadDataPlane, onStopSignals, teach } from './command.js';
import { CommandConsole } from './console.js';
import type { Finish } from './program.js';
import { parseInteger, parseSizeBytes, sizeText } from './values.js';

const RATE_MAX = 10_000;
const AGENT_RATE_MAX = 20;
const SECONDS_MAX = 86_400;
const BUFFER_BYTES_MIN = 4096;
const BUFFER_BYTES_MAX = 256 << 20;

interface TraceFlags {
  readonly qmp: string;
  readonly seconds?: number;
  readonly guest?: boolean;
  readonly guestSymbols?: string;
  readonly guestAgent?: string;
  readonly guestRate?: number;
  readonly allThreads?: boolean;
  readonly buffer: number;
  readonly out?: string;
  readonly json?: boolean;
}

export const addTraceCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('trace')
    .summary('show which core ran which vCPU, and which guest process')
    .description(
      "Records the kernel's scheduler events of a VM's vCPUs: which core ran each, when it moved to another, how " +
        'long it waited for one; with --guest also which process the guest ran on it. Prints a summary; --out ' +
        'writes the time line. Ends after --seconds, or with SIGINT or SIGTERM, and keeps what was recorded.',
    )
    .requiredOption('--qmp <socket>', 'QMP socket of the VM; no other client may hold it')
    .addOption(
      new Option('--seconds <n>', 'how long to record (default: until Ctrl-C)').argParser((text: string) =>
        parseSeconds(text),
      ),
    )
    .option('--guest', "also the guest's processes; by --guest-symbols or --guest-agent")
    .option('--guest-symbols <file>', "lines of the guest's /proc/kallsyms; implies --guest")
    .option('--guest-agent <socket>', "or ask the guest's qemu-guest-agent; implies --guest")
    .addOption(
      new Option(
        '--guest-rate <n>',
        `how often a second to look which process runs (default: ${RUN_QUEUE_RATE_PER_S}; by the agent ${AGENT_RATE_PER_S})`,
      ).argParser((text: string) => bounded(parseInteger(text, '--guest-rate'), 1, RATE_MAX, '--guest-rate')),
    )
    .option('--all-threads', "also QEMU's other threads: main loop, workers")
    .addOption(
      new Option('--buffer <size>', "the kernel's buffer of each core: a power of two")
        .argParser(parseBuffer)
        .default(RING_BYTES_DEFAULT, sizeText(RING_BYTES_DEFAULT)),
    )
    .option('--out <file>', 'write the time line: .html a page, .json Chrome trace events (Perfetto)')
    .addOption(jsonOption())
    .action(async (flags: TraceFlags) => finish(await trace(flags)));
  teach(command, {
    notes: `
Where the guest's processes come from: its RAM file is read, at --guest-rate, where
its kernel's symbols say that the run queues are. Nothing runs in the guest. The
symbols change with each boot; take them in the guest, as root, into a file here:
  ${symbolsCommand}
What runs for less than 1/--guest-rate seconds may not be seen. --guest-agent asks
the guest for its /proc instead: of each interval only who used most of a vCPU is
shown, and asking costs the guest milliseconds. The host kernel's events miss nothing; what found a full buffer is counted and told.`,
    examples: [
      'holdfast trace --qmp /run/vm1.qmp --seconds 10',
      'holdfast trace --qmp /run/vm1.qmp --seconds 5 --guest-symbols vm1.kallsyms --out vm1.html',
      'holdfast trace --qmp /run/vm1.qmp --seconds 30 --guest-agent /run/vm1.qga --out vm1.html',
      'holdfast trace --qmp /run/vm1.qmp --all-threads --out vm1.json --json',
    ],
    exitCodes: [
      { code: 0, meaning: 'recorded, also if it was ended early' },
      { code: 2, meaning: 'usage or flag error; the symbols do not fit the guest' },
      {
        code: 3,
        meaning: 'this host does not let us trace; or the RAM of the VM is no shared file (--guest)',
      },
      { code: 4, meaning: 'QEMU, or the guest agent, cannot be reached; a system call failed' },
      { code: 7, meaning: 'there is no space for --out' },
    ],
  });
};

const bounded = (value: number, min: number, max: number, flag: string): number => {
  if (value >= min && value <= max) return value;
  throw new ConfigError(`${flag}: ${value} is not from ${min} to ${max}`);
};

const parseSeconds = (text: string): number => {
  const seconds = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || seconds === 0 || seconds > SECONDS_MAX) {
    throw new ConfigError(`--seconds: '${text}' is not a number of seconds up to ${SECONDS_MAX}`);
  }
  return seconds;
};

const parseBuffer = (text: string): number => {
  const bytes = parseSizeBytes(text, '--buffer');
  if (bytes < BUFFER_BYTES_MIN || bytes > BUFFER_BYTES_MAX || !Number.isInteger(Math.log2(bytes))) {
    throw new ConfigError(`--buffer: ${sizeText(bytes)} is not a power of two from 4 KiB to 256 MiB`);
  }
  return bytes;
};

/** @throws ConfigError */
const guestOf = async (flags: TraceFlags): Promise<TraceOptions['guest']> => {
  const { guest, guestSymbols, guestAgent, guestRate: ratePerS } = flags;
  if (guestSymbols !== undefined && guestAgent !== undefined) {
    throw new ConfigError('--guest-symbols and --guest-agent exclude each other', {
      cure: 'Symbols see more, and cost the guest nothing.',
    });
  }
  if (guestSymbols !== undefined) return { symbols: await readGuestSymbols(guestSymbols), ratePerS };
  if (guestAgent !== undefined) {
    if (ratePerS !== undefined) bounded(ratePerS, 1, AGENT_RATE_MAX, '--guest-rate, by the agent');
    return { agent: guestAgent, ratePerS };
  }
  if (guest !== true) return undefined;
  throw new ConfigError('--guest: neither --guest-symbols nor --guest-agent is given', {
    cure: `Symbols: in the guest, as root, ${symbolsCommand} — into a file that --guest-symbols names.`,
  });
};

const trace = async (flags: TraceFlags): Promise<number> => {
  const console = new CommandConsole({ json: flags.json === true });
  if (flags.out !== undefined) await checkTraceFile(flags.out, '--out');
  const guest = await guestOf(flags);
  const { recordTrace } = await loadDataPlane(() => import('../trace/record.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals((signal) => {
    console.hint(`${signal}: ending the recording`);
    stop.abort();
  });
  const onRecording = (threads: readonly ThreadIdentity[]): void => {
    const text = `recording ${threads.length} threads${flags.seconds === undefined ? '; Ctrl-C ends it' : ` for ${flags.seconds} s`}`;
    console.tell(text, { event: 'recording', threads });
  };
  const recorded = await recordTrace({
    qmp: flags.qmp,
    seconds: flags.seconds,
    signal: stop.signal,
    allThreads: flags.allThreads,
    guest,
    ringBytes: flags.buffer,
    onRecording,
  });
  releaseSignals();
  const summary = summarize(recorded);
  console.tell(summaryText(summary), { event: 'recorded', ...summary });
  const loss = lossText(summary);
  if (loss !== undefined && console.json) console.hint(`warning: the trace is ${loss}`);
  if (flags.out !== undefined) {
    await writeTrace(recorded, flags.out);
    console.tell(`time line: ${flags.out}`, { event: 'written', path: flags.out });
  }
  return 0;
};
