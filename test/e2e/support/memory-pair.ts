/**
 * The data plane around a real guest, in this process and without the roles: each epoch is stopped, saved,
 * captured, sent and applied by the product's own pieces, and then the replica is compared with what guest RAM
 * was at the boundary.
 */

import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { NOTHING_LOGGED } from '../../../lib/log.js';
import {
  type CaptureResult,
  type NativeCaptureMode,
  native,
  type PrimaryEngine,
  type RamMapping,
  type Receiver,
  type ReceiverEvent,
  type SenderStrategy,
  type SendResult,
} from '../../../lib/native.js';
import { NoGate } from '../../../lib/output/gate.js';
import { GuestClock } from '../../../lib/primary/guest-clock.js';
import { type DeviceStatePath, type Paused, VmDriver } from '../../../lib/primary/vm-driver.js';
import { QmpClient } from '../../../lib/qmp/client.js';
import type { Lab } from '../../lab/lab.js';
import { execToEnd } from '../../lab/process.js';
import { type MemoryGuest, pageBytes } from './memory-guest.js';

/** A torn or lost page is named; more of them would tell nothing new. */
const DIFFERENCES_MAX = 32;
const APPLY_TIMEOUT_MS = 20_000;

export interface MemoryPairOptions {
  readonly strategy: SenderStrategy;
  readonly deviceState: DeviceStatePath;
  /** Where the replica is made, default the lab's tmpfs directory. */
  readonly replicaDir?: string;
  /** Bulk connections (default 1). */
  readonly streams?: number;
}

/** Pages staged ahead of the pause, or also sent; then the guest writes for another while. */
export interface Slice {
  readonly send: boolean;
  readonly runMs: number;
}

export interface EpochOptions {
  readonly mode: NativeCaptureMode;
  /**
   * `stopped`: the VM stays stopped until the comparison is done. `running` (staged only): it runs on as soon
   * as the capture has settled, and the replica is compared with a copy that was made of RAM while it stood.
   */
  readonly send: 'stopped' | 'running';
  /** How long the guest runs before this epoch ends. */
  readonly runMs: number;
  /** Taken before the pause, while the guest writes (default none). */
  readonly slices?: readonly Slice[];
  /** For this epoch instead of the pair's. */
  readonly strategy?: SenderStrategy;
}

export interface CheckedEpoch {
  readonly epoch: number;
  readonly captured: CaptureResult;
  readonly sent: SendResult;
  /** Pages in which the replica is not what guest RAM was at the boundary. */
  readonly differences: readonly number[];
}

/** @throws Error that names the pages. */
export const assertIdentical = ({ epoch, differences }: CheckedEpoch): void => {
  if (differences.length === 0) return;
  throw new Error(`epoch ${epoch}: the replica differs from guest RAM in pages ${differences.join(', ')}`);
};

/** Every dirty page left, once or as often as it was sent ahead, and the kernel's account of its bytes adds up. @throws Error */
export const assertAccounted = ({ epoch, captured, sent }: CheckedEpoch, strategy: SenderStrategy): void => {
  const { pages, zeroPages, copiedBytes, referenceBytes } = sent;
  const expectedPages = captured.dirtyPages + sent.supersededBytes / pageBytes;
  const wrong = [
    ...(pages + zeroPages === expectedPages ? [] : [`${expectedPages} pages were to be sent`]),
    ...(copiedBytes + referenceBytes === pages * pageBytes ? [] : ['bytes of pages are missing']),
    ...(strategy === 'copy' && referenceBytes > 0 ? ['copy sent by reference'] : []),
  ];
  if (wrong.length === 0) return;
  throw new Error(`epoch ${epoch} by ${strategy}: ${wrong.join(', ')}: ${JSON.stringify(sent)}`);
};

let opened = 0;

export class MemoryPair implements AsyncDisposable {
  readonly engine: PrimaryEngine;
  readonly driver: VmDriver;
  readonly clock: GuestClock;
  readonly ram: RamMapping;
  readonly replicaPath: string;
  readonly #guest: MemoryGuest;
  readonly #qmp: QmpClient;
  readonly #receiver: Receiver;
  readonly #streams: number;
  readonly #strategy: SenderStrategy;
  readonly #snapshotPath: string;
  readonly #scratchDir: string;
  readonly #applied = new Set<number>();
  #ended: string | undefined;
  #wake: () => void = () => {};
  #epoch = 0;

  private constructor(
    lab: Lab,
    guest: MemoryGuest,
    qmp: QmpClient,
    ram: RamMapping,
    options: MemoryPairOptions,
  ) {
    const id = ++opened;
    this.#guest = guest;
    this.#qmp = qmp;
    this.ram = ram;
    this.replicaPath = join(options.replicaDir ?? lab.sharedMemoryDir, `pair-${id}-replica`);
    this.#streams = options.streams ?? 1;
    this.#strategy = options.strategy;
    this.#snapshotPath = lab.sharedMemoryPath(`pair-${id}-snapshot`);
    this.#scratchDir = lab.sharedMemoryPath(`pair-${id}-scratch`);
    this.engine = new native.PrimaryEngine({
      pid: guest.process.pid,
      ram,
      stagingBytesMax: guest.ramBytes,
      strategy: options.strategy,
      copyThreads: 2,
    });
    this.#receiver = new native.Receiver({
      host: '127.0.0.1',
      port: 0,
      onEvent: (event) => this.#onEvent(event),
    });
    this.clock = new GuestClock({
      setting: 'follow',
      vm: { accelerator: 'tcg', process: guest.process },
      native,
      log: NOTHING_LOGGED,
    });
    this.driver = new VmDriver({
      qmp,
      gate: new NoGate(),
      deviceState: options.deviceState,
      guestClock: this.clock,
      scratchDir: this.#scratchDir,
      stoppedByUs: false,
      onOperator: () => {},
    });
  }

  /** Attaches to the running guest, and sends the base while it writes. */
  static async open(lab: Lab, guest: MemoryGuest, options: MemoryPairOptions): Promise<MemoryPair> {
    const qmp = await QmpClient.connect(guest.qmpPath, { sendWithFd: native.sendWithFd });
    let pair: MemoryPair | undefined;
    try {
      const ram = (await native.findRamMappings(guest.process.pid, guest.ramBytes)).find(
        ({ path }) => path === guest.ramPath,
      );
      if (ram === undefined) throw new Error(`QEMU has no mapping of ${guest.ramPath}`);
      pair = new MemoryPair(lab, guest, qmp, ram, options);
      await pair.#begin();
      return pair;
    } catch (error) {
      if (pair === undefined) await qmp.close();
      else await pair.close();
      throw error;
    }
  }

  /** One whole epoch, compared. The VM runs when this settles. */
  async epoch(options: EpochOptions): Promise<CheckedEpoch> {
    await sleep(options.runMs);
    const { epoch, paused } = await this.capture(options.mode, options.slices, options.strategy);
    let reference = this.#guest.ramPath;
    if (options.send === 'running') {
      // cp leaves holes out, which is most of a small guest's RAM.
      await execToEnd('cp', [this.#guest.ramPath, this.#snapshotPath]);
      reference = this.#snapshotPath;
      await this.driver.resume();
    }
    const sent = await this.send(epoch, paused, options.strategy);
    await this.#untilApplied(epoch);
    const differences = await this.#compare(reference);
    if (options.send === 'stopped') await this.driver.resume();
    return { epoch, captured: paused.captured, sent, differences };
  }

  /** Stops the VM and captures the next epoch; the VM stays stopped. */
  async capture(
    mode: NativeCaptureMode,
    slices: readonly Slice[] = [],
    strategy: SenderStrategy = this.#strategy,
  ): Promise<{ readonly epoch: number; readonly paused: Paused }> {
    const epoch = ++this.#epoch;
    for (const { send, runMs } of slices) {
      await this.engine.prestage({ epoch, send, strategy });
      await sleep(runMs);
    }
    const paused = await this.driver.pause({
      epoch,
      installGate: false,
      takePrefix: epoch === 1,
      capture: () => this.engine.capture({ epoch, mode }),
    });
    return { epoch, paused };
  }

  async send(
    epoch: number,
    { device, prefix }: Paused,
    strategy: SenderStrategy = this.#strategy,
  ): Promise<SendResult> {
    return await this.engine.send({
      epoch,
      strategy,
      device,
      prefix: prefix === undefined ? undefined : { path: prefix.path, skipBytes: 0, maxBytes: prefix.bytes },
    });
  }

  /** Lets the VM run again, detaches, and removes all of it but the guest. */
  async close(): Promise<void> {
    if (this.#guest.process.running) {
      await this.driver.resume();
      await this.engine.detach();
    }
    await this.engine.close();
    await this.#receiver.close();
    await this.#qmp.close();
    for (const path of [this.replicaPath, this.#snapshotPath, this.#scratchDir]) {
      await rm(path, { recursive: true, force: true });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #begin(): Promise<void> {
    await mkdir(this.#scratchDir, { mode: 0o700 });
    const token = randomBytes(32);
    await this.#receiver.openSession({
      token,
      ramPath: this.replicaPath,
      ramBytes: this.#guest.ramBytes,
      pageSize: this.ram.pageSize,
      epochBytesMax: this.#guest.ramBytes,
      deviceBytesMax: 64 << 20,
      verify: true,
    });
    await this.engine.attach();
    await this.engine.connect({
      host: '127.0.0.1',
      port: this.#receiver.port,
      token,
      timeoutMs: 5_000,
      streams: this.#streams,
      verify: true,
    });
    await this.engine.baseRound({ first: true });
    await this.engine.baseRound({ first: false });
  }

  #onEvent(event: ReceiverEvent): void {
    if (event.type === 'applied') this.#applied.add(event.epoch);
    if (event.type === 'disconnected') this.#ended = `${event.code}: ${event.message}`;
    this.#wake();
  }

  async #untilApplied(epoch: number): Promise<void> {
    const deadlineMs = performance.now() + APPLY_TIMEOUT_MS;
    while (!this.#applied.delete(epoch)) {
      if (this.#ended !== undefined) throw new Error(`the receiver's connection ended: ${this.#ended}`);
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) throw new Error(`epoch ${epoch} was not applied within ${APPLY_TIMEOUT_MS} ms`);
      const timer = setTimeout(() => this.#wake(), leftMs);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      clearTimeout(timer);
    }
  }

  async #compare(reference: string): Promise<readonly number[]> {
    const { ramBytes } = this.#guest;
    return await native.compareFiles(reference, this.replicaPath, ramBytes, pageBytes, DIFFERENCES_MAX);
  }
}
