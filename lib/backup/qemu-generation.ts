/**
 * A generation whose VM comes as one migration of QEMU's own (`holdfast migrate --engine qemu`). To a Backup it is
 * a generation like any other: everything has arrived is its one commit, running it its takeover.
 *
 *   prepare       ─► room for the RAM file, a port that waits for the session's token
 *   ensureStandby ─► QEMU with the VM's command line, -incoming defer, told to stay paused (qemu-target.ts)
 *   token shown   ─► QEMU is given that very connection, and loads from it
 *   loaded        ─► committed, as epoch 1
 *   run           ─► cont
 *   drop          ─► everything removed (not after run)
 *
 * No byte of the stream passes this process. It has no end that could be tried again: a QEMU that has ended takes
 * the session with it, and the source, which still has the VM, begins anew if it likes.
 */
import { mkdir, open, rm, statfs } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import type { SessionMessage } from '../control/messages.js';
import { descriptorOf, listenForToken, type TokenListener } from '../control/token-stream.js';
import {
  CancelledError,
  NoSpaceError,
  StandbyError,
  toHoldfastError,
  UnsupportedVmError,
} from '../errors.js';
import { HUGETLBFS_MAGIC } from '../file-systems.js';
import { holdIncoming } from '../migrate/qemu-target.js';
import type { FenceResult } from '../native.js';
import {
  announceSelf,
  type MigrationCapabilities,
  restoreMigrationCapabilities,
  versionText,
} from '../qmp/recipes.js';
import { exitText, killVm, type LaunchedVm, lastLogLines } from '../vm/launch.js';
import type { ProcessIdentity } from '../vm/process.js';
import type { AnyGeneration, GenerationOptions, Resumed } from './generation.js';
import { launchStandby, refuseOlderQemu } from './launch-standby.js';
import type { StandbyRelays } from './standby-relays.js';

const DESCRIPTOR = 'holdfast-incoming';
/** What arrives is one whole VM. */
const ARRIVED_EPOCH = 1;
/** `cont` only starts vCPUs. */
const RUN_TIMEOUT_MS = 10_000;

export interface QemuGenerationOptions extends GenerationOptions {
  /** QEMU has the connection: the source may send. */
  readonly onStreamTaken: () => void;
}

interface Waiting {
  readonly vm: LaunchedVm;
  readonly relays: StandbyRelays;
  readonly capabilitiesBefore: MigrationCapabilities;
}

export class QemuGeneration implements AnyGeneration {
  readonly id: number;
  readonly session: SessionMessage;
  readonly ramPath: string;
  readonly diskSockets: readonly string[] = [];
  readonly pageDisks: readonly number[] = [];
  /** QEMU's stream has all of the memory before the VM runs. */
  readonly early = undefined;
  readonly #options: QemuGenerationOptions;
  readonly #dir: string;
  #listener: TokenListener | undefined;
  #qemu: Waiting | undefined;
  /** It has been started: there is no second one. */
  #launched = false;
  #arrived = false;
  #streamTakenMs = 0;
  #state: 'new' | 'running' | 'dropped' = 'new';
  #queue: Promise<void> = Promise.resolve();

  constructor(options: QemuGenerationOptions) {
    this.id = options.id;
    this.session = options.session;
    this.ramPath = options.ramPath;
    this.#options = options;
    this.#dir = join(options.runDir, `g${options.id}`);
  }

  get bulkPort(): number {
    return this.#listener?.port ?? this.#options.bulkPort;
  }

  get standby(): ProcessIdentity | undefined {
    return this.#qemu?.vm.identity;
  }

  async killVm(): Promise<void> {
    if (this.standby !== undefined) await killVm(this.standby);
  }

  get qmpPath(): string {
    return join(this.#dir, 'qmp.sock');
  }

  get logPath(): string {
    return join(this.#dir, 'qemu.log');
  }

  get qemuVersion(): string | undefined {
    const qmp = this.#qemu?.vm.qmp;
    return qmp && versionText(qmp.greeting.version);
  }

  /** QEMU reads the stream, and does not tell when: heartbeats alone show that the source lives. */
  bulkIdleMs(): number {
    return Number.POSITIVE_INFINITY;
  }

  /** @throws NoSpaceError, ConnectError, UnsupportedHostError */
  async prepare(): Promise<void> {
    const { session, ramPath } = this;
    const { listenHost, bulkPort, token } = this.#options;
    if (session.disks !== undefined) throw new UnsupportedVmError("QEMU's engine moves no disks");
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const { type, bavail, bsize } = await statfs(dirname(ramPath));
    if (type !== HUGETLBFS_MAGIC && bavail * bsize < session.ramBytes) {
      throw new NoSpaceError(
        `the VM's RAM takes ${session.ramBytes} bytes, ${dirname(ramPath)} has ${bavail * bsize}`,
        { cure: 'Make room there, or name a larger file system with --ram-dir.' },
      );
    }
    await (await open(ramPath, 'wx', 0o600)).close(); // QEMU gives it its size
    const listener = await listenForToken({ host: listenHost, port: bulkPort }, token);
    this.#listener = listener;
    if (this.#state === 'dropped') {
      listener.close();
      throw new CancelledError('the session ended while it was prepared');
    }
    void listener.accepted.then(
      (socket) => this.#load(socket),
      () => {}, // closed, by us
    );
  }

  /** Whether everything has arrived. Once that was said it stays so. */
  async fence(): Promise<FenceResult> {
    const startMs = performance.now();
    const qmp = this.#qemu?.vm.qmp;
    if (!this.#arrived && qmp?.open) {
      this.#arrived = (await qmp.execute('query-migrate')).status === 'completed';
    }
    return {
      epoch: this.#arrived ? ARRIVED_EPOCH : 0,
      fenceMs: performance.now() - startMs,
      partialEpochDropped: false,
    };
  }

  /** @throws StandbyError, VmGoneError */
  async ensureStandby(): Promise<void> {
    await this.#exclusively(async () => {
      if (this.#state !== 'new' || this.#qemu?.vm.qmp.open) return;
      if (this.#launched) {
        const said = await lastLogLines(this.logPath);
        const text = said.length === 0 ? '' : `:\n  ${said.join('\n  ')}`;
        throw new StandbyError(`the QEMU that was to take the VM has ended${text}`, {
          cure: "The VM is still the source's. Both sides need the same machine, devices and RAM.",
        });
      }
      await this.#launch();
    });
  }

  async run(claim: (standby: ProcessIdentity) => Promise<void>): Promise<Resumed> {
    const qemu = this.#qemu;
    const { epoch } = await this.fence();
    if (qemu === undefined || !qemu.vm.qmp.open || epoch === 0) {
      throw new StandbyError('the QEMU that was to take the VM has ended, or has not loaded all of it', {
        cure: `Its log is ${this.logPath}.`,
      });
    }
    await claim(qemu.vm.identity);
    const startMs = performance.now();
    try {
      await qemu.vm.qmp.execute('cont', undefined, { timeoutMs: RUN_TIMEOUT_MS });
    } catch (error) {
      // Before anybody is told that it does not run here: whether it answered or not, it must not.
      await this.#exclusively(() => this.#end());
      throw new StandbyError(`the VM has arrived, but does not run: ${toHoldfastError(error).message}`, {
        cause: error,
        cure: `QEMU's log is ${this.logPath}.`,
      });
    }
    this.#state = 'running';
    return { epoch, loadMs: performance.now() - startMs };
  }

  async activateDisks(): Promise<void> {} // it has none

  async endReceiving(): Promise<void> {
    this.#listener?.close();
  }

  /** Repeats the guest's announcement, and makes QEMU's settings those of any VM. */
  async announce(): Promise<void> {
    const { vm, capabilitiesBefore } = this.#qemu ?? {};
    if (!vm?.qmp.open || capabilitiesBefore === undefined) return;
    await announceSelf(vm.qmp);
    await restoreMigrationCapabilities(vm.qmp, capabilitiesBefore);
  }

  async drop(): Promise<void> {
    if (this.#state === 'running') {
      await this.#qemu?.vm.qmp.close();
      return;
    }
    if (this.#state === 'dropped') return;
    this.#state = 'dropped';
    this.#listener?.close();
    await this.#exclusively(() => this.#end()); // also one that is being launched right now
    await this.#removeFiles();
  }

  async idle(): Promise<void> {
    await this.#queue;
  }

  async removeFiles(): Promise<void> {
    await this.#qemu?.vm.qmp.close();
    await this.#qemu?.relays.end();
    await this.#removeFiles();
  }

  async #removeFiles(): Promise<void> {
    await rm(this.ramPath, { force: true });
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #launch(): Promise<void> {
    this.#launched = true;
    const { standby } = this.session;
    const { qemu, replacements, logger, onStandbyExit } = this.#options;
    const { vm, relays } = await launchStandby({
      spec: standby,
      qemu,
      replacements: [...standby.replacements, ...replacements],
      ramPath: this.ramPath,
      loads: 'migration',
      disks: undefined,
      dir: this.#dir,
      launch: 1,
      qmpPath: this.qmpPath,
      logPath: this.logPath,
      log: logger,
    });
    this.#qemu = { vm, relays, capabilitiesBefore: [] };
    void vm.exited.then((exit) => {
      if (this.#qemu?.vm !== vm) return; // ended by us
      onStandbyExit(`QEMU (process ${vm.pid}) ended with ${exitText(exit)}`);
    });
    vm.qmp.on('MIGRATION', ({ data }) => {
      if (data.status === 'completed') this.#whenArrived();
    });
    refuseOlderQemu(standby.qemuVersion, versionText(vm.qmp.greeting.version));
    this.#qemu = { vm, relays, capabilitiesBefore: await holdIncoming(vm.qmp) };
  }

  /** The connection becomes QEMU's. The source sends nothing before it is told so. */
  async #load(socket: Socket): Promise<void> {
    try {
      const qmp = this.#qemu?.vm.qmp;
      if (qmp === undefined) throw new StandbyError('no QEMU is there to take the VM');
      await qmp.passDescriptor(DESCRIPTOR, descriptorOf(socket));
      socket.destroy(); // QEMU has a duplicate
      await qmp.execute('migrate-incoming', { uri: `fd:${DESCRIPTOR}` });
      this.#streamTakenMs = performance.now();
      this.#options.onStreamTaken();
    } catch (error) {
      socket.destroy();
      const failure = toHoldfastError(error, 'the migration stream');
      const code = 'HOLDFAST_E_PROTOCOL';
      this.#options.onReceiverEvent({
        type: 'disconnected',
        code,
        message: failure.message,
        droppedEpoch: 0,
      });
    }
  }

  #whenArrived(): void {
    if (this.#arrived || this.#state !== 'new') return;
    this.#arrived = true;
    this.#options.onReceiverEvent({
      type: 'committed',
      epoch: ARRIVED_EPOCH,
      pages: 0,
      zeroPages: 0,
      bytes: this.session.ramBytes,
      receiveMs: performance.now() - this.#streamTakenMs,
      receiveCpuMs: 0,
      receiveSyscalls: 0,
      digestMs: 0,
      prefix: 0,
    });
  }

  async #end(): Promise<void> {
    const qemu = this.#qemu;
    this.#qemu = undefined;
    if (qemu === undefined) return;
    await killVm(qemu.vm.identity);
    await qemu.relays.end();
    await qemu.vm.qmp.close();
  }

  /** Launching and ending, one at a time. */
  #exclusively(work: () => Promise<void>): Promise<void> {
    const done = this.#queue.then(work);
    this.#queue = done.catch(() => {});
    return done;
  }
}
