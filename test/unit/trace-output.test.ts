/** What a trace is written as: figures, Chrome trace events, a page whose program runs and whose names stay text. */
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createContext, Script } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { chromeTrace } from '../../lib/trace/chrome-trace.js';
import { embeddedJson, renderTraceHtml } from '../../lib/trace/html.js';
import { summarize } from '../../lib/trace/summary.js';
import type { ViewerData } from '../../lib/trace/viewer-data.js';
import { lossText, summaryText } from '../../lib/trace/words.js';
import { checkTraceFile, writeTrace } from '../../lib/trace/write.js';
import { HOSTILE, sampleTrace as trace } from '../e2e/support/sample-trace.js';

describe('the figures', () => {
  const summary = summarize(trace);

  it('shares, migrations and the longest wait of each thread', () => {
    expect(summary.threads[0]).toMatchObject({
      ...{
        ranShare: 0.4,
        coreShares: { 0: 0.75, 1: 0.25 },
        migrations: 1,
        migrationMs: { p50: 0.5, max: 0.5 },
      },
      longestWait: { ms: 1, atMs: 3, pushedOffBy: 'busy' },
    });
    expect(summary.threads[1]).toMatchObject({ ranShare: 0, coreShares: {}, longestWait: undefined });
  });

  it('pauses, and processes on vCPUs and cores', () => {
    expect(summary.pauses).toEqual({ count: 1, ms: 1.5, maxMs: 1.5 });
    expect(summary.guest?.processes).toEqual([
      {
        ...{ pid: 800, name: HOSTILE, onVcpuShare: 0.45, onCoreShare: 0.35 },
        ...{ vcpuShares: { 0: 1 }, coreShares: { 0: 3_000 / 3_500, 1: 500 / 3_500 } },
      },
    ]);
  });

  it('in words: what is missing is said, and names do not steer the terminal', () => {
    expect(lossText(summary)).toBeUndefined();
    expect(summaryText(summary)).not.toContain('\u001b');
    const lossy = summarize({ ...trace, recorded: { ...trace.recorded, lost: 5 } });
    expect(summaryText(lossy)).toContain('incomplete: 5 events lost');
  });
});

describe('Chrome trace events', () => {
  const { traceEvents, otherData } = chromeTrace(trace);

  it('have a lane for each core, vCPU and guest vCPU, named', () => {
    const names = traceEvents.flatMap((event) =>
      event.ph === 'M' && event.name === 'thread_name' && 'name' in event.args ? [event.args.name] : [],
    );
    expect(names).toEqual(['epochs', 'VM paused', 'core 0', 'core 1', 'vCPU 0', 'vCPU 1', 'on vCPU 0']);
  });

  it('are what the viewer expects: numbers in µs, none negative, on lanes that exist', () => {
    const lanes = new Set(traceEvents.map(({ pid, tid }) => `${pid}/${tid}`));
    for (const event of traceEvents) {
      if (event.ph === 'M') continue;
      expect(lanes).toContain(`${event.pid}/${event.tid}`);
      expect(event.ts).toBeGreaterThanOrEqual(0);
      if (event.ph === 'X') expect(event.dur).toBeGreaterThanOrEqual(0);
      expect(event.name).not.toBe('');
    }
    expect(traceEvents.filter(({ ph }) => ph === 'i')).toMatchObject([
      { name: 'core 0 → core 1', ts: 3_500, args: { 'ran after, µs': 500 } },
    ]);
    expect(otherData.summary.durationMs).toBe(10);
  });

  it('leave out an idle vCPU: nothing ran there', () => {
    expect(traceEvents.some(({ name }) => name.startsWith('swapper'))).toBe(false);
  });
});

const scriptsOf = (page: string): { readonly data: string; readonly program: string } => {
  const [, data = '', program = ''] =
    /<script type="application\/json" id="trace">([\s\S]*?)<\/script>\s*<script>([\s\S]*?)<\/script>/.exec(
      page,
    ) ?? [];
  return { data, program };
};

/** As much of a document as the page's program touches; it records what is drawn and shown. */
const fakeDocument = (data: string) => {
  const drawn: string[] = [];
  const listeners = new Map<string, (event: object) => void>();
  const element = () => ({
    ...{ textContent: '', value: '', hidden: true, style: {}, clientWidth: 1_000, width: 0, height: 0 },
    addEventListener(name: string, listener: (event: object) => void) {
      listeners.set(name, listener);
    },
    setPointerCapture: () => {},
    getContext: () =>
      new Proxy({ fillText: (text: string) => drawn.push(text) } as Record<string, unknown>, {
        get: (target, key: string) => target[key] ?? (() => {}),
        set: () => true,
      }),
  });
  const elements: Record<string, ReturnType<typeof element>> = {};
  for (const id of ['trace', 'lanes', 'tip', 'filter', 'range', 'all']) elements[id] = element();
  elements.trace!.textContent = data;
  const context = createContext({
    document: { getElementById: (id: string) => elements[id], body: element() },
    ...{ devicePixelRatio: 1, getComputedStyle: () => ({ color: '#000' }) },
    matchMedia: () => ({ matches: false, addEventListener: () => {} }),
    requestAnimationFrame: (callback: () => void) => callback(),
    addEventListener: (name: string, listener: (event: object) => void) => listeners.set(name, listener),
  });
  return { context, drawn, listeners, elements };
};

describe('the page', () => {
  const page = renderTraceHtml(trace);
  const { data, program } = scriptsOf(page);

  it('holds the data, with names as they are', () => {
    const { texts, groups, paused, durationUs } = JSON.parse(data) as ViewerData;
    expect(groups.map(({ name }) => name)).toEqual(['VM', 'cores', 'threads of QEMU', 'guest processes']);
    expect(texts).toContain(`${HOSTILE} (800)`);
    expect(paused).toEqual([6_000, 7_500]);
    expect(durationUs).toBe(10_000);
    for (const lane of groups.flatMap(({ lanes }) => lanes)) {
      expect(lane.spans.length % 5).toBe(0);
      expect(lane.instants.length % 3).toBe(0);
    }
  });

  it('has no markup that a guest wrote, and asks nobody for anything', () => {
    expect(page).not.toContain('<img');
    expect(page.match(/<script/g)).toHaveLength(2);
    expect(page).not.toMatch(/<[^>]*\b(?:src|href)=|https?:\/\/|@import|url\(/);
    expect(embeddedJson({ name: '</script>\u2028' })).toBe('{"name":"\\u003c/script>\\u2028"}');
  });

  it('lets no other program run than its own', () => {
    const hash = createHash('sha256').update(program).digest('base64');
    expect(page).toContain(`default-src 'none'; script-src 'sha256-${hash}'`);
  });

  it('draws, zooms, moves, filters and tells what is under the pointer', () => {
    const { context, drawn, listeners, elements } = fakeDocument(data);
    new Script(program).runInContext(context);
    expect(drawn).toContain('vCPU 0');
    expect(drawn).toContain('core 1');
    // Half way down the lanes of threads: vCPU 0, at 1 ms of 10, where it ran on core 0.
    const point = { offsetX: 170 + 83, pageX: 0, pageY: 0, pointerId: 1, deltaY: 0, deltaX: 0 };
    const wordsAt = (offsetY: number): string => {
      listeners.get('pointermove')!({ ...point, offsetY });
      return elements.tip!.textContent;
    };
    const words = Array.from({ length: 40 }, (_, index) => wordsAt(index * 8));
    expect(words.some((text) => text.startsWith('core 0, 3.000 ms'))).toBe(true);
    expect(words.some((text) => text.startsWith(HOSTILE))).toBe(true);
    const whole = elements.range!.textContent;
    listeners.get('wheel')!({ ...point, offsetY: 60, deltaY: -500, preventDefault: () => {} });
    expect(elements.range!.textContent).not.toBe(whole);
    listeners.get('pointerdown')!({ ...point, offsetY: 60 });
    listeners.get('pointermove')!({ ...point, offsetX: 400, offsetY: 60 });
    listeners.get('pointerup')!(point);
    for (const key of ['+', '-', 'ArrowLeft', 'ArrowRight', '0'])
      listeners.get('keydown')!({ key, target: {} });
    expect(elements.range!.textContent).toBe(whole);
    elements.filter!.value = 'core 1';
    listeners.get('input')!({});
  });
});

describe('files', () => {
  it('are of a kind that their name tells, complete, and in a place that can be written', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-trace-'));
    try {
      await expect(checkTraceFile(join(dir, 'trace.txt'), '--out')).rejects.toMatchObject({
        code: 'HOLDFAST_E_CONFIG',
        message: expect.stringContaining('--out'),
      });
      await expect(checkTraceFile(join(dir, 'none', 'trace.html'), '--out')).rejects.toThrow(
        'cannot be written',
      );
      for (const name of ['trace.html', 'trace.json']) {
        await checkTraceFile(join(dir, name), '--out');
        await writeTrace(trace, join(dir, name));
      }
      expect((await readdir(dir)).sort()).toEqual(['trace.html', 'trace.json']);
      expect(JSON.parse(await readFile(join(dir, 'trace.json'), 'utf8'))).toEqual(
        JSON.parse(JSON.stringify(chromeTrace(trace))),
      );
    } finally {
      await rm(dir, { recursive: true });
    }
  });
});
