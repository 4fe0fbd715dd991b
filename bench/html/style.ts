/** How the report looks, light and dark. */

/** Width of a chart's coordinates; on the page it scales. */
export const chartWidth = 860;

/** Of the 13-pixel sans serif of the charts, a little generous. */
export const textWidth = (text: string): number => text.length * 7.3;

/** Told apart also with the common colour blindnesses; each has 3:1 or more against its background. */
const palette = {
  light: ['#1f6fb5', '#c2610c', '#2a8a57', '#b8325a', '#7a52b3', '#8a6a1f', '#0f8a94', '#5b6675'],
  dark: ['#6fb1f0', '#f0a052', '#5fc78f', '#f2809f', '#b79cf2', '#d8b35a', '#4fc6d0', '#a5b1c0'],
} as const;

export const seriesCount = palette.light.length;
export const seriesColours = palette;

export const seriesClass = (index: number): string => `s${index % seriesCount}`;

const colours = (theme: 'light' | 'dark'): string =>
  palette[theme].map((colour, index) => `--s${index}:${colour}`).join(';');

const seriesRules = Array.from(
  { length: seriesCount },
  (_, index) =>
    `.s${index}{fill:var(--s${index})}.line.s${index}{fill:none;stroke:var(--s${index})}i.s${index}{background:var(--s${index})}`,
).join('\n');

export const style = `
:root{color-scheme:light dark;--page:#fff;--text:#1b2430;--muted:#5b6675;--rule:#d5dbe3;--faint:#f4f6f9;--good:#1d7a46;--bad:#b3261e;${colours('light')}}
@media (prefers-color-scheme:dark){:root{--page:#12171e;--text:#e4e9f0;--muted:#a0acba;--rule:#313b48;--faint:#1a212b;--good:#5fc78f;--bad:#ff8a80;${colours('dark')}}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.5rem 4rem;max-width:70rem;background:var(--page);color:var(--text);font:16px/1.55 system-ui,"DejaVu Sans",sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.45rem;margin:3.5rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:0 0 .2rem}
p{margin:.5rem 0;max-width:48rem}
.muted{color:var(--muted)}
.warning{border-left:4px solid var(--bad);padding:.4rem .8rem;background:var(--faint)}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0}
dl.facts dt{color:var(--muted)}dl.facts dd{margin:0}
figure{margin:2.2rem 0}
figcaption{margin-bottom:.7rem}
figcaption p,.caption{margin:.1rem 0;font-size:.86rem;color:var(--muted)}
svg{display:block;width:100%;height:auto;font:13px system-ui,"DejaVu Sans",sans-serif}
svg text{fill:var(--text)}
svg .tick,svg .muted{fill:var(--muted)}svg .axis-label{fill:var(--muted);font-size:13px}
svg .value{font-size:12px;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--rule);stroke-width:1}svg .axis{stroke:var(--muted);stroke-width:1}
svg .reference{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:6 4}
svg .line{stroke-width:2}
${seriesRules}
${Array.from({ length: seriesCount }, (_, index) => `svg text.name.s${index}{fill:var(--s${index})}`).join('')}
ul.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.3rem 0 .6rem;padding:0;font-size:.86rem}
ul.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem;vertical-align:-1px}
.wide{overflow-x:auto;margin:.4rem 0 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .7rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;background:var(--faint)}
thead th{white-space:normal;vertical-align:bottom;min-width:4.5rem}
th:first-child,td:first-child{text-align:left}
details{margin:2rem 0}summary{cursor:pointer;font-weight:600}
section.table{margin:2.2rem 0}
table.ratios td:nth-child(-n+2),table.ratios th:nth-child(-n+2){text-align:left;white-space:normal}
code{font:.92em ui-monospace,"DejaVu Sans Mono",monospace}
.reached{color:var(--good);font-weight:600}.missed{color:var(--bad);font-weight:600}
footer{margin-top:4rem;padding-top:1rem;border-top:1px solid var(--rule)}
@media print{body{max-width:none;padding:0}figure,section.table{break-inside:avoid}}
`;
