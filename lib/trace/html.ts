/**
 * A trace as one HTML file: figures, and the time line. It loads nothing and talks
 * to nobody, which its Content-Security-Policy says as well: names in it come from
 * a guest, and a guest is a stranger.
 */
import { createHash } from 'node:crypto';
import type { TraceDocument } from './document.js';
import { summarize, type TraceSummary } from './summary.js';
import { viewerData } from './viewer-data.js';
import { viewerScript } from './viewer-script.js';
import { lossText, percent, samplingText, sharesText, times } from './words.js';

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (letter) => ENTITIES[letter]!);

/** JSON for a script element: nothing in it can end the element, or begin a comment. */
export const embeddedJson = (value: unknown): string =>
  JSON.stringify(value)
    .replaceAll('<', '\\u003c')
    .replaceAll('\u2028', '\\u2028')
    .replaceAll('\u2029', '\\u2029');

const style = `
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.2rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; } h2 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } .muted { opacity: .75; } .warning { color: #b40; }
#bar { display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; margin: .8rem 0 .3rem; }
#lanes { width: 100%; touch-action: none; cursor: grab; border: 1px solid #8886; }
#tip { position: absolute; max-width: 26rem; white-space: pre-wrap; pointer-events: none; padding: .3rem .5rem;
  background: Canvas; border: 1px solid #8889; border-radius: 4px; }
`;

const digest = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

const policy = [
  "default-src 'none'",
  `script-src ${digest(viewerScript)}`,
  `style-src 'unsafe-inline'`, // the time line sets its height, and the tip its place
  "base-uri 'none'",
  "form-action 'none'",
].join('; ');

export const renderTraceHtml = (trace: TraceDocument): string => {
  const summary = summarize(trace);
  const title = escapeHtml(`Trace of ${trace.title}`);
  return `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width">
<title>${title}</title>
<style>${style}</style>
</head><body>
<h1>${title}</h1>
<p class="muted">${escapeHtml(trace.beganAt)}, ${(summary.durationMs / 1e3).toFixed(3)} s; QEMU is process ${trace.pid}</p>
${lossesAndNotes(summary)}
<div id="bar"><input id="filter" type="search" placeholder="filter by name" aria-label="filter by name">
<button id="all" type="button">all</button><span id="range" class="muted"></span>
<span class="muted">wheel: zoom · drag, shift+wheel, arrows: move · double click, 0: all</span></div>
<canvas id="lanes" role="img" aria-label="time line"></canvas><div id="tip" hidden></div>
<h2>Threads</h2>
${threadTable(summary)}
${processTable(summary)}
<script type="application/json" id="trace">${embeddedJson(viewerData(trace))}</script>
<script>${viewerScript}</script>
</body></html>
`;
};

const table = (heads: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<table><tr>${heads.map((head) => `<th>${escapeHtml(head)}</th>`).join('')}</tr>${rows
    .map((row) => `<tr>${row.map((cell) => `<td>${escapeHtml(cell)}</td>`).join('')}</tr>`)
    .join('\n')}</table>`;

const lossesAndNotes = (summary: TraceSummary): string => {
  const loss = lossText(summary);
  return [
    ...(loss === undefined ? [] : [`<p class="warning">${escapeHtml(loss)}</p>`]),
    ...summary.notes.map((note) => `<p>${escapeHtml(note)}</p>`),
  ].join('\n');
};

const threadTable = ({ threads }: TraceSummary): string =>
  table(
    ['thread', 'ran', 'on core', 'migrations', 'to the new core, p50 / max', 'waited', 'longest wait'],
    threads.map((thread) => [
      `${thread.label} (${thread.tid})`,
      percent(thread.ranShare),
      sharesText(thread.coreShares),
      String(thread.migrations),
      thread.migrationMs === undefined
        ? ''
        : `${thread.migrationMs.p50.toFixed(3)} / ${thread.migrationMs.max.toFixed(3)} ms`,
      `${thread.waitedMs.toFixed(2)} ms, ${times(thread.waits)}`,
      thread.longestWait === undefined
        ? ''
        : `${thread.longestWait.ms.toFixed(3)} ms at ${thread.longestWait.atMs.toFixed(1)} ms${
            thread.longestWait.pushedOffBy === undefined
              ? ''
              : `, pushed off by ${thread.longestWait.pushedOffBy}`
          }`,
    ]),
  );

const processTable = ({ guest }: TraceSummary): string =>
  guest === undefined
    ? ''
    : `<h2>Guest processes</h2>
<p class="muted">${escapeHtml(guest.kernel)}; ${samplingText(guest)}</p>
${table(
  ['process', 'on a vCPU', 'on a core', 'vCPUs', 'cores'],
  guest.processes.map((process) => [
    `${process.name} (${process.pid})`,
    percent(process.onVcpuShare),
    percent(process.onCoreShare),
    sharesText(process.vcpuShares),
    sharesText(process.coreShares),
  ]),
)}`;
