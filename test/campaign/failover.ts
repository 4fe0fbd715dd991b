/**
 * `npm run campaign:failover`: many failovers in a row; see campaign.ts for what one is.
 * `npm run campaign:disk`: the same with --disk, a guest that has all it serves on a replicated disk.
 *
 * Options: --trials N (200), --seed N (the time), --interval MS (25), --heartbeat-timeout MS (500),
 * --kind host|qemu|daemon|link (repeatable; default: all), --json FILE (the whole result).
 * Exit code 0: all promises kept; 1: a violation, or the campaign could not be run; 2: usage.
 */

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import {
  type CampaignResult,
  type FailureKind,
  failureKinds,
  runCampaign,
  type TrialResult,
} from './campaign.js';

const usage = (text: string): never => {
  process.stderr.write(`campaign: ${text}\n`);
  process.exit(2);
};

const whole = (name: string, text: string, min: number): number => {
  const value = Number(text);
  return Number.isSafeInteger(value) && value >= min
    ? value
    : usage(`--${name}: '${text}' is not a number from ${min}`);
};

const isKind = (text: string): text is FailureKind => (failureKinds as readonly string[]).includes(text);

const readOptions = () => {
  try {
    return parseArgs({
      options: {
        trials: { type: 'string', default: '200' },
        seed: { type: 'string', default: String(Date.now() % 2 ** 32) },
        interval: { type: 'string', default: '25' },
        'heartbeat-timeout': { type: 'string', default: '500' },
        kind: { type: 'string', multiple: true },
        disk: { type: 'boolean', default: false },
        json: { type: 'string' },
      },
    }).values;
  } catch (error) {
    return usage((error as Error).message);
  }
};

const line = (result: TrialResult, trials: number): string => {
  const {
    trial,
    kind,
    from,
    epoch,
    detectionMs,
    failureToRunningMs,
    clientStallMs,
    acknowledged,
    violations,
  } = result;
  const ms = (value: number): string => `${value.toFixed(0)} ms`;
  return [
    `${String(trial).padStart(String(trials).length)}/${trials}`,
    `${kind.padEnd(6)} on ${from}, epoch ${epoch}:`,
    `detected ${ms(detectionMs)}, running ${ms(failureToRunningMs)}, client stall ${ms(clientStallMs)},`,
    `${acknowledged} acknowledged`,
    violations.length === 0 ? 'ok' : `VIOLATED: ${violations.join('; ')}`,
  ].join(' ');
};

const percentile = (values: readonly number[], share: number): string => {
  const sorted = values.toSorted((a, b) => a - b);
  return `${(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0).toFixed(0)} ms`;
};

const summaryText = (result: CampaignResult, seed: number): string => {
  const row = (name: string, kind: FailureKind): string[] => {
    const of = result.trials.filter((trial) => trial.kind === kind);
    if (of.length === 0) return [];
    const running = of.map(({ failureToRunningMs }) => failureToRunningMs);
    const stall = of.map(({ clientStallMs }) => clientStallMs);
    return [
      `  ${name.padEnd(8)}${String(of.length).padStart(4)} trials   failure to running p50 ${percentile(running, 0.5)}, max ${percentile(running, 1)}` +
        `   client stall p50 ${percentile(stall, 0.5)}, max ${percentile(stall, 1)}`,
    ];
  };
  return [
    '',
    ...failureKinds.flatMap((kind) => row(kind, kind)),
    `  ${result.acknowledged} writes acknowledged, ${result.lost} lost; seed ${seed}`,
    ...result.violations.map((text) => `  VIOLATED ${text}`),
    result.ok ? `  all ${result.trials.length} failovers kept their promises` : '  FAILED',
    '',
  ].join('\n');
};

const values = readOptions();
const kinds = values.kind ?? [];
for (const kind of kinds) if (!isKind(kind)) usage(`--kind: '${kind}' is none of ${failureKinds.join(', ')}`);
const trials = whole('trials', values.trials, 1);
const seed = whole('seed', values.seed, 0);
try {
  const result = await runCampaign({
    trials,
    seed,
    intervalMs: whole('interval', values.interval, 1),
    disk: values.disk,
    heartbeatTimeoutMs: whole('heartbeat-timeout', values['heartbeat-timeout'], 80),
    ...(kinds.length === 0 ? {} : { kinds: kinds.filter(isKind) }),
    onTrial: (trial) => process.stdout.write(`${line(trial, trials)}\n`),
  });
  process.stdout.write(summaryText(result, seed));
  if (values.json !== undefined)
    writeFileSync(values.json, `${JSON.stringify({ seed, disk: values.disk, ...result }, null, 2)}\n`);
  process.exitCode = result.ok ? 0 : 1;
} catch (error) {
  process.stderr.write(`campaign: ${(error as Error).message}; seed ${seed}\n`);
  process.exitCode = 1;
}
