/** Lines over a parameter, each named where it ends. */
import type { LineChart } from '../figures/chart.js';
import { formatNumber, formatTick } from '../figures/metric.js';
import { at, html, type Markup } from './markup.js';
import { pointScale, valueScale } from './scale.js';
import { chartWidth, seriesClass, textWidth } from './style.js';

const HEIGHT = 360;
const TOP = 34;
const BOTTOM = HEIGHT - 50;
const LEFT = 62;
const NAME_HEIGHT = 16;

/** Colour alone does not tell lines apart for everyone, nor on paper. */
const marker = (index: number, x: number, y: number): Markup => {
  const style = seriesClass(index);
  const r = 4;
  switch (index % 4) {
    case 0:
      return html`<circle class="${style}" cx="${at(x)}" cy="${at(y)}" r="${r}"/>`;
    case 1:
      return html`<rect class="${style}" x="${at(x - r)}" y="${at(y - r)}" width="${2 * r}" height="${2 * r}"/>`;
    case 2:
      return html`<path class="${style}" d="M${at(x)} ${at(y - 5)}l5 9h-10z"/>`;
    default:
      return html`<path class="${style}" d="M${at(x)} ${at(y - 5)}l5 5l-5 5l-5 -5z"/>`;
  }
};

/** Moves names that would overlap apart, keeping their order; in place. */
const spread = <T extends { y: number }>(names: T[]): T[] => {
  names.sort((a, b) => a.y - b.y);
  for (let pass = 0; pass < 20; pass += 1) {
    for (let index = 1; index < names.length; index += 1) {
      const [above, below] = [names[index - 1]!, names[index]!];
      const overlap = NAME_HEIGHT - (below.y - above.y);
      if (overlap <= 0) continue;
      above.y -= overlap / 2;
      below.y += overlap / 2;
    }
    for (const name of names) name.y = Math.min(Math.max(name.y, TOP), BOTTOM);
  }
  return names;
};

export const drawLines = (chart: LineChart): Markup => {
  const { series, references = [] } = chart;
  const points = series.flatMap(({ points }) => points);
  const allNames = [...series, ...references].map(({ name }) => name);
  const right = chartWidth - Math.max(40, ...allNames.map(textWidth)) - 24;
  const x = pointScale(
    points.map((point) => point.x),
    [LEFT + 16, right],
    chart.x.scale,
  );
  const y = valueScale(
    [...points.map((point) => point.y), ...references.map((line) => line.y)],
    [BOTTOM, TOP],
    chart.y,
  );

  const grid = [
    ...y.ticks.map(
      (
        tick,
      ) => html`<line class="grid" x1="${LEFT}" x2="${at(right)}" y1="${at(y.place(tick))}" y2="${at(y.place(tick))}"/>
<text class="tick" x="${LEFT - 8}" y="${at(y.place(tick) + 4)}" text-anchor="end">${formatTick(tick)}</text>`,
    ),
    ...x.ticks.map(
      (
        tick,
      ) => html`<line class="axis" x1="${at(x.place(tick))}" x2="${at(x.place(tick))}" y1="${BOTTOM}" y2="${BOTTOM + 5}"/>
<text class="tick" x="${at(x.place(tick))}" y="${BOTTOM + 20}" text-anchor="middle">${formatTick(tick)}</text>`,
    ),
  ];
  const lines = series.map(({ name, points: of }, index) => {
    const path = of.map((point) => `${at(x.place(point.x))},${at(y.place(point.y))}`).join(' ');
    return html`<polyline class="line ${seriesClass(index)}" points="${path}"/>
${of.map(
  (
    point,
  ) => html`<g><title>${name}: ${formatNumber(point.y)} at ${formatNumber(point.x)}</title>${marker(index, x.place(point.x), y.place(point.y))}</g>
`,
)}`;
  });
  const referenceLines = references.map(
    (line) => html`<g><title>${line.name}: ${formatNumber(line.y)}</title>
<line class="reference" x1="${LEFT}" x2="${at(right)}" y1="${at(y.place(line.y))}" y2="${at(y.place(line.y))}"/></g>`,
  );
  const names = spread([
    ...series.map(({ name, points: of }, index) => {
      const last = of.at(-1);
      return {
        name,
        style: `name ${seriesClass(index)}`,
        y: y.place(last?.y ?? 0),
        x: x.place(last?.x ?? 0),
      };
    }),
    ...references.map(({ name, y: value }) => ({ name, style: 'name muted', y: y.place(value), x: right })),
  ]).map(
    (name) =>
      html`<text class="${name.style}" x="${at(right + 14)}" y="${at(name.y + 4)}">${name.name}</text>`,
  );
  return html`<svg viewBox="0 0 ${chartWidth} ${HEIGHT}" role="img" aria-label="${chart.title}">
<text class="axis-label" x="0" y="14">${chart.y.label}</text>
${grid}
<line class="axis" x1="${LEFT}" x2="${at(right)}" y1="${BOTTOM}" y2="${BOTTOM}"/>
${referenceLines}${lines}${names}
<text class="axis-label" x="${at((LEFT + right) / 2)}" y="${HEIGHT - 8}" text-anchor="middle">${chart.x.label}</text>
</svg>`;
};
