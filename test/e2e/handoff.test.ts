/**
 * A running VM goes on in another QEMU of the same host. One Linux guest, behind a packet relay, is handed over
 * while redis is incremented and its memory is verified; another one has its tap itself. And, with guests that only
 * have firmware, what is left where a hand-off fails: always one VM.
 */
import { execFile } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { LaunchedVm } from '../../lib/cli/launched-vm.js';
import { runningDiskServer } from '../../lib/disk/disk-files.js';
import { planDisks, startDiskServers } from '../../lib/disk/launch-disks.js';
import {
  CancelledError,
  DiskError,
  HoldfastError,
  UnsupportedVmError,
  VmGoneError,
} from '../../lib/errors.js';
import { checkpointByHandoff } from '../../lib/handoff/coordinator.js';
import { handOff } from '../../lib/handoff/handoff.js';
import type { HandoffOptions, HandoffProgress, HandoffResult } from '../../lib/handoff/options.js';
import { native } from '../../lib/native.js';
import { RelayControl } from '../../lib/output/relay-control.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import { saveDeviceState } from '../../lib/qmp/recipes.js';
import { describeVm } from '../../lib/vm/describe.js';
import { killVm, launchVm, type LaunchedVm as RunningQemu } from '../../lib/vm/launch.js';
import { overRelays } from '../../lib/vm/netdevs.js';
import { identifyProcess, isAlive, type ProcessIdentity } from '../../lib/vm/process.js';
import { holdfast, relayPid } from '../lab/daemons.js';
import { type GuestOptions, guestArgs, guestReadyText, repositoryRoot } from '../lab/guest.js';
import { checkMemwriter, guestBootId, rebootGuest, startMemwriter } from '../lab/guest-shell.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad } from '../lab/redis-load-process.js';
import { waitFor, waitForText } from '../lab/wait.js';
import { isRunning, remainsOf, withQmp } from './support/lab.js';

const RAM_MB = 192;
const HEADLESS = ['-nodefaults', '-vga', 'none', '-display', 'none'] as const;

let lab: Lab;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'hand' });
});
afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

/** What of temporary names is left in the lab's directory. */
const remains = (): string[] => readdirSync(lab.dir).filter((name) => /\.(new|old|in)$/.test(name));

interface Guest {
  readonly qmpPath: string;
  readonly serialPath: string;
  readonly relaySocket: string | undefined;
  pid: number;
}

const boot = async (
  name: string,
  overRelay: boolean,
  options: Partial<GuestOptions> = {},
): Promise<Guest> => {
  const [qmpPath, serialPath, relaySocket] = [`${name}.qmp`, `${name}.serial`, `${name}.net`].map((file) =>
    lab.path(file),
  ) as [string, string, string];
  const args = guestArgs({
    ...options,
    ramMb: RAM_MB,
    qmpPath,
    serialPath,
    ramPath: lab.sharedMemoryPath(`${name}.ram`),
  });
  const relayed = overRelay ? overRelays(args, () => relaySocket) : { argv: args };
  if ('refused' in relayed) throw new Error(relayed.refused[0]!.reason);
  const qemu = await lab
    .host('a')
    .spawn('qemu-system-x86_64', [...relayed.argv, '-pidfile', lab.path(`${name}.pid`)]);
  if (overRelay) {
    const cli = `${repositoryRoot()}/dist/lib/cli/main.js`;
    const where = ['--netdev', relaySocket, '--tap', 'tap0', '--pid-of-vm', String(qemu.pid)];
    await lab.host('a').spawn(process.execPath, [cli, 'relay', ...where]);
  }
  await waitForText(serialPath, guestReadyText, { timeoutMs: 50_000 });
  return { qmpPath, serialPath, relaySocket: overRelay ? relaySocket : undefined, pid: qemu.pid };
};

/** `holdfast handoff`, as an operator runs it. */
const handOver = async (guest: Guest): Promise<HandoffResult> => {
  const { stdout } = await holdfast(lab, 'a', ['handoff', '--qmp', guest.qmpPath, '--json']);
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { event: string });
  expect(lines.map(({ event }) => event)).toEqual(['starting', 'ready', 'runs', 'ended']);
  const result = lines.at(-1) as unknown as HandoffResult;
  expect(result.from.pid).toBe(guest.pid);
  expect(isRunning(guest.pid)).toBe(false);
  expect(remains()).toEqual([]);
  guest.pid = result.to.pid;
  const { running, pid } = await withQmp(guest.qmpPath, async (qmp) => ({
    ...(await qmp.execute('query-status')),
    pid: native.peerPid(qmp.socketFd),
  }));
  expect({ running, pid }).toEqual({ running: true, pid: result.to.pid });
  const { parts, downtimeMs } = result;
  expect(parts.stopMs + parts.stateMs + parts.namesMs + parts.resumeMs).toBeCloseTo(downtimeMs, 6);
  return result;
};

describe('01 a Linux guest behind a relay', { timeout: 90_000 }, () => {
  let guest: Guest;

  beforeAll(async () => {
    guest = await boot('relayed', true);
  });

  test('is handed over twice: connections and memory stay', async () => {
    const bootId = await guestBootId(lab.client);
    await startMemwriter(lab.client, { pagesPerSecond: 5_000, workingSetPages: 2_048 });
    const relay = await relayPid(guest.relaySocket!);
    const load = await RedisLoad.start(lab.client, { connections: 8, ratePerS: 400 });
    await load.advance(50);
    for (let turn = 0; turn < 2; turn += 1) {
      await handOver(guest);
      await load.advance(100);
    }
    expect(await load.stop()).toMatchObject({ ok: true, broken: [], lost: 0 });
    expect(await checkMemwriter(lab.client)).toMatchObject({ errors: 0 });
    expect(await guestBootId(lab.client)).toBe(bootId);
    expect(await relayPid(guest.relaySocket!)).toBe(relay);
    await using control = await RelayControl.connect(`${guest.relaySocket}.ctl`);
    expect(await control.stats()).toMatchObject({ qemuConnected: true, socketWide: true, droppedFrames: 0 });
  });

  test('is described by its true names, and reboots', async () => {
    const { argv } = await withQmp(guest.qmpPath, (qmp) =>
      describeVm({ qmp, pid: guest.pid, findRamMappings: native.findRamMappings }),
    );
    expect(argv.join(' ')).toContain(`unix:${guest.qmpPath},`);
    expect(argv.join(' ')).not.toContain('.new');
    await rebootGuest(lab.client);
    await waitForText(guest.serialPath, guestReadyText, { count: 2, timeoutMs: 50_000 });
    await withQmp(guest.qmpPath, (qmp) => qmp.execute('quit'));
    // It has the tap until then.
    await waitFor('the relay to end', async () => (await relayPid(guest.relaySocket!)) === undefined);
  });
});

describe('02 a Linux guest with a tap of its own', { timeout: 90_000 }, () => {
  test('keeps its connections, and the tap its name', async () => {
    const guest = await boot('tapped', false);
    const load = await RedisLoad.start(lab.client, { connections: 8, ratePerS: 400 });
    await load.advance(50);
    await handOver(guest);
    await load.advance(100);
    expect(await load.stop()).toMatchObject({ ok: true, broken: [], lost: 0 });
    const { stdout } = await lab.host('a').exec('ip', ['-json', 'link', 'show', 'master', 'br0']);
    const ports = (JSON.parse(stdout) as { ifname: string }[]).map(({ ifname }) => ifname);
    expect(ports.sort()).toEqual(['lan0', 'tap0']);
    await withQmp(guest.qmpPath, (qmp) => qmp.execute('quit'));
  });
});

describe('03 a hand-off that fails leaves one VM', { timeout: 30_000 }, () => {
  let vm: RunningQemu;
  const started: ProcessIdentity[] = [];
  let made = 0;
  let qmpPath: string;

  const bareGuest = (ramPath: string, qmp: string, backend?: readonly string[]): string[] => [
    ...['-M', 'q35', '-accel', 'tcg', '-m', '64M', ...HEADLESS],
    ...(backend ?? ['-object', `memory-backend-file,id=ram,size=64M,share=on,mem-path=${ramPath}`]),
    ...['-machine', 'memory-backend=ram', '-qmp', `unix:${qmp},server=on,wait=off`],
  ];

  const launch = async (backend?: readonly string[]): Promise<void> => {
    made += 1;
    qmpPath = lab.path(`bare${made}.qmp`);
    const image = lab.path(`bare${made}.img`);
    writeFileSync(image, '');
    truncateSync(image, 1 << 20);
    vm = await launchVm({
      binary: 'qemu-system-x86_64',
      argv: [
        ...bareGuest(lab.sharedMemoryPath(`bare${made}.ram`), qmpPath, backend),
        ...[
          '-drive',
          `if=none,id=vda,format=raw,file=${image}`,
          '-device',
          'virtio-blk-pci,drive=vda,id=blk',
        ],
      ],
      qmpPath,
      logPath: lab.path(`bare${made}.log`),
    });
    started.push(vm.identity);
    await vm.qmp.close(); // one client at a time: the hand-off is next
  };

  beforeEach(async () => {
    await launch();
  });
  afterEach(async () => {
    for (const identity of started.splice(0)) await killVm(identity);
  });

  /** To the begin of its disk, as the guest would. */
  const writeByte = async (qmp: QmpClient, byte: number): Promise<void> => {
    const command = `qemu-io vda "write -P ${byte} 0 4k"`;
    // What it did it says on QEMU's own output, and here only what failed.
    expect(await qmp.execute('human-monitor-command', { 'command-line': command })).toBe('');
  };

  const give = async (
    options: Partial<HandoffOptions> = {},
    onStep: Partial<Record<HandoffProgress['step'], (to: ProcessIdentity | undefined) => void>> = {},
  ): Promise<HandoffResult> =>
    await handOff({
      qmp: qmpPath,
      ...options,
      onProgress: (progress) => {
        const to = 'to' in progress ? progress.to : undefined;
        if (to !== undefined) started.push({ pid: to.pid, startTicks: to.startTicks });
        onStep[progress.step]?.(to);
      },
    });

  const stateOf = async (qmp: QmpClient) => ({
    status: await qmp.execute('query-status'),
    capabilities: await qmp.execute('query-migrate-capabilities'),
    pid: native.peerPid(qmp.socketFd),
  });

  /** The hand-off fails so, and the VM runs where it did, as it did; nothing else is left. */
  const expectUntouched = async (failing: () => Promise<unknown>): Promise<HoldfastError> => {
    const before = await withQmp(qmpPath, stateOf);
    expect(before.status.running).toBe(true);
    const error = await failing().then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(await withQmp(qmpPath, stateOf)).toEqual(before);
    expect(remains()).toEqual([]);
    for (const identity of started.slice(1)) expect(await isAlive(identity)).toBe(false);
    expect(error).toBeInstanceOf(HoldfastError);
    return error as HoldfastError;
  };

  test('without a failure: the disk, twice', async () => {
    for (let turn = 0; turn < 2; turn += 1) {
      const { to, running, downtimeMs } = await give();
      expect(running).toBe(true);
      expect(downtimeMs).toBeGreaterThan(0);
      expect((await withQmp(qmpPath, stateOf)).pid).toBe(to.pid);
    }
  });

  test('a VM that Holdfast launched is found by its name, before and after', async () => {
    const runDir = lab.sharedMemoryPath('run');
    const ensure = () =>
      LaunchedVm.ensure({
        ...{ runDir, ramDir: lab.sharedMemoryDir, name: 'web1', diskDir: lab.dir },
        ...{ heldBytesMax: 16 << 20, ringBytes: 4 << 20, native },
        gate: 'none',
        commandLine: ['qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-m', '64M', ...HEADLESS],
      });
    const launched = await ensure();
    started.push(await identifyProcess(launched.pid));
    const cli = join(repositoryRoot(), 'dist/lib/cli/main.js');
    const args = [cli, 'handoff', '--vm', 'web1', '--run-dir', runDir, '--json'];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const { to } = JSON.parse(stdout.trim().split('\n').at(-1)!) as HandoffResult;
    started.push({ pid: to.pid, startTicks: to.startTicks });
    expect(await ensure()).toMatchObject({ isNew: false, pid: to.pid, qmpPath: launched.qmpPath });

    // Its RAM is another file after each of these, by the same name; and that is shared, not copied, by the last.
    const files = () => readdirSync(lab.sharedMemoryDir).filter((name) => name.startsWith('vm-web1-'));
    const before = files();
    expect(before).toEqual([expect.stringMatching(/\.holdfast\.ram$/)]);
    const inode = (): number => statSync(join(lab.sharedMemoryDir, before[0]!)).ino;
    const dir = lab.path('web1-checkpoints');
    const saving = [cli, 'checkpoint', '--vm', 'web1', '--method', 'handoff', '--run-dir', runDir, dir];
    const inodes = [inode()];
    for (const command of [saving, saving, args]) {
      await promisify(execFile)(process.execPath, command);
      started.push(await identifyProcess((await ensure()).pid));
      expect(files()).toEqual(before);
      inodes.push(inode());
    }
    expect(new Set(inodes.slice(0, 3)).size).toBe(3);
    expect(inodes[3]).toBe(inodes[2]);
    const found = await ensure();
    await found.quit();
    expect(files()).toEqual([]);
    expect(existsSync(launched.qmpPath)).toBe(false);
  });

  test('a disk on a server, which stays', async () => {
    const image = lab.path('served.img');
    writeFileSync(image, '');
    truncateSync(image, 1 << 20);
    qmpPath = lab.path('served.qmp');
    const argv = [
      ...bareGuest(lab.sharedMemoryPath('served.ram'), qmpPath),
      ...['-drive', `if=none,id=vda,format=raw,file=${image}`, '-device', 'virtio-blk-pci,drive=vda,id=blk'],
    ];
    const placement = { dir: lab.sharedMemoryDir, diskDir: lab.dir, ringBytes: 4 << 20 };
    const disks = await planDisks(argv, '/', placement);
    const servers = await startDiskServers(disks.specs);
    const logPath = lab.path('served.log');
    const beside = (identity: ProcessIdentity): Promise<void> => servers.bind(identity);
    vm = await launchVm({ binary: 'qemu-system-x86_64', argv: disks.argv, qmpPath, logPath, beside });
    started.push(vm.identity);
    await vm.qmp.close();
    const { socket } = disks.specs[0]!;
    const before = await runningDiskServer(socket);
    const { to } = await give();
    const after = await runningDiskServer(socket);
    expect(after).toEqual({ ...before, vm: { pid: to.pid, startTicks: to.startTicks } });
    await withQmp(qmpPath, async (qmp) => {
      await writeByte(qmp, 7);
      await qmp.execute('quit');
    });
    expect(readFileSync(image).subarray(0, 4096)).toEqual(Buffer.alloc(4096, 7));
    await waitFor('the disk server to end with its QEMU', async () => !(await runningDiskServer(socket)));
  });

  test('a checkpoint by the coordinator: the old one stands still and is saved, the disk is whole', async () => {
    const [ramTo, saved] = [lab.sharedMemoryPath(`coordinated${made}.ram`), lab.path(`saved${made}`)];
    mkdirSync(saved);
    const image = lab.path(`bare${made}.img`);
    const write = (byte: number) => withQmp(qmpPath, (qmp) => writeByte(qmp, byte));
    await write(1);
    const result = await checkpointByHandoff({
      qmp: qmpPath,
      ramTo,
      onProgress: (progress) => {
        if ('to' in progress) started.push({ pid: progress.to.pid, startTicks: progress.to.startTicks });
      },
      saveState: async ({ qmp, ramPath }) => {
        expect(await qmp.execute('query-status')).toMatchObject({ running: false });
        await saveDeviceState(qmp, join(saved, 'devices'));
        await copyFile(ramPath, join(saved, 'ram'));
      },
      copyFiles: async ({ images }) => {
        expect(images).toEqual([image]);
        await write(2); // by the VM, which runs on
        await copyFile(image, join(saved, 'disk'));
      },
    });
    const { allMs, handoff, commitMs, ...phases } = result;
    expect(Object.values(phases).every((ms) => ms > 0) && commitMs > 0).toBe(true);
    expect(allMs).toBeGreaterThan(handoff.downtimeMs);
    expect(readFileSync(join(saved, 'disk'))[0]).toBe(1);
    expect(readFileSync(image)[0]).toBe(2);
    expect(statSync(join(saved, 'devices')).size).toBeGreaterThan(1024);
    expect(statSync(join(saved, 'ram')).size).toBe(64 << 20);
    // And it is as any VM: its disk is the image, and it can be handed over.
    expect(existsSync(`${image}.holdfast-overlay`)).toBe(false);
    expect((await give()).running).toBe(true);
  });

  test('the new QEMU ends while the old one is saved, after one that a killed command left', async () => {
    const ramTo = lab.sharedMemoryPath('handed.ram');
    const [image, logPath] = [lab.path(`bare${made}.img`), lab.path('left.log')];
    const overlay = `${image}.holdfast-overlay`;
    const leftAt = `${qmpPath}.new`;
    const argv = [...bareGuest(ramTo, leftAt), '-S'];
    const left = await launchVm({ binary: 'qemu-system-x86_64', argv, qmpPath: leftAt, logPath });
    started.push(left.identity);
    await left.qmp.close();
    let to: ProcessIdentity | undefined;
    const error = await checkpointByHandoff({
      ...{ qmp: qmpPath, ramTo },
      onProgress: (progress) => {
        if (progress.step !== 'ready') return;
        to = progress.to;
        started.push(to);
      },
      saveState: async () => {
        expect(await isAlive(left.identity)).toBe(false);
        await withQmp(qmpPath, async (qmp) => {
          await writeByte(qmp, 2); // by the VM, which runs in the new one
          await qmp.execute('human-monitor-command', { 'command-line': 'qemu-io vda flush' });
        });
        await killVm(to!);
      },
      copyFiles: async () => {},
    }).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(DiskError);
    expect(error).toMatchObject({
      message: expect.stringContaining(`it was saved, but the new QEMU (process ${to!.pid}) ended before`),
      details: { overlays: [overlay] },
    });
    // What the error advises has what the guest wrote.
    expect(readFileSync(image)[0]).toBe(0);
    await promisify(execFile)('qemu-img', ['commit', '-q', overlay]);
    expect(readFileSync(image)[0]).toBe(2);
  });

  test('the new QEMU dies before the VM is stopped, or while it loads', async () => {
    await expectUntouched(() => give({}, { ready: (to) => void process.kill(to!.pid, 'SIGKILL') }));
  });

  test('the new QEMU does not know a device of the VM', async () => {
    const { argv } = await withQmp(qmpPath, (qmp) =>
      describeVm({ qmp, pid: vm.pid, findRamMappings: native.findRamMappings }),
    );
    const other = argv.filter((word) => !/^(virtio-blk-pci,|if=none,)/.test(word));
    const without = other.filter(
      (word, n) => !(/^-(drive|device)$/.test(word) && other[n + 1]?.startsWith('-')),
    );
    await expectUntouched(() => give({ argv: without }));
  });

  test('the new QEMU does not start', async () => {
    const error = await expectUntouched(() => give({ binary: '/bin/false' }));
    expect(error).toBeInstanceOf(VmGoneError);
  });

  test('cancelled while it starts, and when it is ready', async () => {
    for (const step of ['starting', 'ready'] as const) {
      const cancel = new AbortController();
      const given = () => give({ signal: cancel.signal }, { [step]: () => cancel.abort() });
      if (step === 'starting') expect(await expectUntouched(given)).toBeInstanceOf(CancelledError);
      // Then it is too late: the VM moves.
      else expect((await given()).running).toBe(true);
    }
  });

  test('the QEMU that has the VM dies: told, and nothing else is left', async () => {
    const given = give({}, { ready: () => void process.kill(vm.pid, 'SIGKILL') });
    await expect(given).rejects.toThrow(VmGoneError);
    for (const identity of started) expect(await isAlive(identity)).toBe(false);
    expect(remains()).toEqual([]);
  });

  test('a VM whose RAM nobody else can map is refused, as is one that was handed to nobody', async () => {
    await launch(['-object', 'memory-backend-ram,id=ram,size=64M']);
    await expect(give()).rejects.toThrow(UnsupportedVmError);
    await withQmp(qmpPath, async (qmp) => {
      expect((await qmp.execute('query-status')).running).toBe(true);
    });
  });

  test('a memfd, and a paused VM that stays paused', async () => {
    await launch(['-object', 'memory-backend-memfd,id=ram,size=64M,share=on']);
    await withQmp(qmpPath, (qmp) => qmp.execute('stop'));
    for (let turn = 0; turn < 2; turn += 1) {
      const { running, to } = await give();
      expect(running).toBe(false);
      expect(await withQmp(qmpPath, stateOf)).toMatchObject({ status: { status: 'paused' }, pid: to.pid });
    }
    await withQmp(qmpPath, async (qmp) => {
      await qmp.execute('cont');
      expect((await qmp.execute('query-status')).running).toBe(true);
    });
    expect(existsSync(qmpPath)).toBe(true);
  });
});
