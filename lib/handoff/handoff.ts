/**
 * A running VM, from the QEMU that has it (P) to a new one on this host (Q): a live upgrade of the QEMU binary.
 * RAM is a file that both have mapped, and stays where it is; the devices' state goes over a socket.
 *
 *   P runs      examine ─► Q starts over the same RAM, disks inactive, with temporary names ─► waits for the state
 *   P stopped   stop ─► P's state to Q, which loads it and stays paused ─► names, network ─► Q: cont
 *   Q runs      announce ─► disk servers, relays are told ─► P is killed ─► taps, files
 *
 * Exactly one of them runs, whatever dies: Q is started with -S and runs only by `cont`, which it is sent when P
 * has stopped and said that Q has everything. Until then any failure ends Q, certainly (SIGKILL, waited for), and P
 * goes on by `cont`. If this process is what dies, the VM runs in P, or stands still, complete, in both.
 *
 * P is killed rather than told to quit: at a `quit` it would unlink sockets and pid file, which by then are Q's,
 * and, with discard-data=on, throw guest RAM away. Its disks were flushed and given up with the state.
 */
import { DiskControl } from '../disk/disk-control.js';
import { diskServerFiles } from '../disk/disk-files.js';
import { bindDiskServer } from '../disk/disk-process.js';
import {
  CancelledError,
  type HoldfastError,
  QmpConnectionError,
  QmpError,
  toHoldfastError,
  VmGoneError,
} from '../errors.js';
import type { NativeBinding } from '../native.js';
import { QmpClient } from '../qmp/client.js';
import { cachedImagesOf, flushAhead, tookLong } from '../vm/flush-ahead.js';
import { killVm } from '../vm/launch.js';
import { endsSoon, isAlive } from '../vm/process.js';
import { type Examined, examine } from './examine.js';
import { HandoffNames } from './names.js';
import { HandoffRelays } from './network.js';
import type { HandoffOptions, HandoffParts, HandoffProgress, HandoffResult, HandoffSide } from './options.js';
import { settle } from './settle.js';
import { HandoffSource, isLost } from './source.js';
import { HandoffTarget, mayRun } from './target.js';

const CONNECT_TIMEOUT_MS = 3_000;

/**
 * Hands the VM over. When this settles, the QEMU that had it has ended, unless the result says that it was left.
 *
 * @throws UnsupportedVmError what keeps it from being handed over, all at once; ConfigError, RamMappingError.
 *         VmGoneError, StandbyError, QmpError, SystemError, RelayError, TimeoutError: the new QEMU did not start, or
 *         did not take the VM; CancelledError. After each of these the VM is where it was, as it was, unless the
 *         message says that its QEMU has ended.
 * @throws StandbyError whose message says that the new QEMU may have run: see there.
 */
export const handOff = async (options: HandoffOptions): Promise<HandoffResult> => {
  const native = options.native ?? (await import('../native.js')).native;
  const beganMs = performance.now();
  await using qmp = await QmpClient.connect(options.qmp, {
    timeoutMs: CONNECT_TIMEOUT_MS,
    sendWithFd: native.sendWithFd,
    signal: options.signal,
  });
  const examined = await examine({ qmp, argv: options.argv, apart: options.apart, native });
  await using _ram = examined.ram;
  return await new Handoff(options, qmp, examined, native, beganMs).run();
};

class Handoff {
  readonly #options: HandoffOptions;
  readonly #examined: Examined;
  readonly #native: Pick<NativeBinding, 'peerPid'>;
  readonly #beganMs: number;
  readonly #source: HandoffSource;
  readonly #names: HandoffNames;
  readonly #relays: HandoffRelays;
  readonly #from: HandoffSide;

  constructor(
    options: HandoffOptions,
    qmp: QmpClient,
    examined: Examined,
    native: Pick<NativeBinding, 'peerPid'>,
    beganMs: number,
  ) {
    const { vm, wasRunning, line, relays } = examined;
    this.#options = options;
    this.#examined = examined;
    this.#native = native;
    this.#beganMs = beganMs;
    this.#source = new HandoffSource(qmp, wasRunning);
    this.#names = new HandoffNames(line.moves, vm.cwd);
    this.#relays = new HandoffRelays(relays);
    this.#from = { ...vm.process, binary: vm.binary, version: vm.qemuVersion };
  }

  async run(): Promise<HandoffResult> {
    await using relays = this.#relays;
    const { vm, taps } = this.#examined;
    const binary = this.#options.binary ?? vm.binary;
    this.#tell({ step: 'starting', from: this.#from, binary, ramBytes: vm.ramBytes, name: vm.name });
    await relays.connect();
    let startedMs = performance.now();
    let startMs = 0;
    let target: HandoffTarget | undefined;
    const { apart } = this.#options;
    try {
      if (apart !== undefined) {
        await apart.copyAhead();
        startedMs = performance.now();
      }
      await taps.make();
      target = await this.#launch(binary);
      await this.#source.prepare();
      await this.#names.keep();
      startMs = performance.now() - startedMs;
      if (apart !== undefined) {
        await this.#flushAhead();
        await apart.beforeStop(this.#source);
      }
      const flushMs = await this.#flushAhead();
      if (tookLong(flushMs)) await apart?.catchUp(); // and no flush behind it: it is as likely to take long again
      this.#options.signal?.throwIfAborted();
    } catch (error) {
      await this.#back(target).catch((after: unknown) => {
        throw also(error, after);
      });
      throw (await this.#cancelled()) ?? error;
    }
    const to = { ...target.vm.identity, binary, version: target.version };
    this.#tell({ step: 'ready', to, startMs });
    const parts = await this.#switchOver(target);
    const downtimeMs = this.#source.wasRunning
      ? parts.stopMs + parts.stateMs + parts.namesMs + parts.resumeMs
      : 0;
    this.#tell({ step: 'runs', to, downtimeMs });
    const fromEnded = await this.#settle(target);
    const totalMs = performance.now() - this.#beganMs;
    return {
      from: this.#from,
      to,
      fromEnded,
      running: this.#source.wasRunning,
      downtimeMs,
      parts,
      startMs,
      totalMs,
    };
  }

  /** If it was: says how the VM is, for somebody else may have stopped it meanwhile. */
  async #cancelled(): Promise<CancelledError | undefined> {
    const status = this.#options.signal?.aborted ? await this.#source.status() : undefined;
    if (status === undefined) return undefined;
    const vm = status === 'running' ? 'runs on' : `is ${status}`;
    return new CancelledError(`the hand-off was cancelled; the VM ${vm}`);
  }

  /** Each `stop` comes right after it. @returns how long it took */
  async #flushAhead(): Promise<number> {
    const { signal } = this.#options;
    const { flushed, dropped } = cachedImagesOf(this.#examined.vm);
    const tookMs = await flushAhead(flushed, { signal, dropped });
    signal?.throwIfAborted();
    return tookMs;
  }

  async #launch(binary: string): Promise<HandoffTarget> {
    const { signal } = this.#options;
    return await HandoffTarget.launch({ ...this.#examined, binary, native: this.#native, signal });
  }

  /** From here on nobody can cancel: it takes some milliseconds. */
  async #switchOver(target: HandoffTarget): Promise<HandoffParts> {
    const source = this.#source;
    const at = [performance.now()];
    const mark = (): void => void at.push(performance.now());
    try {
      await this.#relays.pause();
      at[0] = performance.now();
      await source.stop();
      mark();
      const turned = this.#examined.taps.turn();
      turned.catch(() => {}); // awaited below
      await this.#options.apart?.whileStopped();
      await this.#moveState(target);
      await turned;
      mark();
      await this.#names.take();
      await this.#relays.switch();
      mark();
    } catch (error) {
      throw await this.#failed(target, error);
    }
    try {
      if (source.wasRunning) await target.resume();
    } catch (error) {
      if (error instanceof QmpError) throw await this.#failed(target, error);
      const { identity, pid } = target.vm;
      throw mayRun(error, pid, !(await isAlive(identity)));
    }
    mark();
    const [stopMs = 0, stateMs = 0, namesMs = 0, resumeMs = 0] = at.slice(1).map((ms, n) => ms - at[n]!);
    return { stopMs, stateMs, namesMs, resumeMs };
  }

  /** Q has everything, or this throws. P may have ended: then Q is all there is, and is asked itself. */
  async #moveState(target: HandoffTarget): Promise<void> {
    try {
      await this.#source.giveStateTo(target.uri, target.lost);
    } catch (error) {
      if (!isLost(error, this.#source.qmp)) throw error;
      if (await target.hasLoaded()) {
        // Whatever became of its monitor: it must not go on.
        await killVm(this.#from);
        return;
      }
      throw error;
    }
  }

  async #failed(target: HandoffTarget, cause: unknown): Promise<HoldfastError> {
    try {
      await this.#back(target);
    } catch (error) {
      return also(cause, error);
    }
    if (this.#source.qmp.open) return toHoldfastError(cause);
    if (!(await endsSoon(this.#from))) {
      return new QmpConnectionError(
        `the monitor of the VM's QEMU (process ${this.#from.pid}) was lost: ${toHoldfastError(cause).message}`,
        { cause, cure: 'The VM is in that QEMU, perhaps stopped: `cont` there.' },
      );
    }
    return new VmGoneError(
      `the VM's QEMU (process ${this.#from.pid}) ended before it had handed the VM over: ${toHoldfastError(cause).message}`,
      { cause, cure: 'The VM is lost with it, as without a hand-off. Start it anew.' },
    );
  }

  /** All as it was: Q has ended, P has its names and its network, and goes on. */
  async #back(target: HandoffTarget | undefined): Promise<void> {
    await target?.kill();
    // Whatever of this fails, the VM goes on.
    const hasNames = await this.#names.giveBack().then(
      () => true,
      (error: unknown) => {
        this.#warn(error);
        return false;
      },
    );
    await this.#options.apart?.giveUp().catch((error: unknown) => this.#warn(error));
    if (this.#source.qmp.open) {
      await this.#relays.giveBack().catch((error: unknown) => this.#warn(error)); // it connects by itself, too
      await this.#source.goOn();
    }
    await this.#examined.taps.remove();
    if (hasNames) await this.#names.settle(); // else the second names are all that it is reached by
  }

  /** Q runs. @returns whether P has ended: see settle.ts */
  async #settle(target: HandoffTarget): Promise<boolean> {
    const { taps } = this.#examined;
    const { identity } = target.vm;
    return await settle(
      {
        tell: [
          // First: where the VM's process is known to have ended, another one may be started, or let go on elsewhere.
          async () => this.#options.whenItRuns?.(this.#from, identity),
          () => this.#relays.bind(identity),
          () => this.#bindDisks(target),
        ],
        meanwhile: [() => target.settle(), async () => this.#options.apart?.whileBoth(this.#source.qmp)],
        end: [() => killVm(this.#from), () => taps.settle(), () => this.#names.settle()],
      },
      this.#from,
      (error) => this.#warn(error),
    );
  }

  /** Disk servers end with their VM's process: that is another one now. */
  async #bindDisks(target: HandoffTarget): Promise<void> {
    const servers = this.#examined.vm.drives.flatMap(({ server }) => server ?? []);
    await Promise.all(
      servers.map(async (record) => {
        await using control = await DiskControl.connect(diskServerFiles(record.socket).control);
        await bindDiskServer({ record, control }, target.vm.identity);
      }),
    );
  }

  #warn(error: unknown): void {
    this.#tell({ step: 'warning', error: toHoldfastError(error) });
  }

  #tell(progress: HandoffProgress): void {
    this.#options.onProgress?.(progress);
  }
}

/** What kept the VM from being as it was, behind what ended the hand-off. */
const also = (cause: unknown, after: unknown): HoldfastError => {
  const { message, cure, details } = toHoldfastError(after);
  return new QmpError(`${toHoldfastError(cause).message}; then ${message}`, {
    ...{ cause: after, details },
    ...(cure === undefined ? {} : { cure }),
  });
};
