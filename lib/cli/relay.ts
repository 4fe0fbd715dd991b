/** `holdfast relay`: the packet gate between a VM and its network, as a process of its own. */
import { resolve } from 'node:path';
import { getSystemErrorName } from 'node:util';
import { type Command, Option } from 'commander';
import { ConfigError } from '../errors.js';
import type { RelayEvent } from '../native.js';
import {
  controlSocketOf,
  HELD_BYTES_MAX_DEFAULT,
  type RelaySpec,
  targetText,
} from '../output/relay-files.js';
import { identifyProcess } from '../vm/process.js';
import { jsonOption, loadDataPlane, onStopSignals, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import type { Finish } from './program.js';
import { parseInteger, parseSizeBytes, sizeText } from './values.js';

/** A frame that has arrived must always fit, and what lies in QEMU's socket at a boundary should. */
const HELD_BYTES_MIN = 128 << 10;

interface RelayFlags {
  readonly netdev: string;
  readonly tap?: string;
  readonly to?: string;
  readonly control?: string;
  readonly hold?: boolean;
  readonly heldMax: number;
  readonly pidOfVm?: number;
  readonly json?: boolean;
}

export const addRelayCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('relay')
    .summary('pass the packets of a VM on, and hold them when told to')
    .description(
      'Stands between QEMU and a tap device (or another socket) and passes packets both ways. While a VM is ' +
        'protected, `holdfast primary` has it hold what the guest sends until the backup has the checkpoint ' +
        'that explains it. VMs that Holdfast launches get their relays by themselves; start one by hand for a ' +
        'VM of your own. It outlives the daemons and ends with the VM.',
    )
    .requiredOption('--netdev <socket>', 'Unix socket on which QEMU listens: -netdev stream,server=on')
    .option('--tap <name>', 'tap device to pass the packets to; it must exist')
    .option('--to <socket>', 'or a Unix stream socket that listens, with QEMU’s framing')
    .option('--control <socket>', 'where `holdfast primary` reaches it (default: the --netdev socket + .ctl)')
    .option('--hold', 'hold from the first packet on, until a primary releases it')
    .addOption(
      new Option('--held-max <size>', 'limit of what is held; at it the guest has to wait')
        .argParser((text: string) => parseSizeBytes(text, '--held-max'))
        .default(HELD_BYTES_MAX_DEFAULT, sizeText(HELD_BYTES_MAX_DEFAULT)),
    )
    .addOption(
      new Option('--pid-of-vm <pid>', 'end when this process ends (default: only by a signal)').argParser(
        (text: string) => parseInteger(text, '--pid-of-vm'),
      ),
    )
    .addOption(jsonOption())
    .action(async (flags: RelayFlags) => finish(await relay(flags)));
  teach(command, {
    notes: `
QEMU's side, and the tap, which is set up as for -netdev tap,script=no:
  -netdev stream,id=net0,server=on,addr.type=unix,addr.path=/run/vm1/net0.sock
  -device virtio-net-pci,netdev=net0
  ip tuntap add dev tap0 mode tap; ip link set tap0 up master br0
The relay connects to QEMU, and again if QEMU is started anew. Beside the socket
it keeps a record, by which \`holdfast primary --qmp …\` finds it. Nothing is
dropped while it holds: at --held-max it stops reading, and the guest waits.`,
    examples: [
      'holdfast relay --netdev /run/vm1/net0.sock --tap tap0 --pid-of-vm 4187',
      'holdfast relay --netdev /run/vm1/net0.sock --to /run/switch.sock --held-max 64M --json',
    ],
    exitCodes: [
      { code: 0, meaning: 'the VM has ended, or SIGTERM or SIGINT: what was held is gone' },
      usageExitCode,
      { code: 4, meaning: 'there is no such VM process, or a system call failed' },
    ],
  });
};

const relay = async (flags: RelayFlags): Promise<number> => {
  const console = new CommandConsole({ json: flags.json === true });
  const spec = await specOf(flags);
  const { hostRelay } = await loadDataPlane(() => import('../output/relay-host.js'));
  const stop = new AbortController();
  const releaseSignals = onStopSignals(() => stop.abort());
  const ended = await hostRelay({
    spec,
    hold: flags.hold === true,
    signal: stop.signal,
    onReady: () =>
      console.tell(
        `relay between ${spec.socket} and the ${targetText(spec.target)}, process ${process.pid}`,
        {
          event: 'ready',
          pid: process.pid,
          control: spec.control,
        },
      ),
    onEvent: (event) => {
      const text = eventText(event, spec);
      if (text !== undefined) console.tell(text, { event: event.type, ...event });
    },
  });
  releaseSignals();
  console.tell(ended === 'vm-ended' ? 'the VM has ended' : 'ended by a signal', { event: 'ended', ended });
  return 0;
};

const specOf = async (flags: RelayFlags): Promise<RelaySpec> => {
  const { tap, to, pidOfVm } = flags;
  if ((tap === undefined) === (to === undefined)) {
    throw new ConfigError('where do the packets go? exactly one of --tap and --to is needed', {
      cure: '--tap NAME for a tap device of this host, --to SOCKET for a switch of your own.',
    });
  }
  if (flags.heldMax < HELD_BYTES_MIN) {
    throw new ConfigError(`--held-max: ${sizeText(flags.heldMax)} is less than ${sizeText(HELD_BYTES_MIN)}`);
  }
  const socket = resolve(flags.netdev);
  return {
    socket,
    control: flags.control === undefined ? controlSocketOf(socket) : resolve(flags.control),
    target: tap === undefined ? { unix: resolve(to!) } : { tap },
    heldBytesMax: flags.heldMax,
    vm: pidOfVm === undefined ? null : await identifyProcess(pidOfVm),
  };
};

const eventText = (event: RelayEvent, { target }: RelaySpec): string | undefined => {
  switch (event.type) {
    case 'connected':
      return 'QEMU is connected';
    case 'disconnected':
      return `QEMU's connection ended; ${event.discardedFrames} packets that were held are gone`;
    case 'target-lost':
      return `the ${targetText(target)} cannot be used (${getSystemErrorName(-event.errno)}); trying it again`;
    case 'target-found':
      return `the ${targetText(target)} is there`;
    case 'controller':
      return event.connected ? 'a primary is connected' : 'the primary has left; all stays as it is';
    case 'ended':
      return undefined; // told with the reason
  }
};
