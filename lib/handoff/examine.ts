/** What a hand-off has to know about a running VM before it touches anything. */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { ConfigError, QmpError, UnsupportedVmError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import { relaysOf, type VmRelay } from '../output/relay-files.js';
import type { QmpClient } from '../qmp/client.js';
import { describeVm, type VmDescription } from '../vm/describe.js';
import { forHandoff, type HandoffCommandLine, temporaryOf } from './command-line.js';
import { endLeftover } from './leftover.js';
import type { HandoffApart } from './options.js';
import { assertHandoff } from './preflight.js';
import { openRamFile, type RamFile } from './ram-file.js';
import { HandoffTaps, tapNameFor } from './taps.js';

export interface Examined {
  readonly vm: VmDescription;
  readonly wasRunning: boolean;
  readonly line: HandoffCommandLine;
  /** Monitor of the new QEMU, until it has the old one's name. */
  readonly qmpPath: string;
  readonly ram: RamFile;
  readonly relays: readonly VmRelay[];
  readonly taps: HandoffTaps;
}

export interface ExamineOptions {
  readonly qmp: QmpClient;
  readonly argv?: readonly string[] | undefined;
  readonly apart?: HandoffApart | undefined;
  readonly native: Pick<NativeBinding, 'peerPid' | 'findRamMappings'>;
}

/** @throws UnsupportedVmError with all reasons; ConfigError, QmpError, RamMappingError */
export const examine = async ({ qmp, argv, apart, native }: ExamineOptions): Promise<Examined> => {
  const vm = await describeVm({
    qmp,
    pid: native.peerPid(qmp.socketFd),
    findRamMappings: native.findRamMappings,
  });
  const { status, running } = await qmp.execute('query-status');
  if (!running && status !== 'paused') throw notHere(status);
  const { pid } = vm.process;
  const [backend] = vm.memoryBackends;
  // Without a backend, or one that is shared, the refusal says so.
  const isShared = vm.memoryBackends.length === 1 && backend!.shared && backend!.mapping !== undefined;
  const ram = isShared ? await openRamFile(backend!, vm) : undefined;
  const tapNameOf = (netdev: string): string => tapNameFor(pid, netdev);
  try {
    if (apart !== undefined && !running) throw isPaused();
    if (apart !== undefined && ram !== undefined && ram.inherit.length > 0) throw hasNoName();
    const files = ram === undefined ? undefined : apart?.filesFor(vm, ram.path);
    const line = forHandoff(argv ?? vm.argv, {
      ram: new Map(ram === undefined ? [] : [[backend!.id, files?.ramTo ?? ram.path]]),
      machineType: vm.machineType,
      tapNameOf,
      cwd: vm.cwd,
      ...(files === undefined ? {} : { overlays: files.overlays }),
    });
    const relays = await relaysOf(vm);
    assertHandoff({
      vm: argv === undefined ? vm : { ...vm, hotplugged: [] },
      line,
      relays,
      traces: await tracesIn(qmp, pid),
      sameNetwork: (await readlink(`/proc/${pid}/ns/net`)) === (await readlink('/proc/self/ns/net')),
      sameUser: (await userOf(pid)) === (await userOf('self')),
    });
    const qmpPath = temporaryOf(line.moves, qmp.path, vm.cwd);
    if (qmpPath === undefined) throw notItsMonitor(qmp.path);
    const taps = await HandoffTaps.examine(line.taps, tapNameOf);
    // The last thing: what is refused until here has changed nothing. The leftover may have the names that are needed.
    if (apart !== undefined) await apart.makeFiles(await endLeftover(qmpPath, native));
    return { vm, wasRunning: running, line, qmpPath, ram: ram!, relays, taps };
  } catch (error) {
    await apart?.giveUp();
    await ram?.[Symbol.asyncDispose]();
    throw error;
  }
};

const notHere = (status: string): QmpError =>
  new QmpError(`the VM is neither running nor paused, but ${status}`, {
    cure:
      status === 'postmigrate'
        ? 'It was given to another QEMU, or a hand-off was broken off. If no other QEMU has it, now or ever, `cont` resumes it here.'
        : 'Only a VM that runs, or is paused, can be handed over.',
    details: { status },
  });

const isPaused = (): UnsupportedVmError =>
  new UnsupportedVmError('the VM is paused: a checkpoint would start it; nothing was changed', {
    cure: 'Resume it first (QMP cont).',
  });

const hasNoName = (): UnsupportedVmError =>
  new UnsupportedVmError(
    'guest RAM is in a file without a name, so it cannot become a checkpoint; nothing was changed',
    {
      cure: 'Use --method capture; or start the VM with -object memory-backend-file,share=on,mem-path=…',
    },
  );

const notItsMonitor = (path: string): ConfigError =>
  new ConfigError(
    `--qmp: ${path} is not on QEMU's command line, so the new QEMU would have no monitor there`,
    {
      cure: 'Name the socket as -qmp (or -chardev) does.',
    },
  );

/** What Holdfast's own daemons leave in a QEMU while they protect it. */
const tracesIn = async (
  qmp: QmpClient,
  pid: number,
): Promise<{ readonly filters: readonly string[]; readonly tracker: boolean }> => {
  const objects = await qmp.execute('qom-list', { path: '/objects' });
  const filters = objects.filter(({ type }) => type === 'child<filter-buffer>').map(({ name }) => name);
  return { filters, tracker: await hasTracker(pid) };
};

const hasTracker = async (pid: number): Promise<boolean> => {
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '');
    if (target === 'anon_inode:[userfaultfd]') return true;
  }
  return false;
};

/** Effective user id, as the kernel prints it. */
const userOf = async (pid: number | 'self'): Promise<string> => {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return /^Uid:\s+\d+\s+(\d+)/m.exec(status)?.[1] ?? '';
};
