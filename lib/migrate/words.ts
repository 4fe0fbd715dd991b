/** Amounts as an operator reads them in a policy's reasons. */

/** `8,192 pages (32 MiB)`. */
export const pagesText = (pages: number, pageBytes: number): string =>
  `${whole.format(pages)} ${pages === 1 ? 'page' : 'pages'} (${bytesText(pages * pageBytes)})`;

export const bytesText = (bytes: number): string => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${rounded(value)} ${units[unit]}`;
};

/** A rate in bytes per millisecond, as `30 MiB/s`. */
export const rateText = (bytesPerMs: number): string => `${bytesText(bytesPerMs * 1000)}/s`;

/** `0.4 ms`, `300 ms`, `9.1 s`. */
export const timeText = (ms: number): string =>
  ms < 10_000 ? `${rounded(ms)} ms` : `${rounded(ms / 1000)} s`;

/** A tenth where that is visible. */
const rounded = (value: number): string => (value < 10 ? tenths : whole).format(value);

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
