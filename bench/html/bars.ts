/** Horizontal bars, in groups; each ends in its value. */
import type { BarChart } from '../figures/chart.js';
import { formatNumber, formatTick } from '../figures/metric.js';
import { at, html, type Markup } from './markup.js';
import { valueScale } from './scale.js';
import { chartWidth, seriesClass, textWidth } from './style.js';

const BAR_HEIGHT = 16;
const BAR_GAP = 3;
const GROUP_GAP = 14;
const VALUE_WIDTH = 64;
const AXIS_HEIGHT = 46;
const LABEL_WIDTH_MAX = 250;

const shorten = (text: string): string => {
  if (textWidth(text) <= LABEL_WIDTH_MAX) return text;
  return `${text.slice(0, Math.floor(LABEL_WIDTH_MAX / textWidth('n')) - 1)}…`;
};

export const drawBars = (chart: BarChart): Markup => {
  const { groups, series, axis } = chart;
  const left = Math.max(60, ...groups.map((group) => textWidth(shorten(group)))) + 14;
  const right = chartWidth - VALUE_WIDTH;
  const groupHeight = series.length * (BAR_HEIGHT + BAR_GAP) - BAR_GAP;
  const bottom = GROUP_GAP / 2 + groups.length * (groupHeight + GROUP_GAP) - GROUP_GAP / 2;
  const values = series.flatMap(({ values }) => values.flatMap((value) => value ?? []));
  const { place, ticks } = valueScale(values, [left, right], axis);

  const grid = ticks.map(
    (
      tick,
    ) => html`<line class="grid" x1="${at(place(tick))}" x2="${at(place(tick))}" y1="0" y2="${at(bottom)}"/>
<text class="tick" x="${at(place(tick))}" y="${at(bottom + 18)}" text-anchor="middle">${formatTick(tick)}</text>`,
  );
  const bars = groups.map((group, groupIndex) => {
    const top = GROUP_GAP / 2 + groupIndex * (groupHeight + GROUP_GAP);
    const label = html`<text class="label" x="${at(left - 10)}" y="${at(top + groupHeight / 2 + 4)}" text-anchor="end">${shorten(group)}</text>`;
    const drawn = series.map(({ name, values: of }, index) => {
      const value = of[groupIndex];
      if (value === undefined) return undefined;
      const y = top + index * (BAR_HEIGHT + BAR_GAP);
      const end = Math.max(place(value), left + 1);
      return html`<g><title>${group}, ${name}: ${formatNumber(value)}</title>
<rect class="${seriesClass(index)}" x="${at(left)}" y="${at(y)}" width="${at(end - left)}" height="${BAR_HEIGHT}" rx="2"/>
<text class="value" x="${at(end + 6)}" y="${at(y + BAR_HEIGHT - 4)}">${formatNumber(value)}</text></g>`;
    });
    return html`${label}${drawn}`;
  });
  const height = bottom + AXIS_HEIGHT;
  return html`<svg viewBox="0 0 ${chartWidth} ${at(height)}" role="img" aria-label="${chart.title}">
${grid}${bars}
<line class="axis" x1="${at(left)}" x2="${at(left)}" y1="0" y2="${at(bottom)}"/>
<text class="axis-label" x="${at((left + right) / 2)}" y="${at(bottom + 38)}" text-anchor="middle">${axis.label}</text>
</svg>`;
};
