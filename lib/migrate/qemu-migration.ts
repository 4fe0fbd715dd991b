/**
 * Moves one running VM to a host where a Backup waits, by QEMU's own pre-copy (qemu-engine.ts): the same events,
 * policies and ends as Migration has with Holdfast's engine.
 *
 *   open a session ─► both QEMUs get the connection ─► migrateWithQemu ─► moved
 *        ▲   │                                              ├── given up, failed, destination lost ─► stayed
 *        │   └── it runs over there already ─► fenced       └── handed over, and no answer
 *        └──────────────── asked again, until it answers ◄──────────┘
 *
 * A session that the destination accepts proves that it does not run the VM, and has dropped what it had of it:
 * then a VM that stands still here goes on, and the migration begins anew. In the VM's record stands where it is
 * being moved to, so that a command that is started after one that was killed asks the same destination.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CancelledError,
  ConfigError,
  type HoldfastError,
  PeerLostError,
  QmpConnectionError,
  QmpError,
  toHoldfastError,
  UnsupportedVmError,
} from '../errors.js';
import { type Logger, NOTHING_LOGGED } from '../log.js';
import { native } from '../native.js';
import { chooseGate } from '../output/choose-gate.js';
import { relaysOf } from '../output/relay-files.js';
import { SupersededError } from '../primary/backup-link.js';
import { recordOf } from '../primary/identity.js';
import type { Failure } from '../primary/machine.js';
import { parseHostPort } from '../primary/options.js';
import { QemuEnd } from '../primary/qemu-end.js';
import { QmpClient } from '../qmp/client.js';
import { type VmRecord, VmRecords } from '../state/records.js';
import type { VmDescription } from '../vm/describe.js';
import { quitVm } from '../vm/launch.js';
import { examineQemuVm } from './examine-qemu-vm.js';
import type { AnyMigration, MigrationEvents, MigrationOptions, MigrationStatus } from './migration.js';
import { checkMigrationSettings, type MigrationSettings } from './options.js';
import type { MigrationFinal, MigrationOutcome } from './outcome.js';
import { migrationPolicy } from './policies.js';
import {
  type MigrationArrival,
  type MigrationRoundReport,
  migrateWithQemu,
  type QemuMigrationResult,
  StoppedMeanwhileError,
} from './qemu-engine.js';
import { endLeftMigration } from './qemu-settings.js';
import { RemoteTarget } from './remote-target.js';
import { qemuSession } from './session.js';

/** As Migration counts it: what the VM stands still for beside its pages. */
const OVERHEAD_MS = 10;
/** A destination whose QEMU ends says why, about when the stream breaks. */
const REASON_MS_MAX = 1_000;

interface Parts {
  readonly settings: MigrationSettings;
  readonly key: Uint8Array;
  readonly qmp: QmpClient;
  readonly vm: VmDescription;
  readonly record: VmRecord;
  readonly records: VmRecords;
  readonly relays: Awaited<ReturnType<typeof relaysOf>>;
  /** A killed command left it so; it may run over there. */
  readonly leftStopped: boolean;
  readonly startedMs: number;
  readonly log: Logger;
}

export class QemuEngineMigration
  extends EventEmitter<MigrationEvents>
  implements AnyMigration, AsyncDisposable
{
  readonly movedDisks = undefined;
  readonly following = undefined;
  readonly #parts: Parts;
  readonly #cancelled = new AbortController();
  readonly #qemuEnd: QemuEnd;
  readonly #ended: Promise<MigrationOutcome>;
  #phase: MigrationStatus['phase'] = 'connecting';
  #reason: string | undefined;
  #mayRunThere: boolean;
  /** By release(), which cancels too: the operator's word that the VM does not run over there. */
  #released = false;
  #rounds = 0;
  #final: MigrationFinal | undefined;

  private constructor(parts: Parts) {
    super();
    this.#parts = parts;
    this.#mayRunThere = parts.leftStopped;
    this.#qemuEnd = new QemuEnd(parts.qmp);
    this.#ended = this.#run();
  }

  /**
   * Attaches to a running VM and begins to move it. Settles when the VM has passed the pre-flight checks.
   * @throws ConfigError, UnsupportedVmError (nothing was touched), QmpConnectionError, FencedError
   */
  static async start(options: MigrationOptions): Promise<QemuEngineMigration> {
    const startedMs = performance.now();
    const { key, qmp: qmpPath, signal, logger, ...input } = options;
    const settings = checkMigrationSettings(input);
    const qmp = await QmpClient.connect(qmpPath, {
      timeoutMs: 5_000,
      sendWithFd: native.sendWithFd,
      signal,
    });
    try {
      const vm = await examineQemuVm(qmp);
      const log = logger ?? NOTHING_LOGGED;
      const relays = await relaysOf(vm);
      // Refuses a VM whose output is still held by its protection: its backup may have taken it over.
      await (await chooseGate({ setting: 'none', vm, relays, qmp, native, log })).close();
      const records = new VmRecords(settings.runDir, 'primary');
      const leftFor = await records.movingTo(vm.process);
      if (leftFor !== undefined) await endLeftMigration(qmp);
      const { running } = await qmp.execute('query-status');
      const leftStopped = !running && leftFor !== undefined;
      if (leftStopped && leftFor !== settings.to) throw otherDestination(leftFor);
      const known = await recordOf(records, vm, qmpPath);
      if (!running && !leftStopped) throw paused();
      const record = { ...known, movingTo: settings.to };
      await records.write(record);
      const parts = { settings, key, qmp, vm, record, records, relays, leftStopped, startedMs, log };
      const migration = new QemuEngineMigration(parts);
      if (signal?.aborted) migration.#cancelled.abort();
      signal?.addEventListener('abort', () => migration.#cancelled.abort(), { once: true });
      return migration;
    } catch (error) {
      await qmp.close();
      throw toHoldfastError(error);
    }
  }

  /** Settles when the VM has moved, or stays, with how. Never rejects. */
  get ended(): Promise<MigrationOutcome> {
    return this.#ended;
  }

  status(): MigrationStatus {
    const { settings, vm, record, qmp } = this.#parts;
    return {
      role: 'primary',
      name: settings.name,
      phase: this.#phase,
      ...(this.#reason === undefined ? {} : { reason: this.#reason }),
      vm: {
        id: record.vmId,
        name: vm.name ?? '',
        pid: vm.process.pid,
        qmp: qmp.path,
        ramBytes: vm.ramBytes,
        vcpus: vm.vcpus,
        running: !this.#mayRunThere,
      },
      backup: settings.to,
      term: record.term,
      epoch: 0,
      committedEpoch: 0,
      outputHeld: false,
      baseRounds: this.#rounds,
      epochs: 0,
      distributions: {},
    };
  }

  /** Gives up, as Migration.cancel() does. */
  async cancel(): Promise<MigrationOutcome> {
    this.#cancelled.abort();
    return await this.#ended;
  }

  /**
   * The operator's word that the VM does not run over there: it runs on here. Before that is a question it is no more
   * than cancel(): should the hand-over be sent all the same, and not be answered, nothing was said of that.
   */
  async release(): Promise<MigrationOutcome> {
    if (this.#mayRunThere) this.#released = true;
    return await this.cancel();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel();
  }

  async #run(): Promise<MigrationOutcome> {
    const { qmp, log } = this.#parts;
    const outcome = await this.#attempts().catch((error: unknown) => this.#whenFailed(error));
    await this.#leave(outcome).catch((error: unknown) => {
      log.error({ err: toHoldfastError(error).message }, 'while ending');
    });
    await qmp.close();
    this.#enter('ended');
    this.emit('ended', outcome);
    return outcome;
  }

  async #attempts(): Promise<MigrationOutcome> {
    for (;;) {
      const outcome = await this.#attempt();
      if (outcome !== undefined) return outcome;
      if (!(await this.#waitToAskAgain())) return await this.#endWaiting();
    }
  }

  /** Undefined: it may run over there, and has to be asked again. */
  async #attempt(): Promise<MigrationOutcome | undefined> {
    const { qmp, settings, key, vm, record, relays, log } = this.#parts;
    this.#enter('connecting');
    let target: RemoteTarget;
    try {
      target = await RemoteTarget.open({
        address: parseHostPort(settings.to),
        key,
        session: qemuSession(vm, record, relays, settings),
        connectTimeoutMs: settings.connectTimeoutMs,
        signal: this.#cancelled.signal,
      });
    } catch (error) {
      if (error instanceof SupersededError) return fenced(error);
      if (!this.#mayRunThere) throw error;
      this.#reason = toHoldfastError(error).message;
      return undefined;
    }
    try {
      if (this.#mayRunThere) await this.#goOnHere();
      if (this.#cancelled.signal.aborted) throw new CancelledError('the migration was cancelled');
      await target.connect(qmp);
      this.#enter('syncing');
      return this.#moved(await this.#migrate(target), target);
    } catch (error) {
      if (target.fenced !== undefined) return fenced(target.fenced);
      if (target.mayRun) {
        this.#mayRunThere = true;
        this.#reason = target.failure?.message ?? toHoldfastError(error).message;
        log.error({ reason: this.#reason }, 'no answer to the hand-over');
        return undefined;
      }
      throw await this.#reasonOf(error, target);
    } finally {
      // What is over there may be all that is left of a VM whose QEMU has ended here: then it is not told to drop it.
      if (target.tookOver === undefined && !target.mayRun && qmp.open) await target.abandon();
      else await target.close();
    }
  }

  async #migrate(target: RemoteTarget): Promise<QemuMigrationResult> {
    const { qmp, settings } = this.#parts;
    // What is paused now would be moved, and never handed over.
    if (!(await qmp.execute('query-status')).running) throw paused();
    return await migrateWithQemu({
      qmp,
      target,
      policy: migrationPolicy(settings.policy),
      downtimeMs: settings.downtimeMs,
      overheadMs: OVERHEAD_MS,
      limit: { roundsMax: settings.roundsMax, totalMsMax: settings.timeMaxMs },
      signal: AbortSignal.any([this.#cancelled.signal, target.lost]),
      onRound: (report) => this.#tellRound(report),
      onArrived: (arrival) => this.#tellArrival(arrival),
    });
  }

  #tellRound({ number, round, decision }: MigrationRoundReport): void {
    this.#rounds = number;
    const bytesPerSecond = (round.bytes / round.roundMs) * 1_000;
    this.emit('round', { ...round, round: number, bytesPerSecond, decision });
  }

  #tellArrival({ pages, zeroPages, bytes, stoppedForMs }: MigrationArrival): void {
    this.#final = { dirtyPages: pages, zeroPages, bytes, ackMs: stoppedForMs };
    this.emit('final', this.#final);
  }

  #moved({ downtimeMs, bytes, rounds }: QemuMigrationResult, { tookOver }: RemoteTarget): MigrationOutcome {
    return {
      kind: 'moved',
      term: tookOver!.term,
      totalMs: performance.now() - this.#parts.startedMs,
      downtimeMs,
      downtimeParts: undefined,
      resumeMs: tookOver!.resumeMs,
      firstStopMs: 0,
      rounds: rounds.length,
      bytes,
      diskBytes: 0,
      final: this.#final,
    };
  }

  /** The destination has said that it does not run the VM, by opening a session for it. */
  async #goOnHere(): Promise<void> {
    await this.#parts.qmp.execute('cont');
    this.#mayRunThere = false;
    this.#reason = undefined;
  }

  /** False: somebody ended the wait. */
  async #waitToAskAgain(): Promise<boolean> {
    this.#enter('waiting');
    const { signal } = this.#cancelled;
    return await delay(this.#parts.settings.retryMs, undefined, { signal }).then(
      () => this.#parts.qmp.open,
      () => false,
    );
  }

  async #endWaiting(): Promise<MigrationOutcome> {
    if (!this.#parts.qmp.open) throw new QmpConnectionError('the monitor closed');
    if (this.#released) await this.#goOnHere();
    return {
      kind: 'stayed',
      failure: { code: 'HOLDFAST_E_CANCELLED', message: this.#reason ?? 'the migration was cancelled' },
      mayRunThere: this.#mayRunThere,
    };
  }

  /** QEMU knows only that its stream broke; the destination says why, or is gone. */
  async #reasonOf(error: unknown, target: RemoteTarget): Promise<unknown> {
    if (this.#cancelled.signal.aborted || !this.#parts.qmp.open) return error;
    if (error instanceof StoppedMeanwhileError) return error; // the destination failed for our cancelling
    const { refusal } = target;
    if (refusal !== undefined) return asError(refusal);
    if (error instanceof QmpError && !target.lost.aborted) {
      await delay(REASON_MS_MAX, undefined, { signal: target.lost }).catch(() => {});
    }
    const { failure } = target;
    if (failure === undefined) return error;
    return new PeerLostError(failure.message, { cause: error });
  }

  async #whenFailed(error: unknown): Promise<MigrationOutcome> {
    const { qmp, vm } = this.#parts;
    const { code, message, cure } = toHoldfastError(error);
    const ended = qmp.open ? undefined : await this.#qemuEnd.of(vm.process);
    if (ended !== undefined) return { kind: ended.wished ? 'vm-ended' : 'vm-lost', reason: ended.reason };
    return { kind: 'stayed', failure: { code, message, cure }, mayRunThere: this.#mayRunThere };
  }

  /** The VM here, and what is known of it, as the outcome has it. */
  async #leave(outcome: MigrationOutcome): Promise<void> {
    const { qmp, vm, record, records } = this.#parts;
    switch (outcome.kind) {
      case 'moved':
        await quitVm({ identity: vm.process, qmp }); // its twin runs over there: this one must never run again
        await records.remove(record.vmId);
        return;
      case 'fenced': {
        await qmp.execute('stop');
        const { movingTo: _movingTo, ...rest } = record;
        await records.write({ ...rest, role: 'superseded', term: outcome.term });
        return;
      }
      case 'stayed':
        if (!outcome.mayRunThere) await records.remove(record.vmId);
        return;
      case 'vm-ended':
      case 'vm-lost':
        await records.remove(record.vmId);
        return;
    }
  }

  #enter(phase: MigrationStatus['phase']): void {
    this.#phase = phase;
    this.emit('phase', this.status());
  }
}

const asError = ({ code, message, cure }: Failure): HoldfastError =>
  toHoldfastError(Object.assign(new Error(message), { code, cure }));

const fenced = ({ message, term }: SupersededError): MigrationOutcome => ({ kind: 'fenced', message, term });

/** Stopped by somebody else, and meant to stay so. */
const paused = (): UnsupportedVmError =>
  new UnsupportedVmError('the VM is paused; it would run on the destination', {
    cure: "Resume it first (QMP cont); if a migration by Holdfast's own engine left it so, give that command again.",
  });

const otherDestination = (to: string): ConfigError =>
  new ConfigError(`the VM stands still since it was moved to ${to}, and may run there`, {
    cure: `Ask that one: --to ${to}. If you know that the VM does not run there: QMP cont, then move it.`,
  });
