/**
 * `npm run demo`: the main job, from nothing to a survived host.
 *
 *   hosts a and b and a client, as network namespaces on one LAN
 *   a runs a VM with redis; a's daemon protects it onto b's
 *   the client increments counters over TCP, without ever reconnecting
 *   a's QEMU and daemon get SIGKILL; b takes over
 *   every acknowledged increment must be there, the connections alive, the memory intact
 *
 * Options: --json (one object at the end instead of the summary), --seconds N (load before the kill),
 * --heartbeat-timeout DURATION (the daemons' own default: on a busy machine a living primary may be silent longer).
 * It removes all it made, also on Ctrl-C.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { createLogUpdate } from 'log-update';
import type { TakeoverReport } from '../../lib/backup/backup.js';
import type { PrimaryStatus } from '../../lib/primary/primary.js';
import { primaryStatus, startBackup, startPrimary } from './daemons.js';
import { guestArgs, guestReadyText } from './guest.js';
import { checkMemwriter, startMemwriter } from './guest-shell.js';
import type { JsonProcess } from './json-process.js';
import { Lab } from './lab.js';
import { guestAddress, lanAddresses } from './network.js';
import { RedisLoad, type RedisLoadSummary } from './redis-load-process.js';
import { countInFile, waitFor } from './wait.js';

const LOAD_RATE_PER_S = 400;
const CONNECTIONS = 8;
const INTERVAL_MS = 25;

const { values: options } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '8' },
    'heartbeat-timeout': { type: 'string' },
  },
});
const loadSeconds = Number(options.seconds);
if (!(loadSeconds >= 1 && loadSeconds <= 3600)) {
  process.stderr.write(`demo: --seconds ${options.seconds} is not a number from 1 to 3600\n`);
  process.exit(2);
}

const heartbeatTimeout = options['heartbeat-timeout'];

const live = createLogUpdate(process.stderr, { showCursor: true });
const tell = (text: string): void => {
  live.clear();
  process.stderr.write(`${text}\n`);
};

const liveLine = (status: PrimaryStatus, load: RedisLoad): string => {
  const { pauseMs, outputDelayMs, dirtyPages } = status.distributions;
  const ms = (value: number | undefined): string => (value === undefined ? '–' : `${value.toFixed(1)} ms`);
  return (
    `  ${status.phase} · epoch ${status.committedEpoch} · pause ${ms(pauseMs?.p50)}` +
    ` · output delay ${ms(outputDelayMs?.p50)} · ${Math.round(dirtyPages?.p50 ?? 0)} dirty pages` +
    ` · ${load.acknowledged} writes acknowledged`
  );
};

/** Before the kill the primary lives: a backup that takes over has only not heard it. @throws Error */
const assertProtected = (backup: JsonProcess): void => {
  const [tooEarly] = backup.of('took-over');
  if (tooEarly === undefined) return;
  throw new Error(
    `the backup took over before the kill (${tooEarly.reason}): is this machine busy? Give --heartbeat-timeout 2s`,
  );
};

/** Shows the live line until the time is over; returns the last status seen. */
const watch = async (lab: Lab, backup: JsonProcess, load: RedisLoad, ms: number): Promise<PrimaryStatus> => {
  const endMs = performance.now() + ms;
  let status = await primaryStatus(lab);
  while (performance.now() < endMs) {
    // Without a terminal one line a second is enough.
    await sleep(process.stderr.isTTY ? 200 : 1_000);
    assertProtected(backup);
    status = await primaryStatus(lab);
    if (process.stderr.isTTY) live(liveLine(status, load));
    else tell(liveLine(status, load));
  }
  live.clear();
  return status;
};

interface Summary {
  readonly ok: boolean;
  readonly epochs: number;
  readonly pauseMs: { readonly p50: number; readonly p99: number } | undefined;
  readonly sendMs: { readonly p50: number; readonly p99: number } | undefined;
  readonly ackMs: { readonly p50: number; readonly p99: number } | undefined;
  readonly outputDelayMs: { readonly p50: number; readonly p99: number } | undefined;
  readonly dirtyPages: { readonly p50: number; readonly p99: number } | undefined;
  readonly failover: {
    readonly epoch: number;
    readonly detectionMs: number;
    readonly resumeMs: number;
    readonly loadMs: number;
    readonly killToRunningMs: number;
    readonly clientStallMs: number;
  };
  readonly writesAcknowledged: number;
  readonly writesLost: number;
  readonly connections: number;
  readonly connectionsBroken: number;
  readonly guestMemoryErrors: number;
}

const summarise = (
  before: PrimaryStatus,
  takeover: TakeoverReport,
  killedAtMs: number,
  load: RedisLoadSummary,
  guestMemoryErrors: number,
): Summary => {
  const { pauseMs, sendMs, ackMs, outputDelayMs, dirtyPages } = before.distributions;
  return {
    ok: load.ok && guestMemoryErrors === 0,
    epochs: before.epochs,
    pauseMs,
    sendMs,
    ackMs,
    outputDelayMs,
    dirtyPages,
    failover: {
      epoch: takeover.epoch,
      detectionMs: takeover.decidedAtMs - killedAtMs,
      resumeMs: takeover.resumeMs,
      loadMs: takeover.loadMs,
      killToRunningMs: takeover.resumedAtMs - killedAtMs,
      clientStallMs: load.longestStallMs,
    },
    writesAcknowledged: load.acknowledged,
    writesLost: load.lost,
    connections: load.connections,
    connectionsBroken: load.broken.length,
    guestMemoryErrors,
  };
};

const render = (summary: Summary): string => {
  const row = (
    name: string,
    value: { p50: number; p99: number } | undefined,
    digits: number,
    unit: string,
  ): string =>
    `  ${name.padEnd(24)} p50 ${(value?.p50 ?? Number.NaN).toFixed(digits).padStart(8)}   p99 ${(value?.p99 ?? Number.NaN).toFixed(digits).padStart(8)} ${unit}`;
  const { failover } = summary;
  const ms = (value: number): string => `${value.toFixed(1)} ms`;
  return [
    '',
    summary.ok ? 'The VM survived the loss of its host.' : 'FAILED: the VM did not survive as it should.',
    '',
    `  ${summary.epochs} epochs before the kill (interval ${INTERVAL_MS} ms)`,
    row('pause', summary.pauseMs, 2, 'ms'),
    row('send', summary.sendMs, 2, 'ms'),
    row('acknowledgement', summary.ackMs, 2, 'ms'),
    row('output delay, at most', summary.outputDelayMs, 2, 'ms'),
    row('dirty pages', summary.dirtyPages, 0, 'pages'),
    '',
    `  failover from epoch ${failover.epoch}: SIGKILL to guest running ${ms(failover.killToRunningMs)}`,
    `    detection ${ms(failover.detectionMs)}, resume ${ms(failover.resumeMs)} (loading the state ${ms(failover.loadMs)}), client stall ${ms(failover.clientStallMs)}`,
    '',
    `  writes acknowledged      ${summary.writesAcknowledged}`,
    `  writes lost              ${summary.writesLost}`,
    `  TCP connections          ${summary.connections}, broken ${summary.connectionsBroken}`,
    `  guest memory errors      ${summary.guestMemoryErrors}`,
    '',
  ].join('\n');
};

const demo = async (): Promise<Summary> => {
  tell('1. Making two hosts and a client: network namespaces on one LAN');
  await using lab = await Lab.create({ tag: 'demo' });

  tell(
    `2. Starting the backup on host b (${lanAddresses.b}), then the VM and its primary on host a (${lanAddresses.a})`,
  );
  const serialPath = lab.path('serial-a');
  const backup = await startBackup(lab, 'b', ['--replace', `${serialPath}=${lab.path('serial-b')}`]);
  const primary = await startPrimary(lab, {
    host: 'a',
    backup: 'b',
    args: [
      ...['--interval', String(INTERVAL_MS)],
      ...(heartbeatTimeout === undefined ? [] : ['--heartbeat-timeout', heartbeatTimeout]),
    ],
    vm: ['--', 'qemu-system-x86_64', ...guestArgs({ serialPath, workload: 'redis' })],
  });
  const launched = await primary.message('launched');
  const qemuPid = Number(launched.pid);
  await primary.message('protected');
  tell(`   QEMU is process ${qemuPid}; it boots under protection`);
  await waitFor(
    `the guest to be ready, in ${serialPath}`,
    () => {
      assertProtected(backup);
      return countInFile(serialPath, guestReadyText) > 0;
    },
    { timeoutMs: 120_000 },
  );
  await startMemwriter(lab.client, { pagesPerSecond: 5_000, workingSetPages: 4_096 });

  tell(
    `3. The client increments ${CONNECTIONS} redis counters at ${guestAddress}, over connections it never remakes`,
  );
  const load = await RedisLoad.start(lab.client, { connections: CONNECTIONS, ratePerS: LOAD_RATE_PER_S });
  const before = await watch(lab, backup, load, loadSeconds * 1_000);

  tell('4. SIGKILL to QEMU and to the daemon on host a');
  const killedAtMs = Date.now();
  process.kill(primary.pid, 'SIGKILL');
  process.kill(qemuPid, 'SIGKILL');
  const takeover = (await backup.message('took-over', { timeoutMs: 30_000 })) as unknown as TakeoverReport;
  tell(
    `5. Host b runs the VM since ${takeover.resumedAtMs - killedAtMs} ms after the kill; the client goes on`,
  );
  await load.advance(LOAD_RATE_PER_S, { timeoutMs: 60_000 });
  await sleep(2_000);
  const { errors } = await checkMemwriter(lab.client);
  const loadSummary = await load.stop();

  tell('6. Removing all of it');
  return summarise(before, takeover, killedAtMs, loadSummary, errors);
};

try {
  const summary = await demo();
  process.stdout.write(options.json ? `${JSON.stringify(summary, null, 2)}\n` : render(summary));
  process.exitCode = summary.ok ? 0 : 1;
} catch (error) {
  live.clear();
  process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
