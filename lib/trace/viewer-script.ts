/**
 * The page's own program, as text: the time line on a canvas. It puts names only
 * into text (fillText, textContent), never into markup.
 */
export const viewerScript = String.raw`
'use strict';
const data = JSON.parse(document.getElementById('trace').textContent);
const canvas = document.getElementById('lanes');
const context = canvas.getContext('2d');
const tip = document.getElementById('tip');
const filter = document.getElementById('filter');
const range = document.getElementById('range');
const LANE = 22, HEAD = 24, AXIS = 26, LABELS = 170, SHORTEST_US = 0.5;
let view = { from: 0, to: Math.max(data.durationUs, 1) };
let wanted = '';
const dark = matchMedia('(prefers-color-scheme: dark)');

// Rows from top to bottom: groups' headings and lanes.
const rows = [];
let height = AXIS;
for (const group of data.groups) {
  rows.push({ heading: group.name, y: height });
  height += HEAD;
  for (const lane of group.lanes) {
    rows.push({ lane, y: height });
    height += LANE;
  }
}
height += 8;

const hues = new Map();
const hueOf = (text) => {
  if (!hues.has(text)) {
    // Numbers of cores and vCPUs are neighbours: the golden angle keeps their colours apart.
    const name = data.texts[text];
    const number = /\d+/.exec(name);
    let seed = 0;
    for (const letter of name.replace(/\d+/g, '')) seed = (seed * 31 + letter.codePointAt(0)) % 360;
    hues.set(text, (seed + (number ? Number(number[0]) : 0) * 137.5) % 360);
  }
  return hues.get(text);
};
const matches = (text) => wanted === '' || data.texts[text].toLowerCase().includes(wanted);
const colorOf = (text, look) => {
  if (!matches(text)) return dark.matches ? '#333a' : '#ddda';
  if (look === 1) return dark.matches ? '#a33' : '#e88';
  if (look === 3) return dark.matches ? '#b80' : '#fb3';
  return 'hsl(' + hueOf(text) + (dark.matches ? ' 45% 42%)' : ' 60% 68%)');
};

const width = () => canvas.clientWidth - LABELS;
const toX = (us) => LABELS + ((us - view.from) / (view.to - view.from)) * width();
const toUs = (x) => view.from + ((x - LABELS) / width()) * (view.to - view.from);

/** First entry whose end is after the time. */
const firstFrom = (list, step, us, endOf) => {
  let low = 0, high = list.length / step;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (endOf(middle * step) <= us) low = middle + 1; else high = middle;
  }
  return low * step;
};
const spanFrom = (spans, us) => firstFrom(spans, 5, us, (at) => spans[at] + spans[at + 1]);

const timeText = (us) => {
  const step = view.to - view.from;
  if (step < 2000) return us.toFixed(1) + ' µs';
  if (step < 2e6) return (us / 1e3).toFixed(step < 2e4 ? 3 : 1) + ' ms';
  return (us / 1e6).toFixed(2) + ' s';
};

const drawAxis = (ink) => {
  const wantedTicks = Math.max(2, width() / 110);
  const raw = (view.to - view.from) / wantedTicks;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  context.fillStyle = ink;
  for (let us = Math.ceil(view.from / step) * step; us <= view.to; us += step) {
    context.globalAlpha = 0.15;
    context.fillRect(toX(us), AXIS - 6, 1, height);
    context.globalAlpha = 1;
    context.fillText(timeText(us), toX(us) + 3, 12);
  }
};

const drawLane = ({ lane, y }, ink) => {
  const { spans, instants } = lane;
  let drawnTo = -1;
  for (let at = spanFrom(spans, view.from); at < spans.length && spans[at] < view.to; at += 5) {
    const x = Math.max(toX(spans[at]), LABELS);
    const right = Math.min(toX(spans[at] + spans[at + 1]), LABELS + width());
    // Thousands of spans in one pixel are one stroke.
    if (right < drawnTo) continue;
    drawnTo = Math.max(x + 0.6, right);
    context.fillStyle = colorOf(spans[at + 2], spans[at + 3]);
    context.fillRect(x, y + (spans[at + 3] === 1 ? 7 : 2), Math.max(0.6, right - x), spans[at + 3] === 1 ? LANE - 14 : LANE - 4);
    if (spans[at + 3] === 2) {
      context.fillStyle = ink;
      context.fillRect(right - 1, y + 2, 1, LANE - 4);
    }
    if (right - x > 34 && spans[at + 3] !== 1) {
      context.fillStyle = ink;
      context.fillText(data.texts[spans[at + 2]], x + 4, y + 15, right - x - 6);
    }
  }
  context.fillStyle = dark.matches ? '#f66' : '#c00';
  for (let at = firstFrom(instants, 3, view.from, (i) => instants[i]); at < instants.length && instants[at] < view.to; at += 3) {
    const x = toX(instants[at]);
    context.beginPath();
    context.moveTo(x - 4, y + 1);
    context.lineTo(x + 4, y + 1);
    context.lineTo(x, y + 8);
    context.fill();
  }
};

const draw = () => {
  const scale = devicePixelRatio || 1;
  canvas.style.height = height + 'px';
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.font = '12px system-ui, sans-serif';
  const ink = getComputedStyle(document.body).color;
  context.clearRect(0, 0, canvas.clientWidth, height);
  context.fillStyle = dark.matches ? '#b804' : '#fb35';
  for (let at = 0; at < data.paused.length; at += 2) {
    if (data.paused[at + 1] < view.from || data.paused[at] > view.to) continue;
    const x = Math.max(toX(data.paused[at]), LABELS);
    context.fillRect(x, AXIS, Math.max(0.4, Math.min(toX(data.paused[at + 1]), LABELS + width()) - x), height);
  }
  drawAxis(ink);
  for (const row of rows) {
    context.fillStyle = ink;
    if (row.heading !== undefined) {
      context.font = 'bold 12px system-ui, sans-serif';
      context.fillText(row.heading, 4, row.y + 17);
      context.font = '12px system-ui, sans-serif';
      continue;
    }
    context.fillText(row.lane.name, 12, row.y + 15, LABELS - 16);
    drawLane(row, ink);
  }
  range.textContent = timeText(view.from) + ' to ' + timeText(view.to) + ' of ' + (data.durationUs / 1e6).toFixed(3) + ' s';
};

let queued = false;
const redraw = () => {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; draw(); });
};
const show = (from, to) => {
  const length = Math.min(Math.max(to - from, SHORTEST_US), Math.max(data.durationUs, 1));
  const begin = Math.min(Math.max(0, from), Math.max(data.durationUs, 1) - length);
  view = { from: begin, to: begin + length };
  redraw();
};
const zoom = (factor, us) => show(us - (us - view.from) * factor, us + (view.to - us) * factor);

canvas.addEventListener('wheel', (event) => {
  event.preventDefault();
  const length = view.to - view.from;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const by = ((event.deltaX || event.deltaY) / width()) * length;
    show(view.from + by, view.to + by);
  } else {
    zoom(Math.exp(event.deltaY * 0.002), toUs(Math.max(event.offsetX, LABELS)));
  }
}, { passive: false });

let dragged;
canvas.addEventListener('pointerdown', (event) => {
  dragged = { x: event.offsetX, view };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointerup', () => { dragged = undefined; });
canvas.addEventListener('dblclick', () => show(0, data.durationUs));

const lengthText = (us) => us < 1000 ? us.toFixed(1) + ' µs' : us < 1e6 ? (us / 1e3).toFixed(3) + ' ms' : (us / 1e6).toFixed(3) + ' s';
const wordsAt = (x, y) => {
  const row = rows.find(({ lane, y: top }) => lane !== undefined && y >= top && y < top + LANE);
  if (row === undefined || x < LABELS) return '';
  const { spans, instants } = row.lane;
  const nearUs = (4 / width()) * (view.to - view.from), us = toUs(x);
  const words = [];
  for (let at = firstFrom(instants, 3, us - nearUs, (i) => instants[i]); at < instants.length && instants[at] < us + nearUs && words.length < 3; at += 3) {
    words.push(data.texts[instants[at + 1]] + ' at ' + timeText(instants[at]) + '\n' + data.texts[instants[at + 2]]);
  }
  const at = spanFrom(spans, us - nearUs / 4);
  if (at < spans.length && spans[at] < us + nearUs / 4) {
    words.push(data.texts[spans[at + 2]] + ', ' + lengthText(spans[at + 1]) + ', from ' + timeText(spans[at]) + '\n' + data.texts[spans[at + 4]]);
  }
  return words.join('\n').trim();
};
canvas.addEventListener('pointermove', (event) => {
  if (dragged !== undefined) {
    const by = ((dragged.x - event.offsetX) / width()) * (dragged.view.to - dragged.view.from);
    show(dragged.view.from + by, dragged.view.to + by);
    return;
  }
  const words = wordsAt(event.offsetX, event.offsetY);
  tip.hidden = words === '';
  tip.textContent = words;
  tip.style.left = Math.min(event.pageX + 14, document.body.clientWidth - 280) + 'px';
  tip.style.top = event.pageY + 14 + 'px';
});
canvas.addEventListener('pointerleave', () => { tip.hidden = true; });
filter.addEventListener('input', () => { wanted = filter.value.toLowerCase(); redraw(); });
addEventListener('keydown', (event) => {
  if (event.target === filter) return;
  const middle = (view.from + view.to) / 2, by = (view.to - view.from) / 5;
  if (event.key === '+' || event.key === '=') zoom(0.6, middle);
  else if (event.key === '-') zoom(1 / 0.6, middle);
  else if (event.key === 'ArrowLeft') show(view.from - by, view.to - by);
  else if (event.key === 'ArrowRight') show(view.from + by, view.to + by);
  else if (event.key === '0') show(0, data.durationUs);
});
document.getElementById('all').addEventListener('click', () => show(0, data.durationUs));
dark.addEventListener('change', redraw);
addEventListener('resize', redraw);
draw();
`;
