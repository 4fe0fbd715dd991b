/** Traces of real VMs: vCPUs pinned with known affinities, guest processes that the guest itself pins, epochs. */

import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { QmpClient } from '../../lib/qmp/client.js';
import type { ChromeEvent, ChromeTrace } from '../../lib/trace/chrome-trace.js';
import { symbolsCommand } from '../../lib/trace/guest-symbols.js';
import { renderTraceHtml } from '../../lib/trace/html.js';
import type { TraceSummary } from '../../lib/trace/summary.js';
import { onlineCores } from '../../lib/trace/threads.js';
import type { ViewerData } from '../../lib/trace/viewer-data.js';
import { primaryStatus, startBackup, startPrimary } from '../lab/daemons.js';
import { repositoryRoot } from '../lab/guest.js';
import { guestOutput } from '../lab/guest-shell.js';
import { JsonProcess } from '../lab/json-process.js';
import { Lab } from '../lab/lab.js';
import { waitFor } from '../lab/wait.js';
import { type MemoryGuest, startRedis } from './support/memory-guest.js';
import { HOSTILE, sampleTrace } from './support/sample-trace.js';

const run = promisify(execFile);
const [first = 0, second = 0] = await onlineCores();

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.create({ tag: 'trace' });
});
afterAll(async () => {
  await lab.close();
});

const pin = async (tid: number, core: number): Promise<void> => {
  await run('taskset', ['-cp', String(core), String(tid)]);
};

const startTrace = async (args: readonly string[]): Promise<JsonProcess> => {
  const cli = join(repositoryRoot(), 'dist/lib/cli/main.js');
  const trace = new JsonProcess(
    await lab.host('a').spawn(process.execPath, [cli, 'trace', ...args, '--json']),
  );
  await trace.message('recording');
  return trace;
};

const summaryOf = async (trace: JsonProcess): Promise<TraceSummary> => {
  expect(await trace.process.exited).toEqual({ code: 0, signal: null });
  return (await trace.message('recorded')) as unknown as TraceSummary;
};

const spansOf = ({ traceEvents }: ChromeTrace, lane: string): Extract<ChromeEvent, { ph: 'X' }>[] => {
  const named = traceEvents.find(
    (event) =>
      event.ph === 'M' && event.name === 'thread_name' && 'name' in event.args && event.args.name === lane,
  );
  return traceEvents.filter(
    (event): event is Extract<ChromeEvent, { ph: 'X' }> =>
      event.ph === 'X' && event.pid === named?.pid && event.tid === named.tid,
  );
};

describe('01 a Linux guest with two vCPUs', { timeout: 60_000 }, () => {
  let guest: MemoryGuest;
  let observer: QmpClient;
  let vcpus: number[];
  /** Process ids in the guest, by the vCPU to which the guest has pinned them. */
  let spinning: number[];

  beforeAll(async () => {
    guest = await startRedis(lab, { vcpus: 2 });
    observer = await QmpClient.connect(guest.observerPath);
    vcpus = (await observer.execute('query-cpus-fast')).map((cpu) => cpu['thread-id']);
    const [symbols, pids] = [
      await guestOutput(lab.client, symbolsCommand),
      await guestOutput(
        lab.client,
        `for vcpu in 0 1; do
          taskset -c $vcpu sh -c "echo -n '<spin>$vcpu' > /proc/self/comm; while :; do :; done" > /dev/null 2>&1 &
          echo $!
        done`,
      ),
    ];
    spinning = pids.trim().split('\n').map(Number);
    await writeFile(lab.path('kallsyms'), symbols);
  });
  afterAll(async () => {
    await observer.close();
    await guest.process.kill();
  });

  test('process, vCPU and core are those that were pinned; each forced migration is there once', async () => {
    await pin(vcpus[0]!, first);
    await pin(vcpus[1]!, second);
    const out = lab.path('guest.json');
    const recording = await startTrace([
      ...['--qmp', guest.qmpPath, '--seconds', '1.5'],
      ...['--guest-symbols', lab.path('kallsyms'), '--out', out],
    ]);
    await sleep(300);
    await pin(vcpus[1]!, first);
    await sleep(300);
    await pin(vcpus[1]!, second);
    // What the guest itself says: the 39th field is the processor.
    const reported = await Promise.all(
      spinning.map(async (pid) =>
        (await guestOutput(lab.client, `cut -d' ' -f2,39 /proc/${pid}/stat`)).trim(),
      ),
    );
    const summary = await summaryOf(recording);
    const [pinned, moved] = summary.threads;
    const forced = first === second ? 0 : 2;
    expect(pinned).toMatchObject({
      label: 'vCPU 0',
      tid: vcpus[0],
      coreShares: { [first]: 1 },
      migrations: 0,
    });
    expect(moved).toMatchObject({ label: 'vCPU 1', tid: vcpus[1], migrations: forced });
    expect(Object.keys(moved!.coreShares)).toHaveLength(first === second ? 1 : 2);
    expect(summary.events.lost + summary.events.discarded).toBe(0);
    expect(summary.guest?.kernel).toMatch(/^Linux version 6\./);
    reported.forEach((line, vcpu) => {
      const [, name, processor] = /^\((.*)\) (\d+)$/.exec(line) ?? [];
      const process = summary.guest?.processes.find(({ pid }) => pid === spinning[vcpu]);
      expect(name).toBe(`<spin>${vcpu}`);
      expect(process).toMatchObject({ name, vcpuShares: { [processor!]: 1 } });
      // Of both it is the one process that never sleeps.
      expect(process!.onVcpuShare).toBeGreaterThan(0.5);
      expect(process!.onCoreShare).toBeGreaterThan(0);
      expect(process!.onCoreShare).toBeLessThanOrEqual(process!.onVcpuShare);
    });
    const trace = JSON.parse(await readFile(out, 'utf8')) as ChromeTrace;
    expect(trace.traceEvents.filter(({ ph }) => ph === 'i').map(({ name }) => name)).toEqual(
      forced === 0 ? [] : [`core ${second} → core ${first}`, `core ${first} → core ${second}`],
    );
    expect(new Set(spansOf(trace, 'vCPU 0').map(({ name }) => name)).has(`core ${second}`)).toBe(
      first === second,
    );
  });

  test('symbols that do not fit the guest are refused, and nothing is left behind', async () => {
    const symbols = await readFile(lab.path('kallsyms'), 'utf8');
    const moved = symbols.replace(/^(\w+)(?= \w linux_banner$)/m, (address) =>
      (BigInt(`0x${address}`) + 8n).toString(16),
    );
    expect(moved).not.toBe(symbols);
    await writeFile(lab.path('other'), moved);
    const cli = join(repositoryRoot(), 'dist/lib/cli/main.js');
    const { code, stderr } = await lab
      .host('a')
      .exec(process.execPath, [cli, 'trace', '--qmp', guest.qmpPath, '--guest-symbols', lab.path('other')], {
        check: false,
      });
    expect(stderr).toContain('--guest-symbols: the guest');
    expect(stderr).toContain('since it booted');
    expect(code).toBe(2);
  });

  test('`primary --trace`: in each pause of an epoch no vCPU runs', async () => {
    const backup = await startBackup(lab, 'b');
    const out = lab.path('epochs.json');
    const primary = await startPrimary(lab, {
      ...{ host: 'a', backup: 'b', vm: ['--qmp', guest.qmpPath] },
      args: ['--trace', out, '--interval', '40ms', '--heartbeat-timeout', '2s'],
    });
    await primary.message('protected');
    await waitFor('20 epochs', async () => (await primaryStatus(lab)).epochs >= 20);
    await primary.process.kill('SIGTERM');
    await primary.message('trace-written');
    await backup.process.kill('SIGTERM');
    const trace = JSON.parse(await readFile(out, 'utf8')) as ChromeTrace;
    const paused = spansOf(trace, 'VM paused');
    expect(paused.length).toBeGreaterThanOrEqual(20);
    expect(spansOf(trace, 'epochs')).toHaveLength(paused.length);
    // A vCPU stops some way into `stop`, and starts before `cont` has answered: on a busy machine most of a pause.
    const usOf = (text: unknown): number => Number.parseFloat(String(text)) * 1e3;
    const pauses = paused.flatMap(({ ts, dur, args = {} }) => {
      const inner = dur - usOf(args.stop) - usOf(args.cont) - usOf(args.rest);
      return inner > 0 ? [{ ts: ts + usOf(args.stop), dur: inner }] : [];
    });
    expect(pauses.length).toBeGreaterThan(paused.length / 2);
    const runs = ['vCPU 0', 'vCPU 1'].flatMap((lane) =>
      spansOf(trace, lane).filter(({ name }) => name.startsWith('core')),
    );
    // Of all pauses together.
    const sum = (lengths: readonly number[]): number => lengths.reduce((total, length) => total + length, 0);
    const overlap = (pause: { ts: number; dur: number }): number =>
      sum(
        runs.map(({ ts, dur }) =>
          Math.max(0, Math.min(ts + dur, pause.ts + pause.dur) - Math.max(ts, pause.ts)),
        ),
      );
    const inPauses = sum(pauses.map(overlap)) / (2 * sum(pauses.map(({ dur }) => dur)));
    const before = pauses.map(({ ts, dur }) => ({ ts: ts - 10_000 - dur, dur }));
    const beforePauses = sum(before.map(overlap)) / (2 * sum(before.map(({ dur }) => dur)));
    expect(inPauses).toBeLessThan(beforePauses / 2);
  });
});

test('02 all vCPUs in one thread (thread=single), a pause, and Ctrl-C', { timeout: 30_000 }, async () => {
  const [qmpPath, observerPath] = [lab.path('single'), lab.path('single-observer')];
  const qemu = await lab
    .host('a')
    .spawn('qemu-system-x86_64', [
      ...[
        '-M',
        'q35',
        '-accel',
        'tcg,thread=single',
        '-smp',
        '2',
        '-m',
        '64',
        '-nodefaults',
        '-display',
        'none',
      ],
      ...['-name', '</script>', '-qmp', `unix:${qmpPath},server=on,wait=off`],
      ...['-qmp', `unix:${observerPath},server=on,wait=off`],
    ]);
  await using observer = await QmpClient.connect(observerPath);
  const out = lab.path('single.html');
  const recording = await startTrace(['--qmp', qmpPath, '--all-threads', '--out', out]);
  await observer.execute('stop');
  await observer.execute('cont');
  await sleep(100);
  recording.process.child.kill('SIGINT');
  const summary = await summaryOf(recording);
  expect(summary.title).toBe('</script>');
  expect(summary.notes[0]).toMatch(/^vCPUs 0, 1 share thread \d+ \(TCG with thread=single\)/);
  expect(summary.threads[0]).toMatchObject({ vcpus: [0, 1] });
  expect(summary.threads.length).toBeGreaterThan(1);
  expect(summary.pauses.count).toBe(1);
  const page = await readFile(out, 'utf8');
  const data = /<script type="application\/json" id="trace">([\s\S]*?)<\/script>/.exec(page)?.[1] ?? '';
  expect((JSON.parse(data) as ViewerData).paused).toHaveLength(2);
  await qemu.kill();
});

test('03 in a browser the page draws itself, and a guest’s names stay text', {
  timeout: 60_000,
}, async () => {
  const page = lab.path('page.html');
  await writeFile(page, renderTraceHtml(sampleTrace));
  const { stdout } = await run('chromium', [
    ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--dump-dom'],
    ...[`--user-data-dir=${lab.path('profile')}`, `file://${page}`],
  ]);
  // Only the page's own program writes this.
  expect(stdout).toMatch(/<span id="range"[^>]*>0\.000 ms to 10\.000 ms of 0\.010 s<\/span>/);
  expect(stdout).not.toContain('<img');
  expect(stdout).toContain(HOSTILE.replaceAll('<', '&lt;').replaceAll('>', '&gt;'));
});
