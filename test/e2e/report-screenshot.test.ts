/** The benchmark's HTML report as a reader sees it, in headless Chromium. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Chart } from '../../bench/figures/chart.js';
import { figuresOf } from '../../bench/figures/suites.js';
import { html } from '../../bench/html/markup.js';
import { drawChart, pageHead, renderHtml } from '../../bench/html/page.js';
import { chartWidth, seriesColours, seriesCount } from '../../bench/html/style.js';
import { epochReport, latencyReport, peersReport, sendReport } from './support/bench-reports.js';
import { decodePng, type Picture } from './support/png.js';

const run = promisify(execFile);
const reports = [sendReport, epochReport, latencyReport, peersReport];
type Theme = keyof typeof seriesColours;

let dir = '';
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'holdfast-report-'));
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});

/** Blink's numbers for prefers-color-scheme. */
const schemes: Readonly<Record<Theme, number>> = { dark: 0, light: 1 };

/** A browser with a profile of its own, which goes with the directory. */
const chromium = async (page: string, theme: Theme, args: readonly string[]): Promise<string> => {
  const { stdout } = await run(
    'chromium',
    [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage'],
      ...['--force-device-scale-factor=1', `--user-data-dir=${join(dir, 'profile')}`],
      `--blink-settings=preferredColorScheme=${schemes[theme]}`,
      ...args,
      `file://${page}`,
    ],
    { timeout: 60_000, maxBuffer: 32 << 20 },
  );
  return stdout;
};

const screenshot = async (page: string, theme: Theme, width: number, height: number): Promise<Picture> => {
  const file = join(dir, 'picture.png');
  await chromium(page, theme, [`--window-size=${width},${height}`, `--screenshot=${file}`]);
  return decodePng(await readFile(file));
};

interface Area {
  readonly top: number;
  readonly height: number;
}

/** How many pixels of each colour. */
const coloursIn = (picture: Picture, { top, height }: Area): Map<string, number> => {
  const count = new Map<string, number>();
  for (let y = top; y < top + height; y += 1) {
    for (let x = 0; x < picture.width; x += 1) {
      const colour = picture.colourAt(x, y);
      count.set(colour, (count.get(colour) ?? 0) + 1);
    }
  }
  return count;
};

const backgrounds: Readonly<Record<Theme, string>> = { light: 'ffffff', dark: '12171e' };

/** Charts below each other, each at a known place. */
const contactSheet = (charts: readonly Chart[]): { page: string; areas: Area[] } => {
  let top = 0;
  const areas: Area[] = [];
  const drawn = charts.map((chart) => {
    const svg = drawChart(chart);
    const height = Math.ceil(Number(/viewBox="0 0 \d+ ([\d.]+)"/.exec(svg.text)![1]));
    areas.push({ top, height });
    const placed = html`<div style="position:absolute;left:0;top:${top}px;width:${chartWidth}px">${svg}</div>`;
    top += height;
    return placed;
  });
  const page = html`<!DOCTYPE html><html lang="en"><head>${pageHead('charts')}</head><body>${drawn}</body></html>`;
  return { page: page.text, areas };
};

describe('HTML report', () => {
  test('every chart shows every series, light and dark', { timeout: 180_000 }, async () => {
    const charts = reports.flatMap((report) => figuresOf(report.suite).charts(report));
    expect(charts.length).toBeGreaterThanOrEqual(16);
    const { page, areas } = contactSheet(charts);
    const file = join(dir, 'charts.html');
    await writeFile(file, page);
    const last = areas.at(-1)!;
    for (const theme of ['light', 'dark'] as const) {
      const picture = await screenshot(file, theme, chartWidth, last.top + last.height);
      expect([picture.width, picture.height]).toEqual([chartWidth, last.top + last.height]);
      for (const [index, chart] of charts.entries()) {
        const area = areas[index]!;
        const colours = coloursIn(picture, area);
        const background = colours.get(backgrounds[theme]) ?? 0;
        const all = picture.width * area.height;
        const where = `${theme}: ${chart.title}`;
        // Something is drawn, and not all over: neither an empty frame nor one big block.
        expect(background / all, where).toBeLessThan(0.98);
        expect(background / all, where).toBeGreaterThan(0.3);
        for (let series = 0; series < Math.min(chart.series.length, seriesCount); series += 1) {
          const colour = seriesColours[theme][series]!.slice(1);
          expect(colours.get(colour), `${where}: ${chart.series[series]!.name}`).toBeGreaterThan(20);
        }
      }
    }
  });

  test('the page is one file that shows titles, units, runs and verdicts', { timeout: 120_000 }, async () => {
    const file = join(dir, 'report.html');
    await writeFile(file, renderHtml(reports));
    const dom = await chromium(file, 'light', ['--dump-dom']);
    for (const report of reports) {
      for (const chart of figuresOf(report.suite).charts(report)) {
        expect(dom).toContain(`<h3>${chart.title}</h3>`);
        const axes = chart.kind === 'bars' ? [chart.axis] : [chart.x, chart.y];
        for (const { label } of axes) expect(dom).toContain(`>${label}</text>`);
      }
      expect(dom).toContain(`Run: ${report.suite}, revision abc1234, 2026-01-02 03:04 UTC.`);
    }
    expect(dom).toContain('✗ not reached');
    expect(dom).toContain('✓ reached');
    expect(dom).toContain('Invented &lt;CPU&gt; &amp; Co.');
    expect(dom).not.toMatch(/<script|<link|<img|https?:\/\/|url\(/);
  });

  test('the page fills a screen, and a phone’s without being cut', { timeout: 120_000 }, async () => {
    const file = join(dir, 'report.html');
    await writeFile(file, renderHtml(reports));
    for (const [width, height] of [
      [1200, 2400],
      [500, 2000],
    ] as const) {
      const picture = await screenshot(file, 'light', width, height);
      expect([picture.width, picture.height]).toEqual([width, height]);
      const colours = coloursIn(picture, { top: 0, height });
      expect((colours.get(backgrounds.light) ?? 0) / (width * height)).toBeLessThan(0.97);
      expect(colours.get(seriesColours.light[0].slice(1))).toBeGreaterThan(50);
      // What overflows would reach the edge; the page's own margin is white.
      for (let y = 0; y < height; y += 1) expect(picture.colourAt(width - 1, y)).toBe(backgrounds.light);
    }
  });
});
