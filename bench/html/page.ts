/**
 * The report as one HTML file: no scripts, no fonts, no files of its own, so that
 * it can be mailed, archived and read years later.
 */
import type { Chart } from '../figures/chart.js';
import { judge, meaningOf, shownRatios } from '../figures/goals.js';
import { formatNumber } from '../figures/metric.js';
import { figuresOf } from '../figures/suites.js';
import { runOf, type Table } from '../figures/table.js';
import { conclusions } from '../figures/text.js';
import type { BenchReport } from '../report.js';
import { drawBars } from './bars.js';
import { drawLines } from './lines.js';
import { html, Markup } from './markup.js';
import { seriesClass, style } from './style.js';

/** Nothing may be loaded, whatever finds its way into the text. */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

export const drawChart = (chart: Chart): Markup =>
  chart.kind === 'bars' ? drawBars(chart) : drawLines(chart);

/** The head of a page, and the style of everything in it. */
export const pageHead = (title: string): Markup => html`<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${POLICY}">
<title>${title}</title>
<style>${new Markup(style)}</style>`;

const legend = (chart: Chart): Markup | undefined =>
  chart.kind === 'bars' && chart.series.length > 1
    ? html`<ul class="legend">${chart.series.map(
        ({ name }, index) => html`<li><i class="${seriesClass(index)}"></i>${name}</li>`,
      )}</ul>`
    : undefined;

const figure = (chart: Chart, report: BenchReport): Markup => html`<figure>
<figcaption><h3>${chart.title}</h3>${chart.note === undefined ? undefined : html`<p>${chart.note}</p>`}
<p>Run: ${runOf(report)}.</p></figcaption>
${legend(chart)}${drawChart(chart)}
</figure>
`;

const table = ({ title, caption, head, rows }: Table): Markup => html`<section class="table">
<h3>${title}</h3><p class="caption">${caption}</p>
<div class="wide"><table><thead><tr>${head.map((cell) => html`<th scope="col">${cell}</th>`)}</tr></thead>
<tbody>${rows.map(
  ([first = '', ...cells]) =>
    html`<tr><th scope="row">${first}</th>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>
`,
)}</tbody></table></div>
</section>
`;

const ratioRow = (report: BenchReport, name: string): Markup => {
  const verdict = judge(report, name);
  const mark = verdict?.reached === undefined ? 'muted' : verdict.reached ? 'reached' : 'missed';
  const sign = verdict?.reached === undefined ? '' : verdict.reached ? '✓ ' : '✗ ';
  return html`<tr><td><code>${name}</code></td><td>${meaningOf(name)}</td>
<td>${formatNumber(report.ratios[name]!)}</td><td>${verdict?.goal ?? '–'}</td>
<td class="${mark}">${verdict === undefined ? '' : `${sign}${verdict.text}`}</td></tr>
`;
};

const ratioTable = (report: BenchReport): Markup | undefined => {
  const names = shownRatios(report);
  if (names.length === 0) return undefined;
  return html`<section class="table"><h3>Figures and ratios of this run</h3>
<p class="caption">Both sides of a ratio were measured in the same run, on the same machine. Run: ${runOf(report)}.</p>
<div class="wide"><table class="ratios"><thead><tr><th scope="col">name</th><th scope="col">what it says</th>
<th scope="col">measured</th><th scope="col">goal</th><th scope="col">reached?</th></tr></thead>
<tbody>${names.map((name) => ratioRow(report, name))}</tbody></table></div></section>
`;
};

const machineFacts = ({ machine, ...report }: BenchReport): Markup => html`<dl class="facts">
<dt>run</dt><dd>${runOf({ machine, ...report })}${report.durationS === undefined ? '' : `, ${report.durationS} s`}</dd>
<dt>machine</dt><dd>${machine.cores} × ${machine.cpu}, ${formatNumber(machine.memoryBytes / 2 ** 30)} GiB</dd>
<dt>software</dt><dd>Linux ${machine.kernel}, ${machine.qemu}, Node ${machine.node}</dd>
</dl>`;

const folded = (tables: readonly Table[]): Markup | undefined =>
  tables.length === 0
    ? undefined
    : html`<details><summary>Every case of this run, in ${tables.length} tables</summary>${tables.map(table)}</details>`;

const suite = (report: BenchReport): Markup => {
  const figures = figuresOf(report.suite);
  return html`<section id="${report.suite}">
<h2>${figures.title}</h2>
<p>${figures.about}</p>
${report.smoke ? html`<p class="warning">Smoke size: a run that shows that the suite works. Its figures mean nothing.</p>` : undefined}
${machineFacts(report)}
${ratioTable(report)}
${figures.charts(report).map((chart) => figure(chart, report))}
${figures.tables(report).map(table)}
${folded(figures.details?.(report) ?? [])}
</section>
`;
};

/** One page of one report or several. */
export const renderHtml = (reports: readonly BenchReport[]): string => {
  const title = `Holdfast benchmark: ${reports.map((report) => report.suite).join(', ')}`;
  return `${
    html`<!DOCTYPE html>
<html lang="en"><head>
${pageHead(title)}
</head><body>
<h1>${title}</h1>
<p class="muted">What continuous checkpointing costs, measured on one machine. Point at a bar or a mark for its value.</p>
${reports.map(suite)}
<footer><h3>What may be concluded, and what not</h3>
<ul>${conclusions.map((line) => html`<li>${line}</li>`)}</ul></footer>
</body></html>`.text
  }\n`;
};
