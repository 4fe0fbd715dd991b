/**
 * Failovers, one after the other, of one VM under load:
 *
 *   the VM runs on a ── protected onto b ── its host fails at a random moment ──► it runs on b
 *        ▲                                                                          │
 *        └── it runs on a ◄── its host fails at a random moment ── protected onto a ┘
 *
 * In each trial a redis client increments counters over connections that it never remakes. Afterwards
 * every acknowledged increment must be there, no counter may have gone back, and every connection must
 * be alive. One more connection, the survivor, lasts through all trials. With a disk there is more to be
 * kept: see disk-service.ts.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { TakeoverReport } from '../../lib/backup/backup.js';
import { killOrphan, otherHost, type RunningVm, serialReplacement } from '../e2e/support/lab.js';
import { startBackup, startPrimary } from '../lab/daemons.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad, type RedisLoadSummary } from '../lab/redis-load-process.js';
import { waitFor } from '../lab/wait.js';
import { DiskService } from './disk-service.js';
import { randomSource } from './random.js';
import { MemoryService, PATIENCE_MS, type Service, violationsOf } from './service.js';

/**
 * host: everything that runs on the host gets SIGKILL at once: QEMU, all daemons, relays, disk servers.
 * qemu, daemon: only one of them (the daemon leaves a QEMU that runs on, its output held). link: the
 * replication link is cut, so only silence tells.
 */
export const failureKinds = ['host', 'qemu', 'daemon', 'link'] as const;
export type FailureKind = (typeof failureKinds)[number];

export interface CampaignOptions {
  readonly trials: number;
  /** Chooses kinds and moments; the same seed, the same choices. */
  readonly seed: number;
  /** Default: host in half of the trials, else one of the others. */
  readonly kinds?: readonly FailureKind[];
  readonly intervalMs: number;
  readonly heartbeatTimeoutMs: number;
  /** The guest has all it serves on a disk. Default: in memory. */
  readonly disk?: boolean;
  readonly onTrial?: (result: TrialResult) => void;
}

export interface TrialResult {
  readonly trial: number;
  readonly kind: FailureKind;
  readonly from: 'a' | 'b';
  /** From some moment under protection to the failure, as drawn. */
  readonly momentMs: number;
  /** The checkpoint that was resumed. */
  readonly epoch: number;
  /** From the failure to the decision, to the running guest, and in the takeover the loading of the state. */
  readonly detectionMs: number;
  readonly failureToRunningMs: number;
  readonly loadMs: number;
  readonly clientStallMs: number;
  readonly acknowledged: number;
  readonly lost: number;
  /** What broke a promise, in words; empty is a pass. */
  readonly violations: readonly string[];
}

export interface CampaignResult {
  readonly ok: boolean;
  readonly trials: readonly TrialResult[];
  readonly acknowledged: number;
  readonly lost: number;
  /** Of the connection that lasted through all trials. */
  readonly survivor: RedisLoadSummary;
  readonly violations: readonly string[];
}

/** The moment of the failure is drawn from so many epochs. */
const MOMENT_EPOCHS = 3;
export const runCampaign = async (options: CampaignOptions): Promise<CampaignResult> => {
  await using lab = await Lab.create({ tag: 'fail' });
  const service = options.disk === true ? new DiskService(lab) : new MemoryService(lab);
  const campaign = new Campaign(lab, options, service, await service.boot());
  return await campaign.run();
};

class Campaign {
  readonly #lab: Lab;
  readonly #options: CampaignOptions;
  readonly #random: () => number;
  readonly #service: Service;
  /** Undefined until the first primary has launched it, if it does. */
  #vm: RunningVm | undefined;
  /** The backup daemon that took the VM over and watches it now. */
  #monitor: JsonProcess | undefined;
  /** The client that lasts through all trials; from the first on. */
  #survivor: RedisLoad | undefined;

  constructor(lab: Lab, options: CampaignOptions, service: Service, vm: RunningVm | undefined) {
    this.#lab = lab;
    this.#options = options;
    this.#service = service;
    this.#random = randomSource(options.seed);
    this.#vm = vm;
  }

  async run(): Promise<CampaignResult> {
    const trials: TrialResult[] = [];
    for (let trial = 1; trial <= this.#options.trials; trial += 1) {
      const result = await this.#trial(trial);
      trials.push(result);
      this.#options.onTrial?.(result);
    }
    const survived = await this.#survivor!.stop();
    const violations = [
      ...trials.flatMap(({ trial, kind, violations }) =>
        violations.map((text) => `trial ${trial} (${kind}): ${text}`),
      ),
      ...violationsOf(survived).map((text) => `survivor: ${text}`),
      ...(await this.#service.finish(this.#vm!)).map((text) => `in the end: ${text}`),
    ];
    return {
      ok: violations.length === 0,
      trials,
      acknowledged: trials.reduce((sum, { acknowledged }) => sum + acknowledged, survived.acknowledged),
      lost: trials.reduce((sum, { lost }) => sum + lost, survived.lost),
      survivor: survived,
      violations,
    };
  }

  async #trial(trial: number): Promise<TrialResult> {
    const kind = this.#drawKind();
    const momentMs = this.#random() * MOMENT_EPOCHS * this.#options.intervalMs;
    const from = this.#vm?.host ?? 'a';
    const to = otherHost(from);
    const { backup, primary, vm } = await this.#protect(from, to);
    this.#survivor ??= await RedisLoad.start(this.#lab.client, {
      connections: 1,
      ratePerS: 20,
      keyPrefix: 'survivor',
      drainTimeoutMs: PATIENCE_MS,
    });
    const load = await this.#service.startLoad();
    await load.advance();
    await sleep(momentMs);

    const failedAtMs = Date.now();
    await this.#fail(kind, vm, primary);
    const takeover = (await backup.message('took-over', {
      timeoutMs: PATIENCE_MS,
    })) as unknown as TakeoverReport;
    await load.advance();
    const violations = await this.#clearAway(kind, vm, primary);
    const { clientStallMs, acknowledged, lost, ...judged } = await load.stop();
    violations.push(...judged.violations);
    if (takeover.decidedAtMs < failedAtMs) violations.push('took over before the failure');

    this.#vm = { host: to, pid: takeover.pid, qmpPath: takeover.qmp };
    this.#monitor = backup;
    return {
      trial,
      kind,
      from,
      momentMs,
      epoch: takeover.epoch,
      detectionMs: takeover.decidedAtMs - failedAtMs,
      failureToRunningMs: takeover.resumedAtMs - failedAtMs,
      loadMs: takeover.loadMs,
      clientStallMs,
      acknowledged,
      lost,
      violations,
    };
  }

  #drawKind(): FailureKind {
    const { kinds } = this.#options;
    const draw = this.#random();
    if (kinds !== undefined) return kinds[Math.floor(draw * kinds.length)]!;
    const others = failureKinds.slice(1);
    return draw < 0.5 ? 'host' : others[Math.floor((draw - 0.5) * 2 * others.length)]!;
  }

  async #protect(
    from: 'a' | 'b',
    to: 'a' | 'b',
  ): Promise<{ backup: JsonProcess; primary: JsonProcess; vm: RunningVm }> {
    const { intervalMs, heartbeatTimeoutMs } = this.#options;
    const backup = await startBackup(this.#lab, to, [
      ...serialReplacement(this.#lab, to),
      ...this.#service.backupArgs(to),
    ]);
    const primary = await startPrimary(this.#lab, {
      host: from,
      backup: to,
      args: [
        ...['--interval', String(intervalMs), '--heartbeat-timeout', String(heartbeatTimeoutMs)],
        ...['--retry', '100ms', ...this.#service.primaryArgs(from)],
      ],
      vm: this.#vm === undefined ? ['--', ...this.#service.commandLine] : ['--qmp', this.#vm.qmpPath],
    });
    await primary.message('protected');
    const vm = this.#vm ?? (await this.#launched(primary));
    return { backup, primary, vm };
  }

  async #launched(primary: JsonProcess): Promise<RunningVm> {
    const { pid, qmp } = await primary.message('launched');
    await this.#service.ready();
    return { host: 'a', pid: Number(pid), qmpPath: String(qmp) };
  }

  async #fail(kind: FailureKind, vm: RunningVm, primary: JsonProcess): Promise<void> {
    switch (kind) {
      case 'host':
        this.#lab.host(vm.host).die();
        return;
      case 'qemu':
        process.kill(vm.pid, 'SIGKILL');
        return;
      case 'daemon':
        process.kill(primary.pid, 'SIGKILL');
        return;
      case 'link':
        await this.#lab.host(vm.host).setLink('repl0', 'down');
        return;
    }
  }

  /** What is left on the failed side is ended; returns what was not as it should be there. */
  async #clearAway(kind: FailureKind, vm: RunningVm, primary: JsonProcess): Promise<string[]> {
    const violations: string[] = [];
    const expectExit = async (name: string, daemon: JsonProcess, wanted: number): Promise<void> => {
      const { code, signal } = await daemon.ended(PATIENCE_MS);
      if (code !== wanted) violations.push(`the ${name} ended with ${code ?? signal}, not ${wanted}`);
    };
    if (kind === 'link') {
      // Now it can hear that it was superseded.
      await this.#lab.host(vm.host).setLink('repl0', 'up');
      await expectExit('fenced primary', primary, 9);
    }
    if (kind === 'qemu') await expectExit('primary without QEMU', primary, 4);
    await killOrphan(vm.pid);
    await primary.process.exited;
    const monitor = this.#monitor;
    if (kind === 'host') await monitor?.process.exited;
    else if (monitor !== undefined) await expectExit('monitor of the VM', monitor, 0);
    // What served the VM, relays and disk servers, ends with it.
    await waitFor(`the processes on host ${vm.host} to end`, () => this.#lab.host(vm.host).pids.length === 0);
    return violations;
  }
}
