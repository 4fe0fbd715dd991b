/**
 * Failovers, one after the other, of one VM under load:
 *
 *   the VM runs on a ── protected onto b ── its host fails at a random moment ──► it runs on b
 *        ▲                                                                          │
 *        └── it runs on a ◄── its host fails at a random moment ── protected onto a ┘
 *
 * In each trial a redis client increments counters over connections that it never remakes. Afterwards
 * every acknowledged increment must be there, no counter may have gone back, and every connection must
 * be alive. One more connection, the survivor, lasts through all trials.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { TakeoverReport } from '../../lib/backup/backup.js';
import { bootRedisGuest, killOrphan, type RunningVm, serialReplacement } from '../e2e/support/lab.js';
import { startBackup, startPrimary } from '../lab/daemons.js';
import type { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { RedisLoad, type RedisLoadSummary } from '../lab/redis-load-process.js';
import { randomSource } from './random.js';

/**
 * host: QEMU and all daemons of the host get SIGKILL at once. qemu, daemon: only one of them (the daemon
 * leaves a QEMU that runs on, its output held). link: the replication link is cut, so only silence tells.
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

/** Increments per connection and more before the failure, and after it. */
const PROGRESS_INCREMENTS = 20;
/** The moment of the failure is drawn from so many epochs. */
const MOMENT_EPOCHS = 3;
/** Spare time for a machine that is busy with other things. */
const PATIENCE_MS = 60_000;

export const runCampaign = async (options: CampaignOptions): Promise<CampaignResult> => {
  await using lab = await Lab.create({ tag: 'fail' });
  const campaign = new Campaign(lab, options, await bootRedisGuest(lab));
  return await campaign.run();
};

class Campaign {
  readonly #lab: Lab;
  readonly #options: CampaignOptions;
  readonly #random: () => number;
  #vm: RunningVm;
  /** The backup daemon that took the VM over and watches it now. */
  #monitor: JsonProcess | undefined;
  /** Sum of the counters when the last trial had ended. */
  #counted = 0;

  constructor(lab: Lab, options: CampaignOptions, vm: RunningVm) {
    this.#lab = lab;
    this.#options = options;
    this.#random = randomSource(options.seed);
    this.#vm = vm;
  }

  async run(): Promise<CampaignResult> {
    const survivor = await RedisLoad.start(this.#lab.client, {
      connections: 1,
      ratePerS: 20,
      keyPrefix: 'survivor',
      drainTimeoutMs: PATIENCE_MS,
    });
    const trials: TrialResult[] = [];
    for (let trial = 1; trial <= this.#options.trials; trial += 1) {
      const result = await this.#trial(trial);
      trials.push(result);
      this.#options.onTrial?.(result);
    }
    const survived = await survivor.stop();
    const violations = [
      ...trials.flatMap(({ trial, kind, violations }) =>
        violations.map((text) => `trial ${trial} (${kind}): ${text}`),
      ),
      ...violationsOf(survived).map((text) => `survivor: ${text}`),
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
    const from = this.#vm.host;
    const to = from === 'a' ? 'b' : 'a';
    const { backup, primary } = await this.#protect(from, to);
    const load = await RedisLoad.start(this.#lab.client, { drainTimeoutMs: PATIENCE_MS });
    await load.advance(PROGRESS_INCREMENTS, { timeoutMs: PATIENCE_MS });
    await sleep(momentMs);

    const failedAtMs = Date.now();
    await this.#fail(kind, primary);
    const takeover = (await backup.message('took-over', {
      timeoutMs: PATIENCE_MS,
    })) as unknown as TakeoverReport;
    await load.advance(PROGRESS_INCREMENTS, { timeoutMs: PATIENCE_MS });
    const violations = await this.#clearAway(kind, primary);
    const summary = await load.stop();
    violations.push(...violationsOf(summary), ...this.#continuity(summary));
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
      clientStallMs: summary.longestStallMs,
      acknowledged: summary.acknowledged,
      lost: summary.lost,
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

  async #protect(from: 'a' | 'b', to: 'a' | 'b'): Promise<{ backup: JsonProcess; primary: JsonProcess }> {
    const { intervalMs, heartbeatTimeoutMs } = this.#options;
    const backup = await startBackup(this.#lab, to, serialReplacement(this.#lab, to));
    const primary = await startPrimary(this.#lab, {
      host: from,
      backup: to,
      args: [
        ...['--interval', String(intervalMs), '--heartbeat-timeout', String(heartbeatTimeoutMs)],
        ...['--retry', '100ms'],
      ],
      vm: ['--qmp', this.#vm.qmpPath],
    });
    await primary.message('protected');
    return { backup, primary };
  }

  async #fail(kind: FailureKind, primary: JsonProcess): Promise<void> {
    switch (kind) {
      case 'host':
        process.kill(primary.pid, 'SIGKILL');
        process.kill(this.#vm.pid, 'SIGKILL');
        this.#monitor?.process.child.kill('SIGKILL');
        return;
      case 'qemu':
        process.kill(this.#vm.pid, 'SIGKILL');
        return;
      case 'daemon':
        process.kill(primary.pid, 'SIGKILL');
        return;
      case 'link':
        await this.#lab.host(this.#vm.host).setLink('repl0', 'down');
        return;
    }
  }

  /** What is left on the failed side is ended; returns what was not as it should be there. */
  async #clearAway(kind: FailureKind, primary: JsonProcess): Promise<string[]> {
    const violations: string[] = [];
    const expectExit = async (name: string, daemon: JsonProcess, wanted: number): Promise<void> => {
      const { code, signal } = await daemon.ended(PATIENCE_MS);
      if (code !== wanted) violations.push(`the ${name} ended with ${code ?? signal}, not ${wanted}`);
    };
    if (kind === 'link') {
      // Now it can hear that it was superseded.
      await this.#lab.host(this.#vm.host).setLink('repl0', 'up');
      await expectExit('fenced primary', primary, 9);
    }
    if (kind === 'qemu') await expectExit('primary without QEMU', primary, 4);
    await killOrphan(this.#vm.pid);
    await primary.process.exited;
    const monitor = this.#monitor;
    if (kind === 'host') await monitor?.process.exited;
    else if (monitor !== undefined) await expectExit('monitor of the VM', monitor, 0);
    return violations;
  }

  /** Between two trials nothing may have been lost either. */
  #continuity(summary: RedisLoadSummary): string[] {
    const begin = summary.keys.reduce((sum, key) => sum + key.acknowledged, -summary.acknowledged);
    const expected = this.#counted;
    this.#counted = summary.keys.reduce((sum, key) => sum + (key.finalOverFresh ?? 0), 0);
    return begin === expected
      ? []
      : [`the counters began at ${begin} in total, the last trial left ${expected}`];
  }
}

const violationsOf = (summary: RedisLoadSummary): string[] => [
  ...summary.violations,
  ...summary.broken.map(({ key, reason }) => `the connection of ${key} broke: ${reason}`),
  ...(summary.lost > 0 ? [`${summary.lost} acknowledged increments lost`] : []),
  ...(summary.ok || summary.violations.length + summary.broken.length + summary.lost > 0
    ? []
    : ['the redis load reports a failure']),
];
