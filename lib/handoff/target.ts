/**
 * Q, the QEMU that is to have the VM. It is started with -S, so whatever it has loaded, it runs only when told to.
 *
 *   launch ─► listens for the state ─► loads it, paused ─┬─ resume()  it runs
 *                                                       └─ kill()    it never ran
 */
import { readlink, rm, stat } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpError, StandbyError, UnsupportedVmError } from '../errors.js';
import { prepareTarget } from '../migrate/qemu-settings.js';
import type { NativeBinding } from '../native.js';
import {
  ANNOUNCE,
  type MigrationCapabilities,
  restoreMigrationCapabilities,
  versionText,
} from '../qmp/recipes.js';
import type { VmDescription } from '../vm/describe.js';
import { environmentWith } from '../vm/known-arguments.js';
import { killVm, type LaunchedVm, launchVm } from '../vm/launch.js';
import { isOlderRelease } from '../vm/qemu-version.js';
import type { HandoffCommandLine } from './command-line.js';
import { endLeftover } from './leftover.js';
import type { RamFile } from './ram-file.js';

const LOADED_TIMEOUT_MS = 5_000;
const POLL_MS = 2;

export interface HandoffTargetOptions {
  readonly vm: VmDescription;
  readonly wasRunning: boolean;
  readonly binary: string;
  readonly line: HandoffCommandLine;
  /** Where its monitor is until it has the VM's. */
  readonly qmpPath: string;
  readonly ram: RamFile;
  readonly native: Pick<NativeBinding, 'peerPid'>;
  readonly signal?: AbortSignal | undefined;
}

export class HandoffTarget {
  readonly vm: LaunchedVm;
  readonly #incomingPath: string;
  #before: MigrationCapabilities = [];

  private constructor(vm: LaunchedVm, incomingPath: string) {
    this.vm = vm;
    this.#incomingPath = incomingPath;
  }

  /**
   * Starts it; one that a killed command left is ended first.
   * @throws VmGoneError with the last lines of its log; UnsupportedVmError an older QEMU; ConfigError, CancelledError
   */
  static async launch(options: HandoffTargetOptions): Promise<HandoffTarget> {
    const { vm, line, qmpPath, ram, native } = options;
    await endLeftover(qmpPath, native);
    const launched = await launchVm({
      binary: options.binary,
      argv: line.argv,
      qmpPath,
      logPath: await logPathOf(vm.process.pid, qmpPath),
      cwd: vm.cwd,
      env: await environmentWith(vm.process.pid, line.known),
      inherit: ram.inherit,
      peerPid: native.peerPid,
      signal: options.signal,
    });
    const target = new HandoffTarget(launched, `${qmpPath}.in`);
    try {
      refuseOlder(vm.qemuVersion, target.version);
      target.#before = await prepareTarget(launched.qmp, {
        ignoreShared: true,
        isPaused: !options.wasRunning,
      });
      await launched.qmp.execute('migrate-incoming', { uri: target.uri });
      return target;
    } catch (error) {
      await target.kill();
      throw error;
    }
  }

  get version(): string {
    return versionText(this.vm.qmp.greeting.version);
  }

  /** For the other side's `migrate`. */
  get uri(): string {
    return `unix:${this.#incomingPath}`;
  }

  /** Settles when it has ended. */
  get lost(): Promise<unknown> {
    return this.vm.qmp.closed;
  }

  /** Whether it has everything, waiting for it if it is just loading: for when nobody else can tell. */
  async hasLoaded(): Promise<boolean> {
    const deadlineMs = performance.now() + LOADED_TIMEOUT_MS;
    while (this.vm.qmp.open && performance.now() < deadlineMs) {
      const { status } = await this.vm.qmp.execute('query-migrate').catch(() => ({ status: 'failed' }));
      if (status === 'completed') return true;
      if (status === 'failed' || status === 'cancelled' || status === 'setup') return false;
      await delay(POLL_MS);
    }
    return false;
  }

  /**
   * Runs the VM.
   * @throws QmpError it was refused, and the VM certainly does not run here. After any other error it may.
   */
  async resume(): Promise<void> {
    if (!this.vm.qmp.open) throw new QmpError('the new QEMU was lost before it could run the VM');
    const [running] = this.vm.qmp.pipeline([
      { execute: 'cont' },
      { execute: 'announce-self', arguments: ANNOUNCE },
    ]);
    await running;
  }

  /** An ordinary VM from now on: one that can be migrated with its RAM. */
  async settle(): Promise<void> {
    await rm(this.#incomingPath, { force: true });
    await restoreMigrationCapabilities(this.vm.qmp, this.#before);
    await this.vm.qmp.close();
  }

  /** Settles when it has certainly ended. */
  async kill(): Promise<void> {
    await killVm(this.vm.identity);
    await this.vm.qmp.close();
    await rm(this.#incomingPath, { force: true });
  }
}

/** QEMU loads the state of an older version with the same machine type, not that of a newer one. */
const refuseOlder = (has: string, offered: string): void => {
  if (!isOlderRelease(offered, has)) return;
  throw new UnsupportedVmError(`the VM runs on QEMU ${has}, and ${offered} could not load its state`, {
    cure: 'Hand it over to the same or a newer release.',
  });
};

/** Where P's messages go, if that is a file: Q goes on in it. */
const logPathOf = async (pid: number, qmpPath: string): Promise<string> => {
  const path = await readlink(`/proc/${pid}/fd/2`).catch(() => '');
  const found = path.startsWith('/') ? await stat(path).catch(() => undefined) : undefined;
  return found?.isFile() ? path : `${qmpPath.replace(/\.new$/, '')}.log`;
};

/** After `cont` was sent, and no refusal came back. */
export const mayRun = (cause: unknown, pid: number, isGone: boolean): StandbyError =>
  isGone
    ? new StandbyError(`the new QEMU (process ${pid}) ended when it had just been told to run the VM`, {
        cause,
        cure: 'It may have run, and written to guest RAM: the VM is lost as with any QEMU that crashes. The one that had it is stopped; do not resume it, end it and start the VM anew.',
      })
    : new StandbyError(`whether the new QEMU (process ${pid}) runs the VM is not known`, {
        cause,
        cure: 'The one that had it is stopped. Look at `query-status` of the new one before anything else. Never let both run.',
      });
